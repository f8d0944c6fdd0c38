package nowconnect_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// xcaddyManifest is the part of xcaddy.json that repeats what stands elsewhere.
type xcaddyManifest struct {
	Caddy struct {
		GoModule  string   `json:"go_module"`
		ModuleIDs []string `json:"module_ids"`
	} `json:"caddy"`
	Compatibility struct {
		Caddy string `json:"caddy"`
		Go    string `json:"go"`
	} `json:"compatibility"`
	Build struct {
		CaddyVersion string `json:"caddy_version"`
		Plugins      []struct {
			ModulePath string `json:"module_path"`
			Version    string `json:"version"`
		} `json:"plugins"`
	} `json:"build"`
}

func manifest(t *testing.T) xcaddyManifest {
	t.Helper()
	raw, err := os.ReadFile("xcaddy.json")
	if err != nil {
		t.Fatal(err)
	}
	var m xcaddyManifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// required gives the versions that a go.mod requires, and its Go version.
func required(t *testing.T, file string) (versions map[string]string, goVersion string) {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json", file).Output()
	if err != nil {
		t.Fatalf("read %s: %v", file, err)
	}
	var m struct {
		Go      string
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	versions = make(map[string]string)
	for _, r := range m.Require {
		versions[r.Path] = r.Version
	}
	return versions, m.Go
}

// The build that people get by xcaddy is the one that is tested here.
func TestXcaddyManifestMatchesGoMod(t *testing.T) {
	m := manifest(t)
	versions, goVersion := required(t, "go.mod")
	const caddyModule = "github.com/caddyserver/caddy/v2"
	if want := versions[caddyModule]; want == "" || m.Build.CaddyVersion != want || m.Compatibility.Caddy != want {
		t.Errorf("caddy_version %s, compatibility.caddy %s; go.mod has %s", m.Build.CaddyVersion, m.Compatibility.Caddy, want)
	}
	if m.Compatibility.Go != strings.Join(strings.Split(goVersion, ".")[:2], ".") {
		t.Errorf("compatibility.go %s; go.mod has %s", m.Compatibility.Go, goVersion)
	}
	var plugins []string
	for _, p := range m.Build.Plugins {
		plugins = append(plugins, p.ModulePath)
		if p.ModulePath == module {
			continue // a placeholder: it is replaced by the work tree
		}
		if want := versions[p.ModulePath]; p.Version != want {
			t.Errorf("plugin %s %s; go.mod has %q", p.ModulePath, p.Version, want)
		}
	}
	if want := []string{module, "github.com/mholt/caddy-l4"}; !slices.Equal(plugins, want) || m.Caddy.GoModule != module {
		t.Errorf("go_module %s, plugins %v, want %v", m.Caddy.GoModule, plugins, want)
	}
}

// What the manifest promises is what imports.go brings.
func TestXcaddyManifestNamesOurModules(t *testing.T) {
	var got []string
	for _, id := range caddy.Modules() {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		typ := reflect.TypeOf(info.New())
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if ours(typ.PkgPath()) {
			got = append(got, id)
		}
	}
	slices.Sort(got)
	want := manifest(t).Caddy.ModuleIDs
	if !slices.Equal(got, want) {
		t.Errorf("registered: %v\nin xcaddy.json, in this order: %v", got, want)
	}
}

func TestToolsArePinned(t *testing.T) {
	versions, _ := required(t, "tools/go.mod")
	for path, want := range map[string]string{
		"github.com/caddyserver/xcaddy":        "v0.4.5",
		"github.com/golangci/golangci-lint/v2": "v2.15.0",
	} {
		if versions[path] != want {
			t.Errorf("%s is at %q, want %s", path, versions[path], want)
		}
	}
	// What tests run as a PDP, in a module of its own.
	opa, _ := required(t, "tools/opa/go.mod")
	if v := opa["github.com/open-policy-agent/opa"]; v != "v1.22.2" {
		t.Errorf("OPA is at %q", v)
	}
}

func TestAgentBinaryIsSmall(t *testing.T) {
	info, err := os.Stat(testpeer.BuildBinary(t, "./cmd/nowconnect-agent", false))
	if err != nil {
		t.Fatal(err)
	}
	const limit = 15_000_000
	if info.Size() > limit {
		t.Errorf("the stripped agent has %d bytes, more than %d", info.Size(), limit)
	}
}
