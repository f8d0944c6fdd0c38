package nowconnect_test

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

const accepted = `nowconnect_tcp_connections_total{connector="echo"}`

// session opens a client connection and sees that it works.
func session(t *testing.T, h *hubtest.Hub) net.Conn {
	t.Helper()
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	return c
}

// link returns the agent's only link.
func link(t *testing.T) hub.LinkStatus {
	t.Helper()
	for _, a := range nowconnect.Current().Hub().Status().Agents {
		if len(a.Links) == 1 {
			return a.Links[0]
		}
	}
	t.Fatal("the agent does not have exactly one link")
	return hub.LinkStatus{}
}

// ended waits for the connection's end.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	n, err := io.Copy(io.Discard, c)
	var ne net.Error
	if n != 0 || errors.As(err, &ne) && ne.Timeout() {
		t.Fatalf("the session goes on: %d bytes, %v", n, err)
	}
}

func TestReloadKeepsLinksSessionsAndCounters(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := session(t, h)
	app, before := nowconnect.Current(), link(t)
	for i := range 5 {
		body := strings.Replace(hubtest.Basic, "pdp", "max_sessions "+string(rune('1'+i))+"00\n\t\tpdp", 1)
		h.Load(h.Caddyfile(body, hubtest.Layer4, hubtest.Site))
	}
	if nowconnect.Current() == app {
		t.Error("the reload put nothing in force")
	}
	if nowconnect.Current().Hub() != app.Hub() {
		t.Error("the reload made another hub")
	}
	if after := link(t); after.Since != before.Since {
		t.Errorf("the link is from %v, was from %v", after.Since, before.Since)
	}
	hubtest.RoundTrip(t, c, "still here")
	session(t, h)
	if n := h.Metric(accepted); n != 2 {
		t.Errorf("%s is %v after the reload, want 2", accepted, n)
	}
}

// Three ways to fail: before anything starts, while starting, and after the
// event "started", when the configuration has already been in force.
func TestFailedLoadChangesNothing(t *testing.T) {
	// Each failing configuration has another policy (no connector echo), so
	// that what it leaves behind shows.
	other := strings.ReplaceAll(hubtest.Basic, "echo", "other")
	fails := map[string]func(h *hubtest.Hub) []byte{
		"provision": func(h *hubtest.Hub) []byte {
			return h.Adapt(h.Caddyfile(strings.Replace(other, "agents premise-1", "agents premise-2", 1), "", hubtest.Site))
		},
		"start": func(h *hubtest.Hub) []byte {
			return h.Adapt(h.Caddyfile(other, "", hubtest.Site+"\nhttp://203.0.113.1:1 {\n\tbind 203.0.113.1\n}"))
		},
		"after started": func(h *hubtest.Hub) []byte {
			var cfg map[string]any
			if err := json.Unmarshal(h.Adapt(h.Caddyfile(other, "", hubtest.Site)), &cfg); err != nil {
				t.Fatal(err)
			}
			cfg["admin"].(map[string]any)["remote"] = map[string]any{"listen": "127.0.0.1:0"} // without identity
			b, _ := json.Marshal(cfg)
			return b
		},
	}
	for name, config := range fails {
		t.Run(name, func(t *testing.T) {
			h := hubtest.Start(t)
			h.Agent(nil)
			c := session(t, h)
			app, before := nowconnect.Current(), link(t)
			if err := caddy.Load(config(h), true); err == nil {
				t.Fatal("loads")
			}
			if nowconnect.Current() != app {
				t.Error("another app is in force")
			}
			inForce := map[bool]int{false: 1, true: 3}[name == "after started"] // there: first, failing, first again
			if n := strings.Count(h.Logged(), "configuration in force"); n != inForce {
				t.Errorf("%d configurations have been in force, want %d", n, inForce)
			}
			if after := link(t); after.Since != before.Since {
				t.Error("the agent had to connect anew")
			}
			if name != "after started" { // there the old sessions were judged by the new policy for a moment
				hubtest.RoundTrip(t, c, "still here")
			}
			session(t, h)
			if _, err := caddy.ActiveContext().AppIfConfigured("nowconnect"); err != nil {
				t.Error(err)
			}
			// The hub is still counted right: a good load works and keeps it.
			h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4, hubtest.Site))
			session(t, h)
		})
	}
}

