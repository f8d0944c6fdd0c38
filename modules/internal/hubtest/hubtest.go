// Package hubtest runs the modules in a real Caddy inside of a test process,
// with a real agent. It is used by tests only.
//
// Invariants:
//
//   - There is one Caddy per process, as Caddy's own state demands, so tests
//     that use this package do not run in parallel.
//   - Everything is on 127.0.0.1 and in the test's temporary directory, and ends
//     with the test.
package hubtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// Token is a secret that is good enough for agent_auth token.
const Token = "correct-horse-battery-staple-0123456789"

// Hub is a Caddy under test.
type Hub struct {
	Dir   string // temporary
	HTTP  string // 127.0.0.1 address for a site
	LDAP  string // the same for a layer4 server
	Admin string // path of the admin endpoint's unix socket
	Log   string // path of the log file, everything from debug on

	tb testing.TB
}

// New prepares addresses and files. Nothing runs yet.
func New(tb testing.TB) *Hub {
	tb.Helper()
	dir, err := os.MkdirTemp("", "nc") // tb.TempDir's path is too long for a unix socket
	if err != nil {
		tb.Fatal(err)
	}
	h := &Hub{
		Dir: dir, HTTP: testpeer.FreeAddr(tb), LDAP: testpeer.FreeAddr(tb),
		Admin: filepath.Join(dir, "admin.sock"), Log: filepath.Join(dir, "log"), tb: tb,
	}
	h.Write("token", Token+"\n")
	tb.Cleanup(func() {
		// caddy.Stop lets the admin endpoint run; a configuration without does not.
		if err := caddy.Load([]byte(`{"admin": {"disabled": true, "config": {"persist": false}}}`), true); err != nil {
			tb.Error(err)
		}
		if err := caddy.Stop(); err != nil {
			tb.Error(err)
		}
		if tb.Failed() {
			tb.Logf("log of Caddy:\n%s", h.Logged())
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

// Write makes a file in the hub's directory and returns its path.
func (h *Hub) Write(name, content string) string {
	h.tb.Helper()
	path := filepath.Join(h.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		h.tb.Fatal(err)
	}
	return path
}

// global is what every configuration here begins with.
const global = `	admin unix/$ADMIN
	persist_config off
	auto_https off
	storage file_system "$DIR/storage"
	log {
		output file "$LOG" {
			roll_disabled
		}
		level DEBUG
	}
`

// Basic is the body of a nowconnect block with agent premise-1, connector echo
// and no policy.
const Basic = `agent_auth token {
			agent premise-1 {file.$DIR/token}
		}
		pdp allow_all
		connector echo {
			agents premise-1
		}`

// Caddyfile makes a whole one from a nowconnect block's body, further global
// options, and sites. $DIR, $HTTP and $LDAP stand for this hub's.
func (h *Hub) Caddyfile(app, globals, sites string) string {
	s := "{\n" + global + "\tnowconnect {\n\t\t" + app + "\n\t}\n" + globals + "\n}\n" + sites
	return h.Expand(s)
}

// Layer4 is a global option that connects clients to connector echo.
const Layer4 = `	layer4 {
		$LDAP {
			route {
				nowconnect echo
			}
		}
	}`

// Site has the agent endpoint, health and metrics, without TLS.
const Site = `http://$HTTP {
	bind 127.0.0.1
	nowconnect_agent /tunnel
	nowconnect_health
	nowconnect_metrics /metrics
}`

// Expand fills in the hub's addresses.
func (h *Hub) Expand(s string) string {
	return strings.NewReplacer("$DIR", h.Dir, "$HTTP", h.HTTP, "$LDAP", h.LDAP, "$ADMIN", h.Admin, "$LOG", h.Log).Replace(s)
}

// Adapt turns a Caddyfile into JSON.
func (h *Hub) Adapt(caddyfile string) []byte {
	h.tb.Helper()
	b, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		h.tb.Fatalf("adapt: %v\n%s", err, caddyfile)
	}
	return b
}

// TryLoad loads a Caddyfile and returns Caddy's answer.
func (h *Hub) TryLoad(caddyfile string) error {
	h.tb.Helper()
	return caddy.Load(h.Adapt(caddyfile), true)
}

// Load loads a Caddyfile.
func (h *Hub) Load(caddyfile string) {
	h.tb.Helper()
	if err := h.TryLoad(caddyfile); err != nil {
		h.tb.Fatalf("load: %v\n%s", err, caddyfile)
	}
}

// Validate provisions a Caddyfile without starting it, and returns the error.
func (h *Hub) Validate(caddyfile string) error {
	h.tb.Helper()
	return h.ValidateJSON(h.Adapt(caddyfile))
}

// ValidateJSON does the same for JSON.
func (h *Hub) ValidateJSON(config []byte) error {
	h.tb.Helper()
	cfg := new(caddy.Config)
	if err := caddy.StrictUnmarshalJSON(config, cfg); err != nil {
		return err
	}
	return caddy.Validate(cfg)
}

// Start loads the usual configuration: one agent, one connector, both listeners.
func Start(tb testing.TB) *Hub {
	tb.Helper()
	h := New(tb)
	h.Load(h.Caddyfile(Basic, Layer4, Site))
	return h
}

// Logged returns what Caddy has logged.
func (h *Hub) Logged() string {
	b, err := os.ReadFile(h.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// AdminDo sends a request to the admin endpoint. A body makes it JSON.
func (h *Hub) AdminDo(method, path, contentType, body string) (status int, answer string) {
	h.tb.Helper()
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.Admin)
		},
	}}
	req, err := http.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		h.tb.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.Do(req)
	if err != nil {
		h.tb.Fatal(err)
	}
	return resp.StatusCode, read(h.tb, resp)
}

// Get asks the site for a path.
func (h *Hub) Get(path string) (status int, answer string, header http.Header) {
	h.tb.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := c.Get("http://" + h.HTTP + path)
	for range 3 {
		if err == nil {
			break
		}
		// A reload closes what the old server had accepted and not yet read.
		resp, err = c.Get("http://" + h.HTTP + path)
	}
	if err != nil {
		h.tb.Fatal(err)
	}
	return resp.StatusCode, read(h.tb, resp), resp.Header
}

func read(tb testing.TB, resp *http.Response) string {
	tb.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// Metric returns the value of one series as /metrics has it, such as
// `nowconnect_tcp_connections_total{connector="echo"}`.
func (h *Hub) Metric(series string) float64 {
	h.tb.Helper()
	_, body, _ := h.Get("/metrics")
	for line := range strings.Lines(body) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				h.tb.Fatal(err)
			}
			return f
		}
	}
	h.tb.Fatalf("no series %s in\n%s", series, body)
	return 0
}

