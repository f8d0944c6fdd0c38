package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that security.md names exists, and every threat names one.
func TestSecurityNamesTests(t *testing.T) {
	exist := testNames(t)
	page := readPage(t, "security.md")
	name := regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)`")
	named := 0
	for _, m := range name.FindAllStringSubmatch(page, -1) {
		named++
		if !exist[m[1]] {
			t.Errorf("security.md names %s, which does not exist", m[1])
		}
	}
	if named < 100 {
		t.Errorf("only %d tests found", named)
	}
	rows := 0
	_, threats, _ := strings.Cut(page, "\n## Threats\n")
	threats, _, _ = strings.Cut(threats, "\n## ")
	for line := range strings.Lines(threats) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasSuffix(line, "| test |\n") {
			continue
		}
		rows++
		if !name.MatchString(line) {
			t.Errorf("a threat without a test: %s", line)
		}
	}
	if rows < 30 {
		t.Errorf("only %d threats found", rows)
	}
}

// testNames collects the module's tests and fuzz targets.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".cache" || d.Name() == ".git" || d.Name() == "testdata"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
