package caddyfile

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddytest"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/nowconnect/nowconnect/modules/agentauth/jwt"
	_ "github.com/nowconnect/nowconnect/modules/agentauth/mtls"
	_ "github.com/nowconnect/nowconnect/modules/agentauth/token"
	_ "github.com/nowconnect/nowconnect/modules/agentendpoint"
	_ "github.com/nowconnect/nowconnect/modules/health"
	_ "github.com/nowconnect/nowconnect/modules/l4nowconnect"
	"github.com/nowconnect/nowconnect/modules/ldapadmin"
	_ "github.com/nowconnect/nowconnect/modules/linklistener"
	_ "github.com/nowconnect/nowconnect/modules/metrics"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
	_ "github.com/nowconnect/nowconnect/modules/pdp/allowall"
	_ "github.com/nowconnect/nowconnect/modules/pdp/authzen"
	_ "github.com/nowconnect/nowconnect/modules/pdp/rules"
)

// go test ./caddyfile -update rewrites the second half of the golden files.
// Read the difference before committing it.
var update = flag.Bool("update", false, "rewrite golden files")

const separator = "----------"

// golden reads the files of a folder: a Caddyfile, a line of ten dashes, and
// what comes of it.
func golden(t *testing.T, folder string, check func(t *testing.T, name, input, want string) (got string)) {
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.caddyfiletest"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, found := strings.Cut(string(b), separator+"\n")
			if !found && !*update {
				t.Fatal("no line of ten dashes")
			}
			if f := caddyfile.Format([]byte(input)); !bytes.Equal(f, []byte(input)) {
				t.Errorf("caddy fmt would change it to:\n%s", f)
			}
			got := check(t, file, input, strings.TrimSuffix(want, "\n"))
			if *update {
				if err := os.WriteFile(file, []byte(input+separator+"\n"+got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func adapt(input string) (string, error) {
	out, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), nil)
	if err != nil {
		return "", err
	}
	var pretty bytes.Buffer
	err = json.Indent(&pretty, out, "", "\t")
	return pretty.String(), err
}

func TestAdapt(t *testing.T) {
	golden(t, "adapt", func(t *testing.T, name, input, want string) string {
		if !*update && !caddytest.CompareAdapt(t, name, input, "caddyfile", want) {
			t.Error("adapts to something else")
		}
		got, err := adapt(input)
		if err != nil {
			t.Error(err)
		}
		return got
	})
}

func TestAdaptErrors(t *testing.T) {
	golden(t, "errors", func(t *testing.T, _, input, want string) string {
		out, err := adapt(input)
		if err == nil {
			t.Fatalf("adapts to %s", out)
		}
		if got := err.Error(); got != want && !*update {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if !regexp.MustCompile(`Caddyfile:\d+`).MatchString(err.Error()) {
			t.Errorf("names no line: %v", err)
		}
		return err.Error()
	})
}

// Every option has a golden file that shows it at work, and its JSON.
func TestEveryOptionHasAGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/adapt/*.caddyfiletest")
	var inputs []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		input, _, _ := strings.Cut(string(b), separator)
		inputs = append(inputs, input)
	}
	all := strings.Join(inputs, "\n")
	app, audit := appParser(new(nowconnect.App)), auditParser(new(nowconnect.Audit))
	var options []string
	for _, m := range []map[string]option{app.options, app.repeatable, connectorParser(new(nowconnect.Connector)).options, audit.options} {
		options = slices.AppendSeq(options, maps.Keys(m))
	}
	options = append(options, ldapadmin.Options()...)
	options = append(options, "agent", "native_histograms", "max_handshakes", "nowconnect_agent", "nowconnect_health", "nowconnect_metrics")
	for _, o := range options {
		if !regexp.MustCompile(`(?m)^\s*` + o + `\b`).MatchString(all) {
			t.Errorf("no golden uses the option %s", o)
		}
	}
}

// Every field of every module, guests included, is in the JSON of some golden
// file: an option of the Caddyfile that nobody has tried, or that sets nothing,
// shows here.
func TestEveryFieldHasAGolden(t *testing.T) {
	files, _ := filepath.Glob("testdata/adapt/*.caddyfiletest")
	var outputs strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, output, _ := strings.Cut(string(b), separator)
		outputs.WriteString(output)
	}
	fields := make(map[string]string) // whose it is, by name
	seen := make(map[reflect.Type]bool)
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
		case reflect.Struct:
			if seen[t] || !strings.HasPrefix(t.PkgPath(), "github.com/nowconnect/nowconnect/") {
				return
			}
			seen[t] = true
			for f := range t.Fields() {
				if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" && name != "-" {
					fields[name] = t.String()
					walk(f.Type)
				}
			}
		}
	}
	for _, m := range caddy.Modules() {
		info, err := caddy.GetModule(m)
		if err != nil {
			t.Fatal(err)
		}
		walk(reflect.TypeOf(info.New()))
	}
	if len(fields) < 80 {
		t.Errorf("only %d fields found", len(fields))
	}
	for name, owner := range fields {
		if !strings.Contains(outputs.String(), fmt.Sprintf("%q:", name)) {
			t.Errorf("no golden has the field %s of %s", name, owner)
		}
	}
}

// Every option that may stand once is refused when it stands twice.
func TestEveryOptionIsRefusedTwice(t *testing.T) {
	words := map[string]string{
		"hub_id": "h", "grace": "1s", "audit": "", "max_sessions": "1", "max_links_per_agent": "1", "agent_memory": "1MiB", "congestion_control": "auto",
		"ping_interval": "1s", "ping_timeout": "1s", "handshake_timeout": "1s", "drain_timeout": "1s", "auth_grace": "1s", "metrics": "",
		"agents": "a", "balance": "first", "protocol": "tcp", "max_sessions_per_client": "1", "allow_cidrs": "::/0",
		"queue_depth_per_cid": "1", "connect_timeout": "1s", "idle_timeout": "off",
	}
	check := func(format, option string) {
		line := strings.TrimSpace(option + " " + words[option])
		_, err := adapt(strings.ReplaceAll(format, "%", line+"\n"+line))
		if err == nil || !strings.Contains(err.Error(), option+" twice in the same block, at Caddyfile:") {
			t.Errorf("%s: %v", option, err)
		}
		_, err = adapt(strings.ReplaceAll(format, "%", line+" {\nfoo\n}\n"))
		if err == nil || !regexp.MustCompile(`Caddyfile:\d+`).MatchString(err.Error()) {
			t.Errorf("%s with a block: %v", option, err)
		}
		if line == option {
			return
		}
		_, err = adapt(strings.ReplaceAll(format, "%", option))
		if err == nil || !regexp.MustCompile(`Caddyfile:\d+`).MatchString(err.Error()) {
			t.Errorf("%s without a value: %v", option, err)
		}
	}
	for o := range appParser(new(nowconnect.App)).options {
		check("{\nnowconnect {\n%\n}\n}", o)
	}
	words["sample_allows"] = "0.5"
	for o := range auditParser(new(nowconnect.Audit)).options {
		check("{\nnowconnect {\naudit {\n%\n}\n}\n}", o)
	}
	for o := range connectorParser(new(nowconnect.Connector)).options {
		check("{\nnowconnect {\nconnector c {\n%\n}\n}\n}", o)
	}
}
