package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/yaml"
)

// The scripts as argocd-cm has them.
type argo struct {
	healths map[string]string
	actions map[string]actions
}

type actions struct {
	Discovery   string   `json:"discovery.lua"`
	Definitions []action `json:"definitions"`
}

type action struct {
	Name   string `json:"name"`
	Script string `json:"action.lua"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

const (
	healthKey  = "resource.customizations.health.lockstep.dev_"
	actionsKey = "resource.customizations.actions.lockstep.dev_"
)

// The folder of scripts as one ConfigMap, to be merged into that of Argo CD.
func configMap() ([]byte, error) {
	data := map[string]string{}
	folder := filepath.Join(chart, "argocd")
	scripts, err := filepath.Glob(filepath.Join(folder, "*/health.lua"))
	if err != nil {
		return nil, err
	}
	for _, script := range scripts {
		kind := filepath.Base(filepath.Dir(script))
		text, err := os.ReadFile(script)
		if err != nil {
			return nil, err
		}
		data[healthKey+kind] = string(text)
		discovery, err := os.ReadFile(filepath.Join(folder, kind, "actions/discovery.lua"))
		if os.IsNotExist(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		all := actions{Discovery: string(discovery)}
		files, err := filepath.Glob(filepath.Join(folder, kind, "actions/*/action.lua"))
		if err != nil {
			return nil, err
		}
		sort.Strings(files)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			all.Definitions = append(all.Definitions, action{Name: filepath.Base(filepath.Dir(file)), Script: string(text)})
		}
		written, err := yaml.Marshal(all)
		if err != nil {
			return nil, err
		}
		data[actionsKey+kind] = string(written)
	}
	written, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "data": data,
		"metadata": map[string]any{"name": "argocd-cm", "labels": map[string]string{
			"app.kubernetes.io/name": "argocd-cm", "app.kubernetes.io/part-of": "argocd"}}})
	note := "# Health and actions of Lockstep's kinds for Argo CD; written by hack/gitops/check --update from the scripts in this folder.\n"
	return append([]byte(note), written...), err
}

func newArgo(config []byte) (*argo, error) {
	var parsed struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(config, &parsed); err != nil {
		return nil, err
	}
	found := &argo{healths: map[string]string{}, actions: map[string]actions{}}
	for key, text := range parsed.Data {
		if kind, ok := strings.CutPrefix(key, healthKey); ok {
			found.healths[kind] = text
		} else if kind, ok := strings.CutPrefix(key, actionsKey); ok {
			var all actions
			if err := yaml.UnmarshalStrict([]byte(text), &all); err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			found.actions[kind] = all
		}
	}
	return found, nil
}

// A script over an object, in the machine that util/lua of argo-cd v3.2.1 sets up for scripts of argocd-cm: the same interpreter, no
// library but package, base and table (and its safe os, which these scripts do without), a second of time.
// hack/gitops/argocd runs that package itself over the same objects; `make test-gitops` compares the answers.
func run(object map[string]any, script string, parameters map[string]any) ([]byte, error) {
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), NRet: 0, Protect: true}, lua.LString(name)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l.SetContext(ctx)
	l.SetGlobal("actionParams", luajson.DecodeValue(l, parameters))
	l.SetGlobal("obj", decode(l, object))
	if err := l.DoString(script); err != nil {
		return nil, err
	}
	result := l.Get(-1)
	if result.Type() != lua.LTTable {
		return nil, fmt.Errorf("a script returned %s, not a table", result.Type())
	}
	return luajson.Encode(result)
}

// As decodeValue of util/lua: integers are numbers, too.
func decode(l *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case int64:
		return lua.LNumber(value)
	case []any:
		list := l.CreateTable(len(value), 0)
		for _, item := range value {
			list.Append(decode(l, item))
		}
		return list
	case map[string]any:
		table := l.CreateTable(0, len(value))
		for key, item := range value {
			table.RawSetH(lua.LString(key), decode(l, item))
		}
		return table
	default:
		return luajson.DecodeValue(l, value)
	}
}

func (a *argo) health(object *unstructured.Unstructured) (health, error) {
	// GetResourceHealth of gitops-engine says so before it asks any script.
	if object.GetDeletionTimestamp() != nil {
		return health{Status: "Progressing", Message: "Pending deletion"}, nil
	}
	script, ok := a.healths[object.GetKind()]
	if !ok {
		return health{}, fmt.Errorf("no health script for %s", object.GetKind())
	}
	text, err := run(object.Object, script, nil)
	if err != nil {
		return health{}, err
	}
	var found health
	return found, json.Unmarshal(text, &found)
}

// What the engine answers, a line for each object and action: to be compared with the answers of util/lua itself.
func printArgo() error {
	rows, err := read()
	if err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(chart, "argocd/argocd-cm.yaml"))
	if err != nil {
		return err
	}
	argo, err := newArgo(config)
	if err != nil {
		return err
	}
	for _, r := range rows {
		kind := r.Object.GetKind()
		found, err := argo.health(&r.Object)
		if err != nil {
			return err
		}
		fmt.Printf("%s | %s | %s | %s\n", kind, r.State, found.Status, found.Message)
		enabled, err := argo.enabled(r)
		if err != nil {
			return err
		}
		for _, name := range enabled {
			_, patch, err := argo.act(r, name)
			if err != nil {
				return err
			}
			fmt.Printf("%s | %s | %s | %s\n", kind, r.State, name, patch)
		}
	}
	return nil
}
