// Judges objects as GitOps tools do, for tests: by the library with which Flux waits (kstatus), and by Lua scripts in a
// machine like the one of Argo CD, which opens few libraries: there is none for strings, and `os` has no more than time.
//
// On stdin a list of questions {object, health, discovery, actions: {name: script}}; without scripts, Argo CD knows
// nothing of the object. On stdout the answers {kstatus, health, offered: [action], patches: {action: merge patch},
// errors: {action: words}}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type question struct {
	Object    unstructured.Unstructured `json:"object"`
	Health    string                    `json:"health"`
	Discovery string                    `json:"discovery"`
	Actions   map[string]string         `json:"actions"`
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type answer struct {
	Kstatus string                     `json:"kstatus"`
	Health  *health                    `json:"health"`
	Offered []string                   `json:"offered"`
	Patches map[string]json.RawMessage `json:"patches"`
	Errors  map[string]string          `json:"errors"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	answers := []answer{}
	for number, each := range questions {
		found, err := judge(each)
		if err != nil {
			return fmt.Errorf("question %d: %w", number, err)
		}
		answers = append(answers, found)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func judge(asked question) (answer, error) {
	found := answer{
		Offered: []string{},
		Patches: map[string]json.RawMessage{},
		Errors:  map[string]string{},
	}
	result, err := status.Compute(&asked.Object)
	if err != nil {
		return found, fmt.Errorf("kstatus: %w", err)
	}
	object, err := json.Marshal(asked.Object.Object)
	if err != nil {
		return found, err
	}
	found.Kstatus = result.Status.String()
	if asked.Health != "" {
		text, err := script(asked.Health, object)
		if err != nil {
			return found, fmt.Errorf("health: %w", err)
		}
		if err := json.Unmarshal(text, &found.Health); err != nil {
			return found, fmt.Errorf("health: %w", err)
		}
	}
	if asked.Discovery != "" {
		text, err := script(asked.Discovery, object)
		if err != nil {
			return found, fmt.Errorf("discovery: %w", err)
		}
		offered := map[string]struct {
			Disabled bool `json:"disabled"`
		}{}
		if err := json.Unmarshal(text, &offered); err != nil {
			return found, fmt.Errorf("discovery: %w", err)
		}
		for name, its := range offered {
			if _, known := asked.Actions[name]; !known {
				return found, fmt.Errorf("discovery names %q, which is no action", name)
			}
			if !its.Disabled {
				found.Offered = append(found.Offered, name)
			}
		}
	}
	for name, text := range asked.Actions {
		if err := act(name, text, object, &found); err != nil {
			found.Errors[name] = err.Error()
		}
	}
	return found, nil
}

// What an action would write: it gives the changed object.
func act(name, text string, object []byte, found *answer) error {
	said, err := script(text, object)
	if err != nil {
		return err
	}
	var before, changed any
	if err := errors.Join(json.Unmarshal(object, &before), json.Unmarshal(said, &changed)); err != nil {
		return err
	}
	after, err := json.Marshal(withEmptyTables(changed, before))
	if err != nil {
		return err
	}
	patch, err := jsonpatch.CreateMergePatch(object, after)
	if err != nil {
		return err
	}
	found.Patches[name] = patch
	return nil
}

// Lua's empty table comes back as an empty list; as Argo CD does, one that was an empty object before is one again.
func withEmptyTables(changed, before any) any {
	switch its := changed.(type) {
	case map[string]any:
		old, _ := before.(map[string]any)
		for key, value := range its {
			its[key] = withEmptyTables(value, old[key])
		}
	case []any:
		if object, was := before.(map[string]any); was && len(its) == 0 {
			return object
		}
		if old, was := before.([]any); was && len(old) == len(its) {
			for index, value := range its {
				its[index] = withEmptyTables(value, old[index])
			}
		}
	}
	return changed
}

// Runs a script with the object as `obj`; what it returns, as JSON.
func script(text string, object []byte) ([]byte, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
		{lua.OsLibName, lua.OpenOs},
	} {
		call := lua.P{Fn: state.NewFunction(library.open), Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return nil, err
		}
	}
	onlyTime(state)
	context, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(context)
	decoded, err := luajson.Decode(state, object)
	if err != nil {
		return nil, err
	}
	state.SetGlobal("obj", decoded)
	if err := state.DoString(text); err != nil {
		return nil, err
	}
	returned := state.Get(-1)
	if returned.Type() != lua.LTTable {
		return nil, fmt.Errorf("returned %s, not a table", returned.Type())
	}
	return luajson.Encode(returned)
}

// Leaves of `os`, which has to be asked for by require("os"), what tells the time.
func onlyTime(state *lua.LState) {
	all := state.GetGlobal(lua.OsLibName).(*lua.LTable)
	left := state.NewTable()
	for _, name := range []string{"time", "date"} {
		left.RawSetString(name, all.RawGetString(name))
	}
	state.SetGlobal(lua.OsLibName, lua.LNil)
	loaded := state.GetField(state.GetGlobal(lua.LoadLibName), "loaded").(*lua.LTable)
	loaded.RawSetString(lua.OsLibName, left)
}
