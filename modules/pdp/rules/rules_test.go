package rules_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/pdp/rules"
)

const (
	allowLoopback = "allow loopback {\n\tsource 127.0.0.0/8 ::1\n}\n"
	denyLoopback  = "deny nobody {\n\tsource 127.0.0.0/8 ::1\n}\n"
	jsonLoopback  = `{"rules": [{"id": "json", "effect": "allow", "sources": ["127.0.0.1"]}]}`

	valid   = `nowconnect_pdp_rules_file_valid{file="%s"}`
	reloads = `nowconnect_pdp_rules_file_reloads_total{file="%s",result="%s"}`
)

// withRules is the usual configuration with these rules in place of allow_all.
func withRules(h *hubtest.Hub, block string) string {
	return h.Caddyfile(strings.Replace(hubtest.Basic, "pdp allow_all", "pdp rules {\n"+block+"\n}", 1), hubtest.Layer4, hubtest.Site)
}

// passes reports whether a new client reaches the echo. Anything but an echo
// and a reset is a failure.
func passes(t *testing.T, h *hubtest.Hub) bool {
	t.Helper()
	c, err := net.Dial("tcp", h.LDAP)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := []byte("hello")
		if _, err = c.Write(b); err == nil {
			_, err = c.Read(b[:1])
		}
	}
	if err != nil && !testpeer.IsReset(err) {
		t.Fatalf("neither an echo nor a reset: %v", err)
	}
	return err == nil
}

// replace puts a file in place as careful programs do.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestClientsPassOrAreReset(t *testing.T) {
	h := hubtest.New(t)
	h.Load(withRules(h, allowLoopback))
	h.Agent(nil)
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	_ = c.Close()
	hubtest.Eventually(t, "the log has the decision", func() bool {
		return strings.Contains(h.Logged(), `"reason":"loopback"`)
	})
	if !strings.Contains(h.Logged(), `"policy":"`) {
		t.Error("the log does not have the policy")
	}
	h.Load(withRules(h, allowLoopback+"deny low {\n expression `source_port > 0 && connector == \"echo\"`\n}"))
	if passes(t, h) {
		t.Error("a denied client passes")
	}
	hubtest.Eventually(t, "the log has the denial", func() bool {
		return strings.Contains(h.Logged(), `"reason":"low"`)
	})
	for _, result := range []string{"allow", "deny"} {
		if n := h.Metric(`nowconnect_pdp_decisions_total{connector="echo",result="` + result + `"}`); n < 1 {
			t.Errorf("%v decisions to %s", n, result)
		}
	}
}

