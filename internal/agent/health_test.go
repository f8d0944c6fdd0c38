package agent

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func healthAgent(t *testing.T, hub *testHub) *running {
	t.Helper()
	cfg := testConfig(t, hub)
	cfg.HealthAddr, cfg.BackoffMin, cfg.BackoffMax = testpeer.FreeAddr(t), 20*time.Millisecond, 100*time.Millisecond
	a := startAgent(t, cfg)
	eventually(t, "the health port", func() bool {
		c, err := net.Dial("tcp", cfg.HealthAddr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return a
}

// silent reads what a client gets that says nothing.
func (r *running) silent(t *testing.T, closeWrite bool) string {
	t.Helper()
	c, err := net.Dial("tcp", r.cfg.HealthAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if closeWrite { // nc </dev/null
		_ = c.(*net.TCPConn).CloseWrite()
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (r *running) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + r.cfg.HealthAddr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Close {
		t.Errorf("%s: the connection stays open, and with it a place", path)
	}
	return resp.StatusCode, string(b)
}

// TestHealthWords is the original's protocol: OK before the login, READY after
// it, OK again when the link is gone.
func TestHealthWords(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, nil)
	hub.set(func() { hub.token = "not yet" })
	a := healthAgent(t, hub)
	for _, half := range []bool{false, true} {
		if got := a.silent(t, half); got != "OK" {
			t.Errorf("before the login: %q", got)
		}
	}
	hub.set(func() { hub.token = testToken })
	eventually(t, "a link", a.Ready)
	for _, half := range []bool{false, true} {
		if got := a.silent(t, half); got != "READY" {
			t.Errorf("after the login: %q", got)
		}
	}
	hub.stop()
	eventually(t, "no link", func() bool { return !a.Ready() })
	if got := a.silent(t, false); got != "OK" {
		t.Errorf("after the loss: %q", got)
	}
}

func TestHealthOverHTTP(t *testing.T) {
	hub := newTestHub(t, nil)
	hub.set(func() { hub.token = "not yet" })
	a := healthAgent(t, hub)
	if code, body := a.get(t, "/healthz"); code != 200 || body != `{"status":"ok"}`+"\n" {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := a.get(t, "/readyz"); code != 503 ||
		body != `{"status":"not_ready","agent":"premise-1","connectors":["echo"],"sessions":0,"links":[{"up":false}]}`+"\n" {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, before := a.get(t, "/metrics")
	for _, want := range []string{
		`nowconnect_agent_sessions_total{connector="echo"} 0`, `nowconnect_agent_link_up{link="0"} 0`,
		`nowconnect_agent_bytes_total{connector="echo",direction="c2a"} 0`, "go_goroutines ", "nowconnect_agent_insecure 0",
	} {
		if !strings.Contains(before, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}

	hub.set(func() { hub.token = testToken })
	eventually(t, "a link", a.Ready)
	eventually(t, "the hub's end", func() bool { return hub.link(0) != nil })
	s := hub.open(t, 0, "echo")
	s.echo(t, "12345")
	code, body := a.get(t, "/readyz")
	var r readiness
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatal(err)
	}
	if l := r.Links[0]; code != 200 || r.Status != "ready" || r.Sessions != 1 || !l.Up || l.Carrier != "nowconnect" ||
		l.Hub != "test-hub" || len(l.Accepted) != 1 || time.Since(l.Since) > time.Minute {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, after := a.get(t, "/metrics")
	for _, want := range []string{
		`nowconnect_agent_sessions_total{connector="echo"} 1`, `nowconnect_agent_sessions_active{connector="echo"} 1`,
		`nowconnect_agent_link_up{link="0"} 1`, `nowconnect_agent_dial_seconds_count{connector="echo"} 1`,
		`nowconnect_agent_bytes_total{connector="echo",direction="c2a"} 5`, `nowconnect_agent_bytes_total{connector="echo",direction="a2c"} 5`,
	} {
		if !strings.Contains(after, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	s.client.Close()
	s.wait(t)
	eventually(t, "the end of the session in the metrics", func() bool {
		_, m := a.get(t, "/metrics")
		return strings.Contains(m, `nowconnect_agent_sessions_active{connector="echo"} 0`) &&
			strings.Contains(m, `nowconnect_agent_sessions_closed_total{connector="echo",reason="fin"} 1`)
	})

	for path, want := range map[string]int{"/": 404, "/debug/pprof/": 404} {
		if code, _ := a.get(t, path); code != want {
			t.Errorf("%s: %d", path, code)
		}
	}
	resp, err := http.Post("http://"+a.cfg.HealthAddr+"/readyz", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

func TestHealthWhileDraining(t *testing.T) {
	hub := newTestHub(t, nil)
	a := healthAgent(t, hub)
	eventually(t, "a link", func() bool { return hub.link(0) != nil })
	s := hub.open(t, 0, "echo")
	s.echo(t, "x")
	a.stop()
	eventually(t, "draining", func() bool {
		code, body := a.get(t, "/readyz")
		return code == 503 && strings.Contains(body, `"status":"draining"`)
	})
	if got := a.silent(t, false); got != "OK" {
		t.Errorf("a silent client gets %q", got)
	}
}

// TestHealthPortIsBounded holds more sockets than there are places: the port
// serves again as soon as the silent ones have had their word.
func TestHealthPortIsBounded(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, nil)
	a := healthAgent(t, hub)
	var held []net.Conn
	for range 4 * maxHealthConns {
		c, err := net.Dial("tcp", a.cfg.HealthAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
		if n := len(a.health.slots); n > maxHealthConns {
			t.Fatalf("%d connections held", n)
		}
	}
	slow, err := net.Dial("tcp", a.cfg.HealthAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	for _, c := range held {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.ReadAll(c) // a word, or a close for want of a place
	}
	eventually(t, "the places are free", func() bool { return len(a.health.slots) == 0 })
	if code, _ := a.get(t, "/healthz"); code != 200 {
		t.Errorf("/healthz: %d", code)
	}
}

// TestHealthCutsSlowRequests: a header that never ends holds its place for no
// longer than healthTime.
func TestHealthCutsSlowRequests(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, nil)
	a := healthAgent(t, hub)
	c, err := net.Dial("tcp", a.cfg.HealthAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_ = c.SetDeadline(start.Add(2 * healthTime))
	_, _ = io.ReadAll(c)
	if d := time.Since(start); d > healthTime+2*time.Second {
		t.Errorf("held for %v", d)
	}
}

func TestTakenHealthPortEndsRun(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := testConfig(t, newTestHub(t, nil))
	cfg.HealthAddr = ln.Addr().String()
	a, err := New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "health port: listen tcp ") {
		t.Errorf("got %v", err)
	}
}