// Agent runs a real agent that serves connector echo with an echoing target,
// and waits until the hub knows it. edit, when not nil, changes its
// configuration first.
func (h *Hub) Agent(edit func(*agent.Config)) (stop func()) {
	h.tb.Helper()
	host, port, err := net.SplitHostPort(testpeer.Echo(h.tb).Addr)
	if err != nil {
		h.tb.Fatal(err)
	}
	p, _ := strconv.Atoi(port)
	cfg := agent.Config{
		URL: "http://" + h.HTTP + "/tunnel", AgentID: "premise-1", TokenFile: filepath.Join(h.Dir, "token"),
		Targets: map[string]agent.Target{"echo": {Host: host, Port: p}},
		Links:   1, DrainTimeout: time.Second, Software: "hubtest",
	}
	if edit != nil {
		edit(&cfg)
	}
	a, err := agent.New(cfg, zap.NewNop())
	if err != nil {
		h.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	stop = func() { cancel(); <-done }
	h.tb.Cleanup(stop)
	Eventually(h.tb, "the agent is connected", a.Ready)
	Eventually(h.tb, "the hub has the agent", func() bool { return h.has(cfg.AgentID) })
	return stop
}

// has reports whether the hub can use the agent, which is a moment after the
// agent has its welcome.
func (h *Hub) has(agent string) bool {
	app := nowconnect.Current()
	if app == nil { // it runs in another process
		status, _, _ := h.Get("/readyz?connector=echo")
		return status == http.StatusOK
	}
	for _, a := range app.Hub().Status().Agents {
		if a.ID == agent {
			return len(a.Links) > 0
		}
	}
	return false
}

// Dial connects a client to the layer4 listener.
func (h *Hub) Dial() *net.TCPConn {
	h.tb.Helper()
	c, err := net.Dial("tcp", h.LDAP)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

// Refused connects a client that sends something, and expects that it is reset
// before a byte comes. On a busy machine the reset overtakes the dial or the
// write, which then fails with it, and only once: a read behind it sees EOF.
func (h *Hub) Refused() (after time.Duration) {
	h.tb.Helper()
	began := time.Now()
	c, err := net.Dial("tcp", h.LDAP)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(began.Add(30 * time.Second))
		if _, err = io.WriteString(c, "hello"); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if !testpeer.IsReset(err) {
		h.tb.Fatalf("a client sees %v, want a reset", err)
	}
	return time.Since(began)
}

// DialTLS does the same as Dial with TLS.
func (h *Hub) DialTLS(cfg *tls.Config) (*tls.Conn, error) {
	h.tb.Helper()
	c := tls.Client(h.Dial(), cfg)
	return c, c.Handshake()
}

// RoundTrip checks that the connection echoes.
func RoundTrip(tb testing.TB, c net.Conn, message string) {
	tb.Helper()
	RoundTripAfter(tb, c, "", message)
}

// RoundTripAfter does the same after a preamble that somebody takes away.
func RoundTripAfter(tb testing.TB, c net.Conn, preamble, message string) {
	tb.Helper()
	if _, err := io.WriteString(c, preamble+message); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		tb.Fatalf("read the echo of %q: %v", message, err)
	}
	if !bytes.Equal(got, []byte(message)) {
		tb.Fatalf("echo of %q is %q", message, got)
	}
}

// Eventually waits until f holds.
func Eventually(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// JSON decodes an answer.
func JSON[T any](tb testing.TB, s string) T {
	tb.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		tb.Fatalf("%v in %s", err, s)
	}
	return v
}