func TestFileReload(t *testing.T) {
	h := hubtest.New(t)
	path := h.Write("rules", allowLoopback)
	h.Load(withRules(h, "file "+path+"\npoll_interval 10ms"))
	h.Agent(nil)
	if !passes(t, h) {
		t.Fatal("an allowed client does not pass")
	}
	live := h.Dial()
	hubtest.RoundTrip(t, live, "before")

	replace(t, path, denyLoopback)
	hubtest.Eventually(t, "new clients are reset", func() bool { return !passes(t, h) })
	if _, err := live.Read(make([]byte, 1)); !testpeer.IsReset(err) {
		t.Errorf("the session of a client who is denied now: %v", err)
	}

	replace(t, path, jsonLoopback)
	hubtest.Eventually(t, "new clients pass by the JSON", func() bool { return passes(t, h) })
	if n := h.Metric(fmt.Sprintf(reloads, path, "ok")); n != 2 {
		t.Errorf("%v reloads, want 2", n)
	}

	// A mistake, and no file at all: what is in force stays, and each is told once.
	refused := func() int { return strings.Count(h.Logged(), "the rules file cannot be used") }
	replace(t, path, denyLoopback+"allow x {\n\tsorce ::/0\n}\n")
	hubtest.Eventually(t, "the mistake is told", func() bool { return refused() == 1 })
	if want := `unrecognized option \"sorce\" of allow, at ` + path + `:5`; !strings.Contains(h.Logged(), want) {
		t.Errorf("the log does not have %s", want)
	}
	if !passes(t, h) {
		t.Error("the file with a mistake has an effect")
	}
	if n := h.Metric(fmt.Sprintf(valid, path)); n != 0 {
		t.Errorf("valid is %v", n)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	hubtest.Eventually(t, "the loss is told", func() bool { return refused() == 2 })
	time.Sleep(100 * time.Millisecond) // ten readings
	if n := refused(); n != 2 {
		t.Errorf("told %d times", n)
	}
	if !passes(t, h) {
		t.Error("the lost file has an effect")
	}
	if err := h.TryLoad(withRules(h, "file "+path+"\npoll_interval 20ms")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a new configuration without the file: %v", err)
	}

	replace(t, path, jsonLoopback)
	hubtest.Eventually(t, "the file is good again", func() bool { return h.Metric(fmt.Sprintf(valid, path)) == 1 })
	replace(t, path, denyLoopback)
	hubtest.Eventually(t, "new clients are reset again", func() bool { return !passes(t, h) })
	if n := h.Metric(fmt.Sprintf(reloads, path, "error")); n != 2 {
		t.Errorf("%v refusals, want 2", n)
	}

	// A configuration without the file takes its series away.
	h.Load(withRules(h, allowLoopback))
	hubtest.Eventually(t, "the series are gone", func() bool {
		_, body, _ := h.Get("/metrics")
		return !strings.Contains(body, "nowconnect_pdp_rules_file")
	})
}

// Orchestrators replace files by pointing a symbolic link to another directory.
func TestFileBehindSymbolicLink(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"1": denyLoopback, "2": allowLoopback} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "rules"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		if err := os.Symlink(to, filepath.Join(dir, "new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	link("1")
	p := provision(t, "file "+filepath.Join(dir, "data", "rules")+"\npoll_interval 10ms")
	if d := ask(p, "127.0.0.1"); d.Reason != "nobody" {
		t.Fatalf("%+v", d)
	}
	link("2")
	hubtest.Eventually(t, "the other file is in force", func() bool { return ask(p, "127.0.0.1").Reason == "loopback" })
}

// Rules of the configuration and of the file are one set: a file cannot allow
// what the configuration denies.
func TestConfigurationAndFileTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(path, []byte("allow all {\n\tsource 0.0.0.0/0\n}\nallow {\n\tsource 192.0.2.0/24\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := provision(t, "file "+path+"\ndeny evil {\n\tsource 192.0.2.66\n}")
	for source, want := range map[string]string{"192.0.2.66": "deny evil", "192.0.2.1": "allow all", "2001:db8::1": "deny default_deny"} {
		if d := ask(p, source); d.Outcome.String()+" "+d.Reason != want {
			t.Errorf("%s: %+v, want %s", source, d, want)
		}
	}
}

func TestFileMistakesFailTheLoad(t *testing.T) {
	h := hubtest.New(t)
	path := filepath.Join(h.Dir, "rules")
	tests := map[string]string{
		"":                                           path + ":1: no rules",
		"# nothing\n":                                path + ":1: no rules",
		"{\"rules\": []}":                            path + ":1: no rules",
		"allow {\n\tsource ten\n}":                   `source: "ten" is neither a network such as 10.0.0.0/8 nor an address, at ` + path + ":2",
		"permit {\n}":                                `"permit" is neither allow nor deny, at ` + path + ":1",
		"deny a {\n}\n\ndeny a {\n}":                 `rule 2 ("a"): id: another rule has it, at ` + path + ":4",
		"deny a {\n}\ndeny config {\n}":              `rule 2 ("config"): id: another rule has it, at ` + path + ":3",
		"deny a {\n\tsource ::/0\n":                  path + ":1: { without }",
		"deny a {\n\tsource ::/0\n}\n}":              path + ":4: } without {",
		"deny {\n\tsource ::/0\n\tsource ::1\n}":     "source twice in the same rule, at " + path + ":3",
		"deny {\n\tsource ::/0\n\tconnector ehco\n}": `connectors: there is no connector "ehco", at ` + path + ":3",
		"deny {\n\texpression `true &&\n\t\tconector == \"a\"`\n}": "expression: line 2, column 3: undeclared reference to 'conector' (in container ''), at " + path + ":2",
		"import /etc/passwd": `"import" is neither allow nor deny, at ` + path + ":1",
		"{\"rules\": [\n{\"effect\": \"deny\",\n\"connectors\": [\"ehco\"]}]}":               `connectors: there is no connector "ehco", at ` + path + ":3",
		"{\"rules\": [\n{\"effect\": \"deny\",\n\"expression\": \"sni == 1\"}]}":             "found no matching overload for '_==_' applied to '(string, int)', at " + path + ":3",
		"{\"rules\": [\n{\"effect\": \"deny\", \"id\": \"a\"},\n{\"id\": \"b\"}]}":           `rule 2 ("b"): effect: "" is neither allow nor deny, at ` + path + ":3",
		"{\"rules\": [\n{\"effect\": \"deny\", \"id\": \"a\"},\n{\"effect\": \"deny\",\n}]}": path + ":4: ",
		strings.Repeat("#", 1<<20+1): "more than 1048576 bytes",
	}
	for content, want := range tests {
		h.Write("rules", content)
		err := h.Validate(withRules(h, "file "+path+"\ndeny config {\n}"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s\n%v, want %s", content, err, want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(withRules(h, "file "+path)); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: %v", err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(withRules(h, "file "+path)); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
	if err := h.Validate(withRules(h, "file {env.NC_TEST_NOT_SET}")); err == nil {
		t.Error("a path that resolves to nothing loads")
	}
}

// What the Caddyfile cannot say, JSON can.
func TestJSONMistakesFailTheLoad(t *testing.T) {
	h := hubtest.New(t)
	for pdp, want := range map[string]string{
		`{"engine": "rules"}`:              "neither a rule nor a file",
		`{"engine": "rules", "rules": []}`: "neither a rule nor a file",
		`{"engine": "rules", "role": []}`:  `unknown field "role"`,
		`{"engine": "rules", "rules": [{"effect": "deny", "sorces": ["::/0"]}]}`:     "sorces: not a word of rules",
		`{"engine": "rules", "rules": [{"effect": "deny", "sources": null}]}`:        "sources: null is no value",
		`{"engine": "rules", "rules": [{"effect": "deny", "sources": []}]}`:          `rule 1 ("deny-1"): sources: empty list`,
		`{"engine": "rules", "rules": [{"effect": "deny", "connectors": ["ehco"]}]}`: `there is no connector "ehco"`,
		`{"engine": "rules", "rules": [{"effect": "deny"}], "poll_interval": -1}`:    "poll_interval is below 10ms",
	} {
		var cfg map[string]any
		if err := json.Unmarshal(h.Adapt(h.Caddyfile(hubtest.Basic, hubtest.Layer4, hubtest.Site)), &cfg); err != nil {
			t.Fatal(err)
		}
		cfg["apps"].(map[string]any)["nowconnect"].(map[string]any)["pdp"] = json.RawMessage(pdp)
		b, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.ValidateJSON(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", pdp, err, want)
		}
	}
}

// The request tells the agent that would serve the connection.
func TestRulesAboutTheAgent(t *testing.T) {
	h := hubtest.New(t)
	h.Load(withRules(h, "allow by-agent {\n\tagent premise-1\n}"))
	h.Agent(nil)
	if !passes(t, h) {
		t.Error("the agent's rule does not let its client in")
	}
	h.Load(withRules(h, "allow by-expression {\n\texpression `agent == \"premise-2\"`\n}"))
	if passes(t, h) {
		t.Error("another agent's rule lets the client in")
	}
}

// What a rule allows it can bound: the hub ends the session and says why.
func TestObligations(t *testing.T) {
	h := hubtest.New(t)
	h.Load(withRules(h, "allow short {\n\tsource 127.0.0.1\n\tmax_duration 1s\n\tmax_bytes 100\n}"))
	h.Agent(nil)
	old, greedy := h.Dial(), h.Dial()
	hubtest.RoundTrip(t, old, "hello")
	if _, err := greedy.Write(make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	for why, c := range map[string]net.Conn{"max_duration 1s is over": old, "max_bytes 100 are used up": greedy} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || !testpeer.IsReset(err) {
			t.Errorf("%s: %d bytes, %v", why, n, err)
		}
		hubtest.Eventually(t, why, func() bool {
			return strings.Contains(h.Logged(), `"close_reason":"revoked","message":"`+why)
		})
	}
	for _, want := range []string{`"max_duration":1,`, `"max_bytes":100}`} {
		if !strings.Contains(h.Logged(), want) {
			t.Errorf("the log does not have %s", want)
		}
	}
}

// A configuration that fails after this module was provisioned, and Cleanup
// twice, leave nothing behind; TestMain looks for the watcher.
func TestCleanup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(path, []byte(allowLoopback), 0o600); err != nil {
		t.Fatal(err)
	}
	p := provision(t, "file "+path)
	for range 2 {
		if err := p.Cleanup(); err != nil {
			t.Error(err)
		}
	}
	if d := ask(p, "127.0.0.1"); d.Outcome != authz.Allow {
		t.Errorf("a late question is answered by %+v", d)
	}
	if err := new(rules.Rules).Cleanup(); err != nil {
		t.Errorf("without Provision: %v", err)
	}
}

// provision sets the module up without an app around it.
func provision(t *testing.T, block string) *rules.Rules {
	t.Helper()
	p := new(rules.Rules)
	if err := p.UnmarshalCaddyfile(caddyfile.NewTestDispenser("rules {\n" + block + "\n}")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	if err := p.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ask(p *rules.Rules, source string) authz.Decision {
	return p.Decide(context.Background(), &authz.Request{
		Subject:  authz.Entity{Type: "ip", ID: source},
		Action:   authz.Action{Name: authz.ActionConnect},
		Resource: authz.Entity{Type: "connector", ID: "echo"},
		Context:  map[string]any{"source_ip": source, "time": time.Now().UTC().Format(time.RFC3339)},
	})
}
