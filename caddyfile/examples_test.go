package caddyfile

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// The examples are formatted, adapt without a warning, and load as far as Caddy
// goes without listening. Their files are the test's.
func TestExamples(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("PREMISE_2_TOKEN", "a-secret-of-enough-length-for-premise-2")
	for _, name := range []string{"premise-1.token", "premise-2.token", "ldap.password"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("a-secret-of-enough-length-"+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "clients-ca.crt"), testpeer.NewCA(t).PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../examples/caddy/*.Caddyfile")
	if err != nil || len(files) < 4 {
		t.Fatalf("only %q found: %v", files, err)
	}
	places := regexp.MustCompile(`/etc/nowconnect|/var/log/nowconnect`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if f := caddyfile.Format(text); !bytes.Equal(f, text) {
				t.Errorf("caddy fmt would change it to:\n%s", f)
			}
			adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt(places.ReplaceAll(text, []byte(dir)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) > 0 {
				t.Error(warnings)
			}
			var cfg *caddy.Config
			if err := json.Unmarshal(adapted, &cfg); err != nil {
				t.Fatal(err)
			}
			if err := caddy.Validate(cfg); err != nil {
				t.Error(err)
			}
		})
	}
	readme, err := os.ReadFile("../examples/caddy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.Contains(string(readme), "("+filepath.Base(file)+")") {
			t.Errorf("the README does not list %s", file)
		}
	}
}
