// What tools that know nothing of Lockstep say of its objects: kstatus and Flux by their own libraries, Argo CD by its Lua machine.
// It reads objects.json, which a test of the stories writes (tests/scenarios/states.rs), and the chart's gitops folder; it holds the
// answers against what people expect, and docs/gitops.md and argocd-cm.yaml against both. --update writes those two anew.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const (
	chart   = "charts/lockstep/gitops"
	objects = "hack/gitops/objects.json"
	page    = "docs/gitops.md"
	begin   = "<!-- written by hack/gitops/check --update -->\n"
	end     = "<!-- end -->\n"
)

// An object of one kind in one state.
type row struct {
	State  string                    `json:"state"`
	Object unstructured.Unstructured `json:"object"`
}

// What each tool says of it.
type said struct {
	KStatus, Argo, FluxEnd, FluxStarted string
	message                             string
}

func main() {
	update := len(os.Args) == 2 && os.Args[1] == "--update"
	if len(os.Args) == 2 && os.Args[1] == "--argocd" {
		fatal(printArgo())
		return
	}
	if faults := check(update); len(faults) > 0 {
		fmt.Fprintln(os.Stderr, strings.Join(faults, "\n"))
		os.Exit(1)
	}
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func check(update bool) []string {
	rows, err := read()
	fatal(err)
	config, err := configMap()
	fatal(err)
	var faults []string
	faults = append(faults, upToDate(filepath.Join(chart, "argocd/argocd-cm.yaml"), config, update)...)
	argo, err := newArgo(config)
	fatal(err)
	toTheEnd, err := exprs("until-the-end.yaml")
	fatal(err)
	started, err := exprs("until-started.yaml")
	fatal(err)
	kinds := map[string]bool{}
	var table []string
	for _, r := range rows {
		kinds[r.Object.GetKind()] = true
		found, err := ask(r, argo, toTheEnd, started)
		where := r.Object.GetKind() + ", " + r.State
		if err != nil {
			faults = append(faults, where+": "+err.Error())
			continue
		}
		want := expected(r)
		if found.KStatus != want.KStatus || found.Argo != want.Argo || found.FluxEnd != want.FluxEnd || found.FluxStarted != want.FluxStarted {
			faults = append(faults, fmt.Sprintf("%s: kstatus, Argo CD, Flux until the end, Flux until started\n  expected %v\n  found    %v", where,
				[]string{want.KStatus, want.Argo, want.FluxEnd, want.FluxStarted}, []string{found.KStatus, found.Argo, found.FluxEnd, found.FluxStarted}))
		}
		faults = append(faults, argo.actionFaults(r)...)
		table = append(table, fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |", r.Object.GetKind(), r.State, want.forPeople(), found.KStatus, found.Argo, found.FluxEnd, found.FluxStarted))
	}
	for _, kind := range []string{"Workflow", "StepRun", "Agent", "WorkflowTemplate", "Trigger", "Document", "Memory"} {
		if !kinds[kind] {
			faults = append(faults, "no object of the kind "+kind)
		}
	}
	faults = append(faults, pageFaults(table, update)...)
	if len(faults) == 0 {
		fmt.Printf("gitops: %d states of %d kinds: kstatus, Argo CD and Flux say what is expected\n", len(rows), len(kinds))
	}
	return faults
}

func read() ([]row, error) {
	text, err := os.ReadFile(objects)
	if err != nil {
		return nil, err
	}
	var rows []row
	return rows, json.Unmarshal(text, &rows)
}

func ask(r row, argo *argo, toTheEnd, started map[string]*cel.StatusEvaluator) (said, error) {
	var found said
	result, err := status.Compute(&r.Object)
	if err != nil {
		return found, fmt.Errorf("kstatus: %w", err)
	}
	found.KStatus = result.Status.String()
	if found.FluxEnd, err = flux(r, toTheEnd, found.KStatus); err != nil {
		return found, err
	}
	if found.FluxStarted, err = flux(r, started, found.KStatus); err != nil {
		return found, err
	}
	health, err := argo.health(&r.Object)
	if err != nil {
		return found, fmt.Errorf("Argo CD: %w", err)
	}
	if health.Message == "" && health.Status != "Healthy" {
		return found, fmt.Errorf("Argo CD: %s without a message", health.Status)
	}
	found.Argo, found.message = health.Status, health.Message
	return found, nil
}

// For kinds without expressions kustomize-controller asks kstatus.
func flux(r row, evaluators map[string]*cel.StatusEvaluator, otherwise string) (string, error) {
	evaluator := evaluators[r.Object.GetKind()]
	if evaluator == nil {
		return otherwise, nil
	}
	result, err := evaluator.Evaluate(context.Background(), &r.Object)
	if err != nil {
		return "", fmt.Errorf("Flux: %w", err)
	}
	return result.Status.String(), nil
}

func exprs(file string) (map[string]*cel.StatusEvaluator, error) {
	text, err := os.ReadFile(filepath.Join(chart, "flux", file))
	if err != nil {
		return nil, err
	}
	var list []kustomize.CustomHealthCheck
	if err := yaml.UnmarshalStrict(text, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	evaluators := map[string]*cel.StatusEvaluator{}
	for _, one := range list {
		if one.APIVersion != "lockstep.dev/v1alpha1" {
			return nil, fmt.Errorf("%s: %s is no version of ours", file, one.APIVersion)
		}
		if evaluators[one.Kind], err = cel.NewStatusEvaluator(&one.HealthCheckExpressions); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", file, one.Kind, err)
		}
	}
	return evaluators, nil
}

func upToDate(file string, want []byte, update bool) []string {
	if update {
		fatal(os.WriteFile(file, want, 0o644))
		return nil
	}
	if found, err := os.ReadFile(file); err != nil || !bytes.Equal(found, want) {
		return []string{file + " is not up to date: run hack/gitops/check --update"}
	}
	return nil
}

func pageFaults(table []string, update bool) []string {
	text, err := os.ReadFile(page)
	fatal(err)
	head, rest, found := strings.Cut(string(text), begin)
	_, tail, ended := strings.Cut(rest, end)
	if !found || !ended {
		return []string{page + " lacks the lines between which the table stands"}
	}
	lines := append([]string{
		"| kind | state | what follows should | kstatus | Argo CD | Flux, until-the-end | Flux, until-started |",
		"| --- | --- | --- | --- | --- | --- | --- |"}, table...)
	return upToDate(page, []byte(head+begin+strings.Join(lines, "\n")+"\n"+end+tail), update)
}
