package adminapi_test

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/spf13/cobra"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/testpeer"
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
	h.Refused()
	status, body = h.AdminDo("POST", "/nowconnect/undrain", asJSON, "{}")
	if status != 200 || hubtest.JSON[struct{ Draining bool }](t, body).Draining {
		t.Errorf("undrain: %d %s", status, body)
	}
	hubtest.Eventually(t, "the agent is back", func() bool {
		return h.Metric(`nowconnect_agents_connected{connector="echo"}`) == 1
	})
	hubtest.RoundTrip(t, h.Dial(), "again")
	if status, body := h.AdminDo("POST", "/nowconnect/undrain", asJSON, "{}"); status != 200 {
		t.Errorf("a second undrain: %d %s", status, body)
	}
}

func TestUndrainWaitsForTheDrain(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	over := make(chan struct{})
	go func() {
		defer close(over)
		h.AdminDo("POST", "/nowconnect/drain", asJSON, `{"timeout": "1m"}`)
	}()
	hubtest.Eventually(t, "it drains", func() bool {
		_, body := h.AdminDo("GET", "/nowconnect/agents", "", "")
		return strings.Contains(body, `"draining": true`)
	})
	if status, body := h.AdminDo("POST", "/nowconnect/undrain", asJSON, "{}"); status != 409 {
		t.Errorf("undrain meanwhile: %d %s", status, body)
	}
	c.Close()
	<-over
	if status, body := h.AdminDo("POST", "/nowconnect/undrain", asJSON, "{}"); status != 200 {
		t.Errorf("undrain: %d %s", status, body)
	}
}

func TestWithoutTheApp(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Expand("{\n\tadmin unix/$ADMIN\n\tpersist_config off\n}"))
	for path, method := range map[string]string{"/nowconnect/agents": "GET", "/nowconnect/sessions": "GET", "/nowconnect/doctor": "GET", "/nowconnect/drain": "POST", "/nowconnect/sessions/revoke": "POST", "/nowconnect/reevaluate": "POST"} {
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
	if out, err := run(t, "undrain", "--config", config, "--adapter", "caddyfile"); err != nil || !strings.Contains(out, `"draining": false`) {
		t.Errorf("undrain: %v %s", err, out)
	}
}

// What the doctor finds about directories is tested in modules/ldapadmin.
func TestDoctor(t *testing.T) {
	h := hubtest.Start(t)
	address := "--address=unix/" + h.Admin
	const ill = `"place": "echo",
			"what": "agent",
			"ok": false,
			"detail": "no agent that may serve it is connected"`
	if out, err := run(t, "doctor", address); err == nil || !strings.Contains(err.Error(), "not everything is as the configuration says") || !strings.Contains(out, ill) {
		t.Errorf("without an agent: %v %s", err, out)
	}
	h.Agent(nil)
	if out, err := run(t, "doctor", address); err != nil || !strings.Contains(out, `"ok": true`) || !strings.Contains(out, `"target": "premise-1"`) {
		t.Errorf("with an agent: %v %s", err, out)
	}
	if status, body := h.AdminDo("POST", "/nowconnect/doctor", asJSON, "{}"); status != 405 {
		t.Errorf("POST: %d %s", status, body)
	}
}

// changing is a policy that a test changes behind the hub's back. It remembers
// its answer, as a client of a PDP does.
type changing struct{}

var (
	policyDenies atomic.Bool // what the policy says now
	remembered   atomic.Bool // what it said when last asked
)

func init() { caddy.RegisterModule(changing{}) }

func (changing) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "nowconnect.pdp.test_changing", New: func() caddy.Module { return new(changing) }}
}

func (*changing) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

func (*changing) Decide(context.Context, *authz.Request) authz.Decision {
	if remembered.Load() {
		return authz.Decision{Outcome: authz.Deny, Reason: "changed", Cached: true}
	}
	return authz.Decision{Outcome: authz.Allow}
}

func (*changing) Flush() { remembered.Store(policyDenies.Load()) }

func startChanging(t *testing.T) *hubtest.Hub {
	t.Helper()
	policyDenies.Store(false)
	remembered.Store(false)
	h := hubtest.New(t)
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_changing", 1), hubtest.Layer4, hubtest.Site))
	h.Agent(nil)
	return h
}

func live(t *testing.T, h *hubtest.Hub) net.Conn {
	t.Helper()
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	return c
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !testpeer.IsReset(err) {
		t.Errorf("%v, want a reset", err)
	}
}

type revoked struct {
	Ended    int
	Sessions []string
}

