// A sync as kustomize-controller does it, by its own apply library with its own options, beside people who suspend and cancel: on the
// control plane that KUBECONFIG names, where Lockstep's kinds and policies are installed. No operator needs to run. Then the chart, of
// which the file holds what is rendered, over the installation.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

const git = `
apiVersion: lockstep.dev/v1alpha1
kind: WorkflowTemplate
metadata: {name: release, namespace: %[1]s, annotations: {kustomize.toolkit.fluxcd.io/substitute: disabled}}
spec:
  steps:
  - {name: draft, agentId: writer, gate: {approvals: 2}}
---
apiVersion: lockstep.dev/v1alpha1
kind: Workflow
metadata: {name: plain, namespace: %[1]s}
spec: {templateRef: {name: release}, parameters: {version: 1, empty: {}}}
---
apiVersion: lockstep.dev/v1alpha1
kind: Workflow
metadata: {name: merged, namespace: %[1]s, annotations: {kustomize.toolkit.fluxcd.io/ssa: Merge}}
spec: {templateRef: {name: release}, parameters: {version: 1, empty: {}}}
---
apiVersion: lockstep.dev/v1alpha1
kind: Document
metadata: {name: brief-1, namespace: %[1]s}
spec: {type: brief, scope: Namespace, content: "a brief"}
`

type world struct {
	client  client.Client
	manager *ssa.ResourceManager
	ctx     context.Context
	space   string
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "sync: name the file with the rendered chart")
		os.Exit(2)
	}
	if err := all(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sync:", err)
		os.Exit(1)
	}
}

func all(chart string) error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return err
	}
	made, err := client.New(config, client.Options{})
	if err != nil {
		return err
	}
	w := &world{client: made, ctx: context.Background()}
	poller := polling.NewStatusPoller(made, made.RESTMapper(), polling.Options{})
	w.manager = ssa.NewResourceManager(made, poller, ssa.Owner{Field: "kustomize-controller", Group: "kustomize.toolkit.fluxcd.io"})
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "gitops-"}}
	if err := made.Create(w.ctx, space); err != nil {
		return err
	}
	w.space = space.Name
	defer func() { _ = made.Delete(w.ctx, space) }()
	if err := w.tell(); err != nil {
		return err
	}
	fmt.Println("sync: kustomize-controller's apply changes nothing twice, and takes from people only what the docs say")
	return w.chart(chart)
}

// The chart over what Helm installed: the second apply changes nothing, and a server-side dry run finds no drift.
func (w *world) chart(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	list, err := utils.ReadObjects(bytes.NewReader(text))
	if err != nil {
		return err
	}
	if _, err := w.applyAll(list); err != nil {
		return fmt.Errorf("the chart: %w", err)
	}
	again, err := w.applyAll(list)
	if err != nil {
		return fmt.Errorf("the chart again: %w", err)
	}
	if len(again.Entries) != len(list) {
		return fmt.Errorf("of %d objects of the chart %d were applied", len(list), len(again.Entries))
	}
	for _, entry := range again.Entries {
		if entry.Action != ssa.UnchangedAction {
			return fmt.Errorf("the second apply of the chart: %s is %s", entry.Subject, entry.Action)
		}
	}
	for _, object := range list {
		found, _, _, err := w.manager.Diff(w.ctx, object, ssa.DefaultDiffOptions())
		if err != nil {
			return err
		}
		if found.Action != ssa.UnchangedAction {
			return fmt.Errorf("the chart has drifted: %s is %s", found.Subject, found.Action)
		}
	}
	fmt.Printf("sync: %d objects of the chart, applied twice: no drift\n", len(list))
	return nil
}

// What docs/gitops.md says of Flux, in its order.
func (w *world) tell() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"the first sync creates", w.sync("created", "created", "created", "created")},
		{"the second changes nothing", w.sync("unchanged", "unchanged", "unchanged", "unchanged")},
		{"the plugin suspends both", w.both("lockstep-cli", `{"spec":{"suspend":true}}`)},
		{"what the plugin wrote stays", w.sync("unchanged", "unchanged", "unchanged", "unchanged")},
		{"both are suspended", w.suspended(true, true)},
		{"the plugin resumes both", w.both("lockstep-cli", `{"spec":{"suspend":null}}`)},
		{"kubectl patch suspends both", w.both("kubectl-patch", `{"spec":{"suspend":true}}`)},
		{"Flux takes it back where nothing says otherwise", w.sync("unchanged", "unchanged", "configured", "unchanged")},
		{"only the run that is merged stays suspended", w.suspended(false, true)},
		{"the plugin cancels both, and sets how long they stay", w.both("lockstep-cli", `{"spec":{"cancel":true,"ttlSecondsAfterFinished":60}}`)},
		{"that stays, too", w.sync("unchanged", "unchanged", "unchanged", "unchanged")},
		{"kubectl patch cancels both of another sync", w.cancelled},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Cancelled by kubectl patch: the next sync of the plain one is refused, and that of the other goes on.
