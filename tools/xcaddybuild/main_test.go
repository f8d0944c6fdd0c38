package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadsTheRepositorysManifest(t *testing.T) {
	m, err := read("../../xcaddy.json")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(root, "bin", "caddy"); m.Build.Output != want {
		t.Errorf("output %s, want %s", m.Build.Output, want)
	}
	if len(m.Build.Replacements) != 1 || m.Build.Replacements[0].New.String() != root {
		t.Errorf("replacements %v, want our module to be %s", m.Build.Replacements, root)
	}
}

func TestReadRefuses(t *testing.T) {
	const good = `{"caddy":{"module_ids":["x"]},"build":{"caddy_version":"v2.0.0","output":"o","plugins":[{"module_path":"a","version":"v1.0.0"}]}}`
	for name, tt := range map[string]struct{ replace, with, want string }{
		"unknown key":         {`"output"`, `"out":1,"output"`, "unknown field"},
		"no output":           {`"output":"o"`, `"output":""`, "output"},
		"no caddy version":    {`"v2.0.0"`, `""`, "caddy_version"},
		"floating plugin":     {`,"version":"v1.0.0"`, ``, "a has no version"},
		"promises no modules": {`["x"]`, `[]`, "module_ids"},
		"unchanged":           {``, ``, ""},
	} {
		path := filepath.Join(t.TempDir(), "xcaddy.json")
		if err := os.WriteFile(path, []byte(strings.Replace(good, tt.replace, tt.with, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := read(path)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}

func TestCompare(t *testing.T) {
	var m manifest
	m.Caddy.GoModule = "example.com/ours"
	m.Caddy.ModuleIDs = []string{"nowconnect", "http.handlers.nowconnect_agent"}
	const both = "http.handlers.nowconnect_agent example.com/ours => /src\nnowconnect example.com/ours => /src\n"
	for name, tt := range map[string]struct{ listed, want string }{
		"all there":        {both + "tls github.com/caddyserver/caddy/v2/modules/caddytls\n\n  Standard modules: 1\n", ""},
		"one missing":      {"nowconnect example.com/ours v1.0.0\n", "does not list http.handlers.nowconnect_agent"},
		"one too many":     {both + "nowconnect.extra example.com/ours/x\n", "lists nowconnect.extra"},
		"somebody else's":  {both + "other example.com/oursnot/x\n", ""},
		"name taken by it": {strings.ReplaceAll(both, "example.com/ours", "example.com/theirs"), "does not list nowconnect"},
	} {
		_, err := m.compare([]byte(tt.listed))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}