func TestRemovedConnectorEndsItsSessions(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := session(t, h)
	h.Load(h.Caddyfile(strings.ReplaceAll(hubtest.Basic, "echo", "other"), "", hubtest.Site))
	ended(t, c)
	hubtest.Eventually(t, "the audit log says revoked", func() bool {
		return strings.Contains(h.Logged(), `"logger":"nowconnect.audit","msg":"session ended"`) &&
			strings.Contains(h.Logged(), `"close_reason":"revoked"`)
	})
}

func TestRevokedCredentialEndsTheLink(t *testing.T) {
	h := hubtest.Start(t)
	stop := h.Agent(nil)
	c := session(t, h)
	h.Write("new", "another-secret-of-sufficient-length\n")
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "$DIR/token", "$DIR/new", 1), hubtest.Layer4, hubtest.Site))
	ended(t, c)
	hubtest.Eventually(t, "the agent is refused", func() bool { return strings.Contains(h.Logged(), "agent login failed") })
	if ready, _ := nowconnect.Current().Hub().Ready("echo"); ready {
		t.Error("the agent got back in with its old secret")
	}
	stop()
	// Both secrets at once, as for a rotation.
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "{file.$DIR/token}", "{file.$DIR/new} {file.$DIR/token}", 1), hubtest.Layer4, hubtest.Site))
	h.Agent(nil)
	session(t, h)
}

func TestAppLeavesAndComesBack(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	c := session(t, h)
	old := nowconnect.Current().Hub()
	h.Load(h.Expand("{\n\tadmin off\n\tpersist_config off\n}\nhttp://$HTTP {\n\trespond ok\n}"))
	ended(t, c)
	if nowconnect.Current() != nil {
		t.Error("an app is in force")
	}
	if !old.Draining() {
		t.Error("the hub is open")
	}
	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4, hubtest.Site))
	if nowconnect.Current().Hub() == old {
		t.Error("the closed hub is back")
	}
	hubtest.Eventually(t, "the agent is back by itself", func() bool {
		ready, _ := nowconnect.Current().Hub().Ready("echo")
		return ready
	})
	session(t, h)
}

func TestValidateLeavesTheHubAlone(t *testing.T) {
	h := hubtest.Start(t)
	h.Agent(nil)
	app := nowconnect.Current()
	if err := h.Validate(h.Caddyfile(strings.ReplaceAll(hubtest.Basic, "echo", "other"), "", hubtest.Site)); err != nil {
		t.Fatal(err)
	}
	if nowconnect.Current() != app {
		t.Error("caddy validate put a configuration in force")
	}
	session(t, h)
}

// A secret is in its file and nowhere else.
func TestSecretsStaySecret(t *testing.T) {
	h := hubtest.New(t)
	env := "a-secret-in-the-environment-0123456789"
	t.Setenv("NC_TEST_TOKEN", env)
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "{file.$DIR/token}", "{file.$DIR/token} {env.NC_TEST_TOKEN}", 1), hubtest.Layer4, hubtest.Site))
	h.Agent(nil)
	session(t, h)
	_, config := h.AdminDo("GET", "/config/", "", "")
	_, agents := h.AdminDo("GET", "/nowconnect/agents", "", "")
	_, sessions := h.AdminDo("GET", "/nowconnect/sessions", "", "")
	_, metrics, _ := h.Get("/metrics")
	_, adminMetrics := h.AdminDo("GET", "/metrics", "", "")
	if !strings.Contains(config, "{env.NC_TEST_TOKEN}") {
		t.Errorf("/config/ does not have the placeholder: %s", config)
	}
	if !strings.Contains(h.Logged(), `"level":"debug"`) {
		t.Error("the log has no debug lines, so it proves little")
	}
	places := map[string]string{
		"/config/": config, "agents": agents, "sessions": sessions, "metrics": metrics, "admin metrics": adminMetrics, "log": h.Logged(),
	}
	err := filepath.WalkDir(h.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "token" {
			return err
		}
		b, err := os.ReadFile(path)
		places[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for place, text := range places {
		for _, secret := range []string{hubtest.Token, env} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has a secret", place)
			}
		}
	}
}
