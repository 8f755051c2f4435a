package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The names of the actions that can be clicked, in order.
func (a *argo) enabled(r row) ([]string, error) {
	all, ok := a.actions[r.Object.GetKind()]
	if !ok {
		return nil, nil
	}
	text, err := run(r.Object.Object, all.Discovery, nil)
	if err != nil {
		return nil, err
	}
	var found map[string]struct {
		Disabled bool `json:"disabled"`
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, err
	}
	var names []string
	for name, one := range found {
		if !slices.ContainsFunc(all.Definitions, func(d action) bool { return d.Name == name }) {
			return nil, fmt.Errorf("the action %s has no script", name)
		}
		if !one.Disabled {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// What a click does: `create` and the new object, or `patch` and the merge patch that Argo CD sends.
func (a *argo) act(r row, name string) (string, string, error) {
	all := a.actions[r.Object.GetKind()]
	i := slices.IndexFunc(all.Definitions, func(d action) bool { return d.Name == name })
	before, err := json.Marshal(&r.Object)
	if err != nil {
		return "", "", err
	}
	text, err := run(r.Object.Object, all.Definitions[i].Script, map[string]any{"comment": "too short"})
	if err != nil {
		return "", "", err
	}
	if text[0] == '[' {
		var made []struct {
			Operation string         `json:"operation"`
			Resource  map[string]any `json:"resource"`
		}
		if err := json.Unmarshal(text, &made); err != nil || len(made) != 1 {
			return "", "", fmt.Errorf("%s makes %d objects: %v", name, len(made), err)
		}
		written, err := json.Marshal(made[0].Resource)
		return made[0].Operation, string(written), err
	}
	var after map[string]any
	if err := json.Unmarshal(text, &after); err != nil {
		return "", "", err
	}
	written, err := json.Marshal(clean(after, r.Object.Object))
	if err != nil {
		return "", "", err
	}
	patch, err := jsonpatch.CreateMergePatch(before, written)
	return "patch", string(patch), err
}

// As cleanReturnedObj of util/lua: Lua does not tell an empty table from an empty list.
func clean(after, before map[string]any) map[string]any {
	for key, old := range before {
		switch value := after[key].(type) {
		case map[string]any:
			if old, ok := old.(map[string]any); ok {
				after[key] = clean(value, old)
			}
		case []any:
			if _, ok := old.(map[string]any); ok && len(value) == 0 {
				after[key] = map[string]any{}
			} else if old, ok := old.([]any); ok {
				for i := range min(len(value), len(old)) {
					inner, ok := value[i].(map[string]any)
					if was, both := old[i].(map[string]any); ok && both {
						value[i] = clean(inner, was)
					}
				}
			}
		}
	}
	return after
}

// Which actions are offered, and that each writes what the admission policies read, and nothing else.
func (a *argo) actionFaults(r row) []string {
	where := r.Object.GetKind() + ", " + r.State
	names, err := a.enabled(r)
	if err != nil {
		return []string{where + ": " + err.Error()}
	}
	var faults []string
	if want := offered(r); !slices.Equal(names, want) {
		faults = append(faults, fmt.Sprintf("%s: the actions %v are offered, expected %v", where, names, want))
	}
	for _, name := range names {
		operation, found, err := a.act(r, name)
		if err != nil {
			return append(faults, where+": "+name+": "+err.Error())
		}
		if want := written(r, name); operation+" "+found != want {
			faults = append(faults, fmt.Sprintf("%s: %s\n  expected %s\n  found    %s %s", where, name, want, operation, found))
		}
	}
	return faults
}

func offered(r row) []string {
	phase, _, _ := unstructured.NestedString(r.Object.Object, "status", "phase")
	suspended, _, _ := unstructured.NestedBool(r.Object.Object, "spec", "suspend")
	cancelled, _, _ := unstructured.NestedBool(r.Object.Object, "spec", "cancel")
	var names []string
	switch r.Object.GetKind() {
	case "Workflow":
		over := phase == "Completed" || phase == "Failed" || phase == "Cancelled"
		if !over && !cancelled {
			names = append(names, "cancel")
		}
		if !over && suspended {
			names = append(names, "resume")
		}
		if phase == "Failed" || phase == "Cancelled" {
			names = append(names, "retry")
		}
		if !over && !suspended && !cancelled {
			names = append(names, "suspend")
		}
	case "Trigger":
		schedule, scheduled, _ := unstructured.NestedMap(r.Object.Object, "spec", "schedule")
		if scheduled && schedule["suspend"] == true {
			names = append(names, "resume")
		} else if scheduled {
			names = append(names, "suspend")
		}
	case "StepRun":
		if phase == "WaitingForAcceptance" {
			names = append(names, "approve", "reject")
		}
		// A question and a spent budget have an answer, and no retry.
		if phase == "WaitingForInput" && !strings.Contains(r.State, "Question") && !strings.Contains(r.State, "BudgetSpent") {
			names = append(names, "retry")
		}
	}
	return names
}

func written(r row, name string) string {
	digest, _, _ := unstructured.NestedString(r.Object.Object, "status", "gate", "outputDigest")
	requests, _, _ := unstructured.NestedSlice(r.Object.Object, "status", "approvalRequests")
	for _, request := range requests {
		gate := request.(map[string]any)["gate"].(map[string]any)
		if gate["state"] == "Waiting" {
			digest = gate["outputDigest"].(string)
		}
	}
	annotations := func(text string) string { return `patch {"metadata":{"annotations":{` + text + `}}}` }
	switch r.Object.GetKind() + " " + name {
	case "Workflow cancel":
		return `patch {"spec":{"cancel":true}}`
	case "Workflow suspend":
		return `patch {"spec":{"suspend":true}}`
	case "Workflow resume":
		return `patch {"spec":{"suspend":false}}`
	case "Trigger suspend":
		return `patch {"spec":{"schedule":{"suspend":true}}}`
	case "Trigger resume":
		return `patch {"spec":{"schedule":{"suspend":false}}}`
	case "StepRun approve":
		return annotations(`"lockstep.dev/decision":"accepted","lockstep.dev/review":"` + digest + `"`)
	case "StepRun reject":
		return annotations(`"lockstep.dev/comment":"too short","lockstep.dev/decision":"rejected","lockstep.dev/review":"` + digest + `"`)
	case "StepRun retry":
		return annotations(`"lockstep.dev/action":"retry","lockstep.dev/comment":"too short"`)
	case "Workflow retry":
		spec := r.Object.DeepCopy().Object["spec"].(map[string]any)
		delete(spec, "suspend")
		delete(spec, "cancel")
		spec["retryOf"] = map[string]any{"name": r.Object.GetName(), "uid": string(r.Object.GetUID())}
		text, err := json.Marshal(map[string]any{
			"apiVersion": r.Object.GetAPIVersion(), "kind": r.Object.GetKind(), "spec": spec,
			"metadata": map[string]any{"name": r.Object.GetName() + "-r2", "namespace": r.Object.GetNamespace()}})
		fatal(err)
		return "create " + string(text)
	}
	return "nothing"
}