func TestRevoke(t *testing.T) {
	h := startChanging(t)
	a, b := live(t, h), live(t, h)
	_, body := h.AdminDo("GET", "/nowconnect/sessions", "", "")
	cid := ""
	for _, s := range hubtest.JSON[[]hub.SessionStatus](t, body) {
		if s.Client == a.LocalAddr().String() {
			cid = s.Session
		}
	}
	status, body := h.AdminDo("POST", "/nowconnect/sessions/revoke", asJSON, `{"cid": "`+cid+`", "reason": "ticket 7"}`)
	if r := hubtest.JSON[revoked](t, body); status != 200 || r.Ended != 1 || len(r.Sessions) != 1 || r.Sessions[0] != cid {
		t.Errorf("%d %s", status, body)
	}
	wantReset(t, a)
	hubtest.RoundTrip(t, b, "another session")
	for _, want := range []string{`"phase":"revoke","cid":"` + cid, `ticket 7`, `"close_reason":"revoked"`} {
		hubtest.Eventually(t, want, func() bool { return strings.Contains(h.Logged(), want) })
	}

	// Whoever comes back is judged by what the policy says now.
	policyDenies.Store(true)
	hubtest.RoundTrip(t, live(t, h), "by what was remembered")
	_, body = h.AdminDo("POST", "/nowconnect/sessions/revoke", asJSON, `{"connector": "echo", "agent": "premise-1", "source": "127.0.0.0/8"}`)
	if r := hubtest.JSON[revoked](t, body); r.Ended != 2 {
		t.Errorf("%s", body)
	}
	wantReset(t, b)
	c, err := net.Dial("tcp", h.LDAP)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !testpeer.IsReset(err) {
		t.Errorf("a client who is denied now: %v", err)
	}
}

func TestRevokeWantsToBeMeant(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := live(t, h)
	for name, r := range map[string]struct {
		method, contentType, body, want string
		status                          int
	}{
		"get":               {"GET", "", "", "only POST", 405},
		"a form":            {"POST", "application/x-www-form-urlencoded", "cid=x", "must be application/json", 415},
		"nothing":           {"POST", asJSON, `{}`, "nothing selects sessions", 400},
		"only a reason":     {"POST", asJSON, `{"reason": "x"}`, "nothing selects sessions", 400},
		"unknown field":     {"POST", asJSON, `{"connetcor": "echo"}`, "unknown field", 400},
		"no network":        {"POST", asJSON, `{"source": "office"}`, "neither an address nor a network", 400},
		"bits":              {"POST", asJSON, `{"source": "10.1.2.3/8"}`, "the network is 10.0.0.0/8", 400},
		"unknown connector": {"POST", asJSON, `{"connector": "ehco"}`, "is not configured", 404},
	} {
		if status, body := h.AdminDo(r.method, "/nowconnect/sessions/revoke", r.contentType, r.body); status != r.status || !strings.Contains(body, r.want) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	for body, want := range map[string]int{`{"cid": "no-such"}`: 0, `{"source": "192.0.2.1"}`: 0, `{"agent": "premise-2"}`: 0} {
		status, answer := h.AdminDo("POST", "/nowconnect/sessions/revoke", asJSON, body)
		if r := hubtest.JSON[revoked](t, answer); status != 200 || r.Ended != want || r.Sessions == nil {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	if status, body := h.AdminDo("POST", "/nowconnect/reevaluate", asJSON, `{"connector": "ehco"}`); status != 404 {
		t.Errorf("%d %s", status, body)
	}
	hubtest.RoundTrip(t, c, "nobody has revoked it")
}

// A policy changed behind its module: the hub is told, and judges again.
func TestReevaluate(t *testing.T) {
	for name, body := range map[string]string{"all": `{}`, "one connector": `{"connector": "echo"}`} {
		t.Run(name, func(t *testing.T) {
			h := startChanging(t)
			c := live(t, h)
			policyDenies.Store(true)
			status, answer := h.AdminDo("POST", "/nowconnect/reevaluate", asJSON, body)
			if status != 200 || !strings.Contains(answer, `"judging": 1`) {
				t.Errorf("%d %s", status, answer)
			}
			wantReset(t, c)
			hubtest.Eventually(t, "it ended as denied", func() bool { return strings.Contains(h.Logged(), `"close_reason":"denied"`) })
		})
	}
}

func TestRevokeCommands(t *testing.T) {
	h := startChanging(t)
	address := "--address=unix/" + h.Admin
	c := live(t, h)
	if out, err := run(t, "revoke", address); err == nil || !strings.Contains(err.Error(), "nothing selects sessions") {
		t.Errorf("without a flag: %v %s", err, out)
	}
	if out, err := run(t, "revoke", address, "--source", "127.0.0.1", "--connector", "echo", "--reason", "ticket 7"); err != nil || !strings.Contains(out, `"ended": 1`) {
		t.Errorf("%v %s", err, out)
	}
	wantReset(t, c)
	c = live(t, h)
	policyDenies.Store(true)
	if out, err := run(t, "reevaluate", address, "--connector", "echo"); err != nil || !strings.Contains(out, `"judging": 1`) {
		t.Errorf("%v %s", err, out)
	}
	wantReset(t, c)
}
