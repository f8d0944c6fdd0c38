// Package modules holds no code, only the test that keeps the modules' pages
// true.
package modules

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
)

// modules lists ours among everything that Caddy knows.
func modules(t *testing.T) []caddy.ModuleInfo {
	t.Helper()
	var ours []caddy.ModuleInfo
	for _, id := range caddy.Modules() {
		m, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		typ := reflect.TypeOf(m.New())
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if strings.HasPrefix(typ.PkgPath(), "github.com/nowconnect/nowconnect/") {
			ours = append(ours, m)
		}
	}
	if len(ours) < 8 {
		t.Fatalf("only %d modules found", len(ours))
	}
	return ours
}

func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fields collects the JSON names of a type and of the types of ours below it.
func fields(typ reflect.Type) (names []string) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return fields(typ.Elem())
	case reflect.Struct:
		for f := range typ.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" {
				names = append(append(names, name), fields(f.Type)...)
			}
		}
	}
	return names
}

func TestEveryModuleHasAPage(t *testing.T) {
	index := page(t, "README.md")
	var headings []string
	for line := range strings.Lines(page(t, "template.txt")) {
		if strings.HasPrefix(line, "##") {
			headings = append(headings, strings.TrimSpace(line))
		}
	}
	for _, m := range modules(t) {
		id := string(m.ID)
		text := page(t, id+".md")
		if !strings.HasPrefix(text, "# "+id+"\n") {
			t.Errorf("%s: the page's title is another", id)
		}
		if !strings.Contains(index, "[`"+id+"`]("+id+".md)") {
			t.Errorf("README.md does not list %s", id)
		}
		got := regexp.MustCompile(`(?m)^##.*$`).FindAllString(text, -1)
		if !slices.Equal(got, headings) {
			t.Errorf("%s: headings %q, the template has %q", id, got, headings)
		}
		for _, f := range fields(reflect.TypeOf(m.New())) {
			if !strings.Contains(text, `"`+f+`"`) {
				t.Errorf("%s: the page does not show the field %s", id, f)
			}
		}
	}
}

// Each Caddyfile is followed by what it adapts to.
func TestCaddyfilesAndJSONSayTheSame(t *testing.T) {
	pair := regexp.MustCompile("(?s)```caddyfile\n(.*?)```.*?```json\n(.*?)```")
	for _, m := range modules(t) {
		id := string(m.ID)
		found := pair.FindStringSubmatch(page(t, id+".md"))
		if found == nil {
			if id != "admin.api.nowconnect" { // has no configuration
				t.Errorf("%s: no Caddyfile with its JSON", id)
			}
			continue
		}
		out, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(found[1]), nil)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, out, "", "\t"); err != nil {
			t.Fatal(err)
		}
		if got := pretty.String() + "\n"; got != found[2] {
			t.Errorf("%s: the Caddyfile adapts to\n%s", id, got)
		}
	}
}
