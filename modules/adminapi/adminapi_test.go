package adminapi_test

import (
	"io"
	"os"
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/spf13/cobra"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/adminapi"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

const asJSON = "application/json"

func TestAgentsAndSessions(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")

	_, body := h.AdminDo("GET", "/nowconnect/agents", "", "")
	a := hubtest.JSON[struct {
		Draining   bool
		Connectors []hub.ConnectorStatus
		Agents     []hub.AgentStatus
	}](t, body)
	if a.Draining || len(a.Connectors) != 1 || !a.Connectors[0].Ready || a.Connectors[0].Sessions != 1 {
		t.Errorf("connectors: %s", body)
	}
	if len(a.Agents) != 1 || a.Agents[0].ID != "premise-1" || len(a.Agents[0].Links) != 1 || a.Agents[0].Links[0].Software != "hubtest" {
		t.Errorf("agents: %s", body)
	}
	for _, path := range []string{"/nowconnect/sessions", "/nowconnect/sessions?connector=echo"} {
		_, body := h.AdminDo("GET", path, "", "")
		s := hubtest.JSON[[]hub.SessionStatus](t, body)
		if len(s) != 1 || s[0].Client != c.LocalAddr().String() || s[0].Agent != "premise-1" || s[0].BytesC2A != 5 {
			t.Errorf("%s: %s", path, body)
		}
	}
	if status, body := h.AdminDo("GET", "/nowconnect/sessions?connector=nowhere", "", ""); status != 404 || !strings.Contains(body, "nowhere") {
		t.Errorf("unknown connector: %d %s", status, body)
	}
}

func TestDrainWantsToBeMeant(t *testing.T) {
	h := hubtest.Start(t)
	for name, c := range map[string]struct {
		method, contentType, body string
		status                    int
	}{
		"get":              {"GET", "", "", 405},
		"no content type":  {"POST", "", "{}", 415},
		"a form":           {"POST", "application/x-www-form-urlencoded", "{}", 415},
		"text":             {"POST", "text/plain", "{}", 415},
		"no body":          {"POST", asJSON, "", 400},
		"unknown field":    {"POST", asJSON, `{"timout": "1s"}`, 400},
		"bad duration":     {"POST", asJSON, `{"timeout": "soon"}`, 400},
		"negative timeout": {"POST", asJSON, `{"timeout": "-1s"}`, 400},
	} {
		if status, body := h.AdminDo(c.method, "/nowconnect/drain", c.contentType, c.body); status != c.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, _ := h.AdminDo("POST", "/nowconnect/agents", asJSON, "{}"); status != 405 {
		t.Errorf("POST agents: %d", status)
	}
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "nobody has drained it")
}

func TestDrain(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	status, body := h.AdminDo("POST", "/nowconnect/drain", "application/json; charset=utf-8", `{"timeout": "50ms"}`)
	r := hubtest.JSON[struct {
		Finished int
		Cut      []string
		Links    int
		Took     string
	}](t, body)
	if status != 200 || r.Finished != 0 || len(r.Cut) != 1 || r.Links != 1 || r.Took == "" {
		t.Errorf("%d %s", status, body)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("a session that was cut in a drain ends with %v, want FIN", err)
	}
}

func TestWithoutTheApp(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Expand("{\n\tadmin unix/$ADMIN\n\tpersist_config off\n}"))
	for path, method := range map[string]string{"/nowconnect/agents": "GET", "/nowconnect/sessions": "GET", "/nowconnect/drain": "POST"} {
		if status, body := h.AdminDo(method, path, asJSON, "{}"); status != 503 || !strings.Contains(body, "no nowconnect app is running") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// After a failed load Caddy keeps that load's admin routes. They must speak for
// the configuration that is still in force.
func TestAfterAFailedLoad(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	bad := h.Caddyfile(strings.ReplaceAll(hubtest.Basic, "echo", "other"), "", hubtest.Site+"\nhttp://203.0.113.1:1 {\n\tbind 203.0.113.1\n}")
	if status, body := h.AdminDo("POST", "/load", "text/caddyfile", bad); status != 400 {
		t.Fatalf("the bad load: %d %s", status, body)
	}
	_, body := h.AdminDo("GET", "/nowconnect/agents", "", "")
	if !strings.Contains(body, `"name": "echo"`) || !strings.Contains(body, `"ready": true`) {
		t.Errorf("agents: %s", body)
	}
}

// run runs one of our commands and returns what it printed.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	var cmd *cobra.Command
	for _, c := range adminapi.Commands() {
		if c.Name == name {
			cmd = &cobra.Command{Use: name}
			c.CobraFunc(cmd)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	defer func() { os.Stdout = stdout }()
	out := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		out <- string(b)
	}()
	cmd.SetArgs(args)
	err = cmd.Execute()
	_ = w.Close()
	return <-out, err
}

func TestCommands(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	address := "--address=unix/" + h.Admin
	if out, err := run(t, "agents", address); err != nil || !strings.Contains(out, `"id": "premise-1"`) {
		t.Errorf("agents: %v %s", err, out)
	}
	if out, err := run(t, "sessions", address, "--connector", "echo"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("sessions: %v %s", err, out)
	}
	if out, err := run(t, "sessions", address, "--connector", "a b"); err == nil || !strings.Contains(err.Error(), `\"a b\" is not configured`) {
		t.Errorf("sessions of an unknown connector: %v %s", err, out)
	}
	config := h.Write("Caddyfile", h.Caddyfile(hubtest.Basic, "", ""))
	if out, err := run(t, "drain", "--config", config, "--adapter", "caddyfile", "--timeout", "1s"); err != nil || !strings.Contains(out, `"links": 1`) {
		t.Errorf("drain: %v %s", err, out)
	}
}
