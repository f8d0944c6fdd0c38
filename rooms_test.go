package nowconnect_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nowconnect/nowconnect"

// house lists the rooms from the ground up. A room imports rooms of lower
// floors only; rooms on one floor do not know each other. A name covers what
// is below it too, the longest one counts.
var house = [][]string{
	{"internal/wire", "internal/authz", "internal/demodir", "internal/loglimit", "internal/ldapgroup", "internal/groupapi"},
	{"internal/tunnel", "internal/obs", "internal/rules", "internal/authzen"},
	{"internal/hub", "internal/agent"},
	{"modules/nowconnect"},
	{"modules"},
	{"caddyfile"},
	{"."},
	{"cmd", "docs"},
}

// testOnly are the rooms that tests import and nothing that ships does. They
// may know every floor.
var testOnly = []string{"internal/testpeer", "modules/internal/hubtest", "e2e"}

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath string
	Imports    []string // of files that are not tests
	Deps       []string // the same, and what they import
}

// room is the package's directory.
func (p goPackage) room() string { return roomOf(p.ImportPath) }

func roomOf(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func ours(importPath string) bool {
	return importPath == module || strings.HasPrefix(importPath, module+"/")
}

func within(room, name string) bool {
	return room == name || name != "." && strings.HasPrefix(room, name+"/")
}

func isTestOnly(room string) bool {
	return slices.ContainsFunc(testOnly, func(n string) bool { return within(room, n) })
}

// floor finds the room's floor; ok is false when it has none.
func floor(room string) (n int, ok bool) {
	longest := ""
	for i, names := range house {
		for _, name := range names {
			if within(room, name) && len(name) > len(longest) {
				n, ok, longest = i, true, name
			}
		}
	}
	return n, ok
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Deps", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if len(ps) < 10 {
		t.Fatalf("go list knows only %d packages", len(ps))
	}
	return ps
}

// misplaced says what is wrong with p importing dep, if anything.
func misplaced(p goPackage, dep string) string {
	if !ours(dep) || isTestOnly(p.room()) {
		return ""
	}
	if isTestOnly(roomOf(dep)) {
		return "is for tests only"
	}
	here, ok := floor(p.room())
	if !ok {
		return "is imported by a room that has no floor: give it one in rooms_test.go"
	}
	there, ok := floor(roomOf(dep))
	if !ok {
		return "has no floor: give it one in rooms_test.go"
	}
	if there >= here {
		return "is not below"
	}
	return ""
}

func TestImportsPointDownward(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := floor(p.room()); !ok && !isTestOnly(p.room()) {
			t.Errorf("%s has no floor: give it one in rooms_test.go", p.room())
		}
		for _, dep := range p.Imports {
			if wrong := misplaced(p, dep); wrong != "" {
				t.Errorf("%s imports %s, which %s", p.room(), roomOf(dep), wrong)
			}
		}
	}
}

// The rule must be one that can be broken.
func TestImportRuleFires(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		wrong    bool
	}{
		{"internal/hub", "internal/tunnel", false},
		{"internal/tunnel", "internal/hub", true},
		{"internal/hub", "internal/agent", true},
		{"internal/obs", "internal/tunnel", true},
		{"modules/l4nowconnect", "modules/nowconnect", false},
		{"modules/nowconnect", "modules/l4nowconnect", true},
		{"modules/health", "modules/metrics", true},
		{"modules/pdp/rules", "internal/authz", false},
		{"internal/agent", "internal/testpeer", true},
		{"modules/internal/hubtest", "internal/testpeer", false},
		{"cmd/nowconnect", ".", false},
		{"caddyfile", ".", true},
		{"attic", "internal/wire", true},
	} {
		p := goPackage{ImportPath: module + "/" + tt.from}
		dep := strings.TrimSuffix(module+"/"+tt.to, "/.")
		if wrong := misplaced(p, dep); (wrong != "") != tt.wrong {
			t.Errorf("%s importing %s: %q", tt.from, tt.to, wrong)
		}
	}
}

func TestEngineAndAgentKnowNoCaddy(t *testing.T) {
	for _, p := range packages(t) {
		engine := within(p.room(), "internal") && !within(p.room(), "internal/testpeer")
		if !engine && !within(p.room(), "cmd/nowconnect-agent") {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "github.com/caddyserver/") || strings.HasPrefix(dep, "github.com/mholt/caddy-l4") {
				t.Errorf("%s depends on %s", p.room(), dep)
			}
		}
	}
}

func TestWireImportsOnlyTheStandardLibrary(t *testing.T) {
	found := false
	for _, p := range packages(t) {
		if p.room() != "internal/wire" {
			continue
		}
		found = true
		for _, dep := range p.Imports {
			if first, _, _ := strings.Cut(dep, "/"); strings.Contains(first, ".") {
				t.Errorf("internal/wire imports %s", dep)
			}
		}
	}
	if !found {
		t.Error("there is no internal/wire")
	}
}

// Every package says what it owns, in one place. The rooms that others build
// on also say what never changes.
func TestPackageDocs(t *testing.T) {
	docs := make(map[string][]string)  // by directory
	names := make(map[string][]string) // package names by directory
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		names[dir] = append(names[dir], f.Name.Name)
		if f.Doc != nil {
			docs[dir] = append(docs[dir], f.Doc.Text())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, name := range names {
		doc := docs[dir]
		if len(doc) != 1 {
			t.Errorf("%s has %d package docs, want one", dir, len(doc))
			continue
		}
		opening, text := "Package "+name[0]+" ", doc[0]
		if name[0] == "main" {
			opening, text = filepath.Base(dir)+" ", strings.TrimPrefix(text, "Command ")
		}
		if !strings.HasPrefix(text, opening) {
			t.Errorf("%s: the package doc opens with %.40q, want %q", dir, doc[0], opening)
		}
		if within(dir, "internal") && !strings.Contains(doc[0], "Invariants:") {
			t.Errorf("%s: the package doc lists no invariants", dir)
		}
	}
}