func (w *world) cancelled() error {
	rest := strings.NewReplacer("name: plain", "name: plain-2", "name: merged", "name: merged-2").Replace(git)
	if _, err := w.apply(rest); err != nil {
		return err
	}
	for _, name := range []string{"plain-2", "merged-2"} {
		if err := w.patch(name, "kubectl-patch", `{"spec":{"cancel":true}}`); err != nil {
			return err
		}
	}
	_, err := w.apply(rest)
	if err == nil || !strings.Contains(err.Error(), "plain-2") || !strings.Contains(err.Error(), "cancel cannot be taken back") {
		return fmt.Errorf("not refused as told: %v", err)
	}
	_, err = w.apply(strings.Replace(rest, "parameters: {version: 1, empty: {}}}", "parameters: {version: 1, empty: {}}, cancel: true}", 1))
	return err
}

func (w *world) both(manager, patch string) func() error {
	return func() error {
		if err := w.patch("plain", manager, patch); err != nil {
			return err
		}
		return w.patch("merged", manager, patch)
	}
}

func (w *world) patch(name, manager, patch string) error {
	return w.client.Patch(w.ctx, w.run(name), client.RawPatch(types.MergePatchType, []byte(patch)), client.FieldOwner(manager))
}

func (w *world) run(name string) *unstructured.Unstructured {
	run := &unstructured.Unstructured{}
	run.SetAPIVersion("lockstep.dev/v1alpha1")
	run.SetKind("Workflow")
	run.SetName(name)
	run.SetNamespace(w.space)
	return run
}

func (w *world) suspended(plain, merged bool) func() error {
	return func() error {
		for name, want := range map[string]bool{"plain": plain, "merged": merged} {
			run := w.run(name)
			if err := w.client.Get(w.ctx, client.ObjectKeyFromObject(run), run); err != nil {
				return err
			}
			if found, _, _ := unstructured.NestedBool(run.Object, "spec", "suspend"); found != want {
				return fmt.Errorf("spec.suspend of %s is %v", name, found)
			}
		}
		return nil
	}
}

// Applies what Git holds; what became of document, template and both runs.
func (w *world) sync(document, template, plain, merged string) func() error {
	return func() error {
		found, err := w.apply(git)
		if err != nil {
			return err
		}
		for subject, want := range map[string]string{"Document": document, "WorkflowTemplate": template, "Workflow/plain": plain, "Workflow/merged": merged} {
			kind, name, _ := strings.Cut(subject, "/")
			told := false
			for _, entry := range found.Entries {
				if !strings.HasPrefix(entry.Subject, kind+"/") || !strings.HasSuffix(entry.Subject, name) {
					continue
				}
				told = true
				if entry.Action.String() != want {
					return fmt.Errorf("%s is %s, expected %s", entry.Subject, entry.Action, want)
				}
			}
			if !told {
				return fmt.Errorf("%s was not applied", subject)
			}
		}
		return nil
	}
}

func (w *world) apply(text string) (*ssa.ChangeSet, error) {
	var list []*unstructured.Unstructured
	for _, part := range strings.Split(fmt.Sprintf(text, w.space), "\n---\n") {
		one := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(part), &one.Object); err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return w.applyAll(list)
}

// With the options of kustomize-controller v1.9.6 (internal/controller/kustomization_controller.go, apply).
func (w *world) applyAll(list []*unstructured.Unstructured) (*ssa.ChangeSet, error) {
	if err := normalize.UnstructuredList(list); err != nil {
		return nil, err
	}
	w.manager.SetOwnerLabels(list, "release", "flux-system")
	group := "kustomize.toolkit.fluxcd.io"
	options := ssa.DefaultApplyOptions()
	options.ExclusionSelector = map[string]string{group + "/reconcile": "disabled", group + "/ssa": "Ignore"}
	options.IfNotPresentSelector = map[string]string{group + "/ssa": "IfNotPresent"}
	options.ForceSelector = map[string]string{group + "/force": "enabled"}
	options.Cleanup = ssa.ApplyCleanupOptions{
		Annotations: []string{corev1.LastAppliedConfigAnnotation},
		FieldManagers: []ssa.FieldManager{
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationApply},
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: "before-first-apply", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: "kustomize-controller", OperationType: metav1.ManagedFieldsOperationUpdate},
		},
		Exclusions: map[string]string{group + "/ssa": "Merge"},
	}
	return w.manager.ApplyAllStaged(w.ctx, list, options)
}
