package docs

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// block is a fenced block of a page.
type block struct{ page, text string }

var fence = regexp.MustCompile("(?ms)^( *)```([a-z]+)\n(.*?)^ *```")

// blocks returns the fenced blocks in a language, over all pages.
func blocks(t *testing.T, language string) []block {
	t.Helper()
	var out []block
	for _, page := range allPages(t) {
		for _, m := range fence.FindAllStringSubmatch(readPage(t, page), -1) {
			if m[2] != language {
				continue
			}
			var text strings.Builder
			for line := range strings.Lines(m[3]) {
				text.WriteString(strings.TrimPrefix(line, m[1]))
			}
			out = append(out, block{page, text.String()})
		}
	}
	if len(out) == 0 {
		t.Fatalf("no page has a %s block", language)
	}
	return out
}

func allPages(t *testing.T) []string {
	t.Helper()
	pages := []string{"../README.md"}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil || len(pages) < 5 {
		t.Fatalf("only %q found: %v", pages, err)
	}
	return pages
}

// TestCaddyfiles loads every Caddyfile of the pages as far as Caddy goes
// without listening. Secrets and authorities come from files that the test makes.
func TestCaddyfiles(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	ca := testpeer.NewCA(t).File
	authority := regexp.MustCompile(`/etc/[a-z-]+/[a-z-]*ca\.pem`)
	secret := regexp.MustCompile(`\{file\.([^}]*)\}`)
	for _, b := range blocks(t, "caddyfile") {
		text := secret.ReplaceAllStringFunc(b.text, func(s string) string {
			f := filepath.Join(dir, filepath.Base(secret.FindStringSubmatch(s)[1]))
			if err := os.WriteFile(f, []byte("a-secret-of-enough-length-"+filepath.Base(f)), 0o600); err != nil {
				t.Fatal(err)
			}
			return "{file." + f + "}"
		})
		text = authority.ReplaceAllString(text, ca)
		adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": b.page})
		if err != nil {
			t.Errorf("%s: %v\n%s", b.page, err, b.text)
			continue
		}
		for _, w := range warnings {
			t.Errorf("%s: %v\n%s", b.page, w, b.text)
		}
		var cfg *caddy.Config
		if err := json.Unmarshal(adapted, &cfg); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(cfg); err != nil {
			t.Errorf("%s: %v\n%s", b.page, err, b.text)
		}
	}
}

// TestAgentFiles loads every agent configuration of the pages. A fragment gets
// the rest of a file around it.
func TestAgentFiles(t *testing.T) {
	rest := map[string]string{
		"tunnel:":  "tunnel: {url: https://hub.example.com, agent_id: a, auth: {token_file: t}}\n",
		"targets:": "targets: {addomain: 192.0.2.1:389}\n",
	}
	tried := 0
	for _, b := range blocks(t, "yaml") {
		first, _, _ := strings.Cut(b.text, "\n")
		if !slices.Contains([]string{"tunnel:", "targets:", "proxy:", "limits:", "health:"}, first) {
			continue
		}
		text := b.text
		for key, more := range rest {
			if !strings.Contains("\n"+text, "\n"+key) {
				text += more
			}
		}
		file := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.Load(file, nil, nil); err != nil {
			t.Errorf("%s: %v\n%s", b.page, err, text)
		}
		tried++
	}
	if tried < 3 {
		t.Errorf("only %d agent configurations found", tried)
	}
}

// TestAlerts checks that the rules ask for metrics that exist, and that
// Prometheus accepts them.
func TestAlerts(t *testing.T) {
	known := map[string]bool{}
	metrics := readPage(t, "reference/metrics.md") // itself held to the collectors
	for _, name := range []string{"hub", "agent", "others"} {
		for _, row := range table(t, metrics, name) {
			n := strings.Trim(row[0], "`")
			known[n] = true
			if row[1] == "histogram" {
				known[n+"_bucket"], known[n+"_sum"], known[n+"_count"] = true, true, true
			}
		}
	}
	for _, n := range regexp.MustCompile(`\bnowconnect_[a-z0-9_]+`).FindAllString(readPage(t, "how-to/operate.md"), -1) {
		if !known[n] && n != "nowconnect_metrics" { // the directive
			t.Errorf("operate.md asks for %s, which does not exist", n)
		}
	}
	rules := ""
	for _, b := range blocks(t, "yaml") {
		if strings.HasPrefix(b.text, "groups:") {
			rules = b.text
		}
	}
	if strings.Count(rules, "- alert:") < 8 {
		t.Fatal("no rules found")
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is not installed: run make deps, or install prometheus")
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// TestPath checks that every file and function that path.md names exists.
func TestPath(t *testing.T) {
	files, names := map[string]bool{}, map[string]bool{}
	for _, root := range []string{"../cmd", "../internal", "../modules"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(path, "../")], files[filepath.Base(path)] = true, true
			if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			return collectNames(path, names)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// In backticks, but not ours.
	other := []string{"connect()", "caddy.UsagePool", "tls", "fin", "testpeer"}
	found := 0
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(readPage(t, "path.md"), -1) {
		word := strings.TrimSuffix(m[1], "/")
		if slices.Contains(other, word) || strings.Contains(word, "_") || strings.HasPrefix(word, "/") || strings.HasPrefix(word, "cmd/") {
			continue
		}
		found++
		if strings.Contains(word, "/") || strings.HasSuffix(word, ".go") || word == "internal" {
			if !files[word] {
				t.Errorf("path.md names the file %s, which does not exist", word)
			}
			continue
		}
		if !names[word] {
			t.Errorf("path.md names %s, which does not exist", word)
		}
	}
	if found < 50 {
		t.Errorf("only %d names found in path.md", found)
	}
}

// collectNames notes a file's functions, methods and types: name,
// Type.name, and package.Name.
func collectNames(path string, names map[string]bool) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	note := func(name string) {
		names[name] = true
		names[f.Name.Name+"."+name] = true
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			note(d.Name.Name)
			if d.Recv != nil {
				typ := d.Recv.List[0].Type
				if p, ok := typ.(*ast.StarExpr); ok {
					typ = p.X
				}
				if id, ok := typ.(*ast.Ident); ok {
					names[id.Name+"."+d.Name.Name] = true
				}
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if ts, ok := s.(*ast.TypeSpec); ok {
					note(ts.Name.Name)
				}
			}
		}
	}
	return nil
}
