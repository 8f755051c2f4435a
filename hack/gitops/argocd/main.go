// Argo CD's own Lua package (util/lua of the version in go.mod) over hack/gitops/objects.json with the chart's argocd-cm.yaml: the
// same lines as `gitops --argocd`, for hack/gitops/check to compare. Run from the root of the repository.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/argoproj/argo-cd/v3/pkg/apiclient/application"
	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	argolua "github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const (
	healthKey  = "resource.customizations.health.lockstep.dev_"
	actionsKey = "resource.customizations.actions.lockstep.dev_"
)

type row struct {
	State  string                    `json:"state"`
	Object unstructured.Unstructured `json:"object"`
}

func main() {
	if err := answer(); err != nil {
		fmt.Fprintln(os.Stderr, "argocd:", err)
		os.Exit(1)
	}
}

func answer() error {
	vm, err := machine()
	if err != nil {
		return err
	}
	text, err := os.ReadFile("hack/gitops/objects.json")
	if err != nil {
		return err
	}
	var rows []row
	if err := json.Unmarshal(text, &rows); err != nil {
		return err
	}
	for _, r := range rows {
		where := r.Object.GetKind() + " | " + r.State
		found, err := health.GetResourceHealth(&r.Object, argolua.ResourceHealthOverrides(vm.ResourceOverrides))
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		fmt.Printf("%s | %s | %s\n", where, found.Status, found.Message)
		if err := actions(vm, r, where); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	return nil
}

// The overrides as Argo CD's settings read them from its ConfigMap.
func machine() (*argolua.VM, error) {
	text, err := os.ReadFile("charts/lockstep/gitops/argocd/argocd-cm.yaml")
	if err != nil {
		return nil, err
	}
	var config struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	vm := &argolua.VM{ResourceOverrides: map[string]v1alpha1.ResourceOverride{}}
	for key, value := range config.Data {
		if kind, ok := strings.CutPrefix(key, healthKey); ok {
			override := vm.ResourceOverrides["lockstep.dev/"+kind]
			override.HealthLua = value
			vm.ResourceOverrides["lockstep.dev/"+kind] = override
		} else if kind, ok := strings.CutPrefix(key, actionsKey); ok {
			override := vm.ResourceOverrides["lockstep.dev/"+kind]
			override.Actions = value
			vm.ResourceOverrides["lockstep.dev/"+kind] = override
		}
	}
	return vm, nil
}

func actions(vm *argolua.VM, r row, where string) error {
	discovery, err := vm.GetResourceActionDiscovery(&r.Object)
	if err != nil || len(discovery) == 0 {
		return err
	}
	found, err := vm.ExecuteResourceActionDiscovery(&r.Object, discovery)
	if err != nil {
		return err
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
	for _, one := range found {
		if one.Disabled {
			continue
		}
		script, err := vm.GetResourceAction(&r.Object, one.Name)
		if err != nil {
			return err
		}
		// As the API of Argo CD hands them over.
		name, value := "comment", "too short"
		parameters := []*application.ResourceActionParameters{{Name: &name, Value: &value}}
		impacted, err := vm.ExecuteResourceAction(&r.Object, script.ActionLua, parameters)
		if err != nil {
			return err
		}
		for _, what := range impacted {
			written, err := json.Marshal(what.UnstructuredObj.Object)
			if err != nil {
				return err
			}
			if what.K8SOperation == argolua.PatchOperation {
				before, err := json.Marshal(r.Object.Object)
				if err != nil {
					return err
				}
				if written, err = jsonpatch.CreateMergePatch(before, written); err != nil {
					return err
				}
			}
			fmt.Printf("%s | %s | %s\n", where, one.Name, written)
		}
	}
	return nil
}
