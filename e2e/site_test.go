package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func TestMain(m *testing.M) {
	// CertMagic's lock keeper looks only every 5 s whether its lock is gone.
	testpeer.LeakCheck(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

const (
	agentID = "premise-1"
	token   = "correct-horse-battery-staple-0123456789"
	// hubName is in the hub's certificate. Agents verify it, whatever address
	// they dial.
	hubName = "hub.test"
	// soon is how long what must happen may take. Only a fault waits so long.
	soon = 30 * time.Second
)

// siteOptions shape a hub and its agent. The zero value is one connector, echo,
// with an echoing target, and one agent that comes by TLS.
type siteOptions struct {
	connectors []connector
	hub        []string // further lines of the nowconnect block
	globals    []string // further global options; $HTTPS is site.https
	lines      []string // further lines of the site without TLS; $DIR is site.dir
	process    bool     // the hub is a process of its own, bin/nowconnect
	race       bool     // and built with the race detector
	files      int      // and may have so many file descriptors; 0: as many as we
	network    string   // begins the addresses of clients' listeners, such as nowconnect/
	plain      bool     // agents come without TLS
	noAgent    bool     // none is started; site.agent does it later
	agent      func(*agent.Config)
}

// connector is a named service: a block in the hub's configuration with a
// layer4 listener, and a target in the agent's.
type connector struct {
	name   string
	target string   // host:port that the agent dials; empty: the agent knows no such connector
	lines  []string // further lines of its block
}

// site is a hub with what is around it.
type site struct {
	http  string // address of the site without TLS: agents, health, metrics
	https string // the same with TLS
	ca    *testpeer.CA
	dir   string
	admin string            // path of the admin endpoint's unix socket
	child *testpeer.Process // nil unless siteOptions.process
	first *runningAgent     // nil with siteOptions.noAgent

	t    *testing.T
	o    siteOptions
	cert *testpeer.Cert
	l4   map[string]string // listener by connector
}

// startSite starts a hub and an agent and waits until they are connected.
func startSite(t *testing.T, o siteOptions) *site {
	t.Helper()
	if o.connectors == nil {
		o.connectors = []connector{{name: "echo", target: testpeer.Echo(t).Addr}}
	}
	dir, err := os.MkdirTemp("", "nc") // t.TempDir's path is too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir, admin: filepath.Join(dir, "admin.sock"), t: t, o: o, ca: testpeer.NewCA(t)}
	s.cert = s.ca.Issue(t, hubName, "localhost", "127.0.0.1")
	s.write("token", token+"\n")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the hub:\n%s", s.logged())
		}
		os.RemoveAll(dir)
	})
	s.start()
	if !o.noAgent {
		s.first = s.agent(o.agent)
	}
	return s
}

// in is the same site for a subtest.
func (s *site) in(t *testing.T) *site {
	c := *s
	c.t = t
	return &c
}

// start runs Caddy. The ports that were free may be taken by the time it
// listens; then it tries others.
func (s *site) start() {
	s.t.Helper()
	run := s.load
	if s.o.process {
		run = s.startProcess
	} else {
		s.t.Cleanup(func() {
			// Stop leaves the admin endpoint running; a configuration without
			// one does not.
			if err := errors.Join(caddy.Load([]byte(`{"admin":{"disabled":true,"config":{"persist":false}}}`), true), caddy.Stop()); err != nil {
				s.t.Error(err)
			}
		})
	}
	var err error
	for range 5 {
		s.http, s.https, s.l4 = testpeer.FreeAddr(s.t), testpeer.FreeAddr(s.t), make(map[string]string)
		if err = run(s.caddyfile()); err == nil || !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	if err != nil {
		s.t.Fatalf("start the hub: %v\n%s", err, s.caddyfile())
	}
}

// load gives a Caddyfile to the Caddy in this process.
func (s *site) load(caddyfile string) error {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

// startProcess runs bin/nowconnect and waits until it is up.
func (s *site) startProcess(caddyfile string) error {
	s.t.Helper()
	file := s.write("Caddyfile", caddyfile)
	env := []string{"XDG_DATA_HOME=" + s.dir, "XDG_CONFIG_HOME=" + s.dir}
	command := []string{testpeer.BuildBinary(s.t, "./cmd/nowconnect", s.o.race), "run", "--config", file, "--adapter", "caddyfile"}
	if s.o.files > 0 {
		command = append([]string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, s.o.files), "sh"}, command...)
	}
	s.child = testpeer.Start(s.t, env, command[0], command[1:]...)
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		select {
		case <-s.child.Done():
			return fmt.Errorf("it exits: %s", s.child.Output())
		default:
		}
		if c, err := net.Dial("tcp", s.http); err == nil {
			c.Close()
			// It listens a moment before its configuration is in force.
			if _, ok := s.scrape()[linksOf(agentID)]; ok {
				return nil
			}
		}
	}
	return fmt.Errorf("it does not come up: %s", s.child.Output())
}

// caddyfile is the hub's configuration by s.o.
func (s *site) caddyfile() string {
	s.t.Helper()
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("{\n\tadmin unix/%s\n\tpersist_config off\n\tauto_https off\n\tstorage file_system %q", s.admin, filepath.Join(s.dir, "storage"))
	p("\tlog {\n\t\toutput file %q {\n\t\t\troll_disabled\n\t\t}\n\t\tlevel DEBUG\n\t}", s.log())
	p("\tnowconnect {\n\t\tagent_auth token {\n\t\t\tagent %s {file.%s}\n\t\t}\n\t\tpdp allow_all", agentID, filepath.Join(s.dir, "token"))
	for _, line := range s.o.hub {
		p("\t\t%s", line)
	}
	for _, c := range s.o.connectors {
		p("\t\tconnector %s {", c.name)
		if !slices.ContainsFunc(c.lines, func(l string) bool { return strings.HasPrefix(l, "agents ") }) {
			p("\t\t\tagents %s", agentID)
		}
		for _, line := range c.lines {
			p("\t\t\t%s", line)
		}
		p("\t\t}")
	}
	p("\t}")
	for _, line := range s.o.globals {
		p("\t%s", strings.ReplaceAll(line, "$HTTPS", s.https))
	}
	p("\tlayer4 {")
	for _, c := range s.o.connectors {
		p("\t\t%s {\n\t\t\troute {\n\t\t\t\tnowconnect %s\n\t\t\t}\n\t\t}", s.o.network+s.addr(c.name), c.name)
	}
	p("\t}\n}")
	const routes = "\tnowconnect_agent /tunnel\n\tnowconnect_health\n\tnowconnect_metrics /metrics\n}"
	p("http://:%s {\n\tbind 127.0.0.1", port(s.http))
	for _, line := range s.o.lines {
		p("\t%s", strings.ReplaceAll(line, "$DIR", s.dir))
	}
	p(routes)
	p("https://:%s {\n\tbind 127.0.0.1\n\ttls %s %s\n%s", port(s.https), s.cert.CertFile, s.cert.KeyFile, routes)
	return b.String()
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// addr is where clients reach a connector.
func (s *site) addr(connector string) string {
	s.t.Helper()
	if s.l4[connector] == "" {
		s.l4[connector] = testpeer.FreeAddr(s.t)
	}
	return s.l4[connector]
}

// write makes a file in the site's directory and returns its path.
func (s *site) write(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) log() string { return filepath.Join(s.dir, "hub.log") }

// logged is all that the hub has logged, from debug on.
func (s *site) logged() string {
	b, err := os.ReadFile(s.log())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// post sends the admin endpoint a Caddyfile, as caddy reload does, and returns
// its answer.
func (s *site) post(caddyfile string) (status int, answer string) {
	s.t.Helper()
	return s.adminDo(http.MethodPost, "/load", "text/caddyfile", caddyfile)
}

// reload changes the options and makes the hub load the configuration that
// follows from them, by the admin endpoint.
func (s *site) reload(edit func(*siteOptions)) {
	s.t.Helper()
	edit(&s.o)
	if status, answer := s.post(s.caddyfile()); status != http.StatusOK {
		s.t.Fatalf("reload: %d %s\n%s", status, answer, s.caddyfile())
	}
}

// adminDo sends a request to the admin endpoint.
func (s *site) adminDo(method, path, contentType, body string) (status int, answer string) {
	s.t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.admin)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}, Timeout: soon}
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://127.0.0.1"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return s.do(&c, req)
}

// get asks the hub's HTTP site.
func (s *site) get(path string) (status int, answer string) {
	s.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.http+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do(&c, req)
}

func (s *site) do(c *http.Client, req *http.Request) (status int, answer string) {
	s.t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// scrape reads /metrics: each series, as it is written there, and its value.
func (s *site) scrape() map[string]float64 {
	s.t.Helper()
	m, err := s.tryScrape()
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// tryScrape does the same in any goroutine.
func (s *site) tryScrape() (map[string]float64, error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
	resp, err := c.Get("http://" + s.http + "/metrics")
	for tries := 0; tries < 5 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)); tries++ {
		// Caddy opens a new listener at a reload and closes the old one with
		// what waits in its queue: not what these tests are about.
		resp, err = c.Get("http://" + s.http + "/metrics")
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics: %s %w", resp.Status, err)
	}
	m := make(map[string]float64)
	for line := range strings.Lines(string(body)) {
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		if m[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			return nil, fmt.Errorf("/metrics: %w in %q", err, line)
		}
	}
	return m, nil
}

// metric reads one series of /metrics, which must exist.
func (s *site) metric(series string) float64 {
	s.t.Helper()
	v, ok := s.scrape()[series]
	if !ok {
		s.t.Fatalf("/metrics has no %s", series)
	}
	return v
}

// linksOf is the series of an agent's links.
// nearLinks is how many links an agent chooses to a hub on loopback.
const nearLinks = 2

func linksOf(agent string) string { return fmt.Sprintf("nowconnect_tunnel_links{agent=%q}", agent) }

// closed is the series that counts a connector's sessions that ended for reason.
func closed(connector, reason string) string {
	return fmt.Sprintf("nowconnect_sessions_closed_total{connector=%q,reason=%q}", connector, reason)
}

// active is the series of a connector's live sessions.
func active(connector string) string {
	return fmt.Sprintf("nowconnect_tcp_active_connections{connector=%q}", connector)
}

// waitMetric waits until a series has the value.
func (s *site) waitMetric(series string, want float64) {
	s.t.Helper()
	var got float64
	if !eventually(func() bool { got = s.metric(series); return got == want }) {
		s.t.Fatalf("%s is %v, not %v", series, got, want)
	}
}

// dial connects a client to a connector.
func (s *site) dial(connector string) *net.TCPConn {
	s.t.Helper()
	c, err := net.DialTimeout("tcp", s.addr(connector), soon)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute)) // a test that hangs ends with an error that says where
	return c.(*net.TCPConn)
}

// agentConfig is what an agent of this site runs by.
func (s *site) agentConfig() agent.Config {
	s.t.Helper()
	cfg := agent.Config{
		URL: "https://" + s.https + "/tunnel", AgentID: agentID, TokenFile: filepath.Join(s.dir, "token"),
		CABundle: s.ca.File, ServerName: hubName, Targets: make(map[string]agent.Target),
		DrainTimeout: time.Second, BackoffMax: time.Second, Software: "e2e",
	}
	if s.o.plain {
		cfg.URL, cfg.CABundle, cfg.ServerName = "http://"+s.http+"/tunnel", "", ""
	}
	for _, c := range s.o.connectors {
		if c.target == "" {
			continue
		}
		host, port, err := net.SplitHostPort(c.target)
		if err != nil {
			s.t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			s.t.Fatal(err)
		}
		cfg.Targets[c.name] = agent.Target{Host: host, Port: n}
	}
	return cfg
}

// runningAgent is an agent in this process.
type runningAgent struct {
	*agent.Agent
	links int // that it keeps

	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned
	logs   *syncBuffer
}

// agent starts one and waits until all its links are up. edit, when not nil,
// changes its configuration first.
func (s *site) agent(edit func(*agent.Config)) *runningAgent {
	s.t.Helper()
	cfg := s.agentConfig()
	if edit != nil {
		edit(&cfg)
	}
	r := &runningAgent{links: cmp.Or(cfg.Links, nearLinks), done: make(chan struct{}), logs: new(syncBuffer)}
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), r.logs, zap.DebugLevel)
	a, err := agent.New(cfg, zap.New(core))
	if err != nil {
		s.t.Fatal(err)
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.Agent = a
	go func() {
		defer close(r.done)
		if err := a.Run(ctx); err != nil {
			s.t.Errorf("agent: %v", err)
		}
	}()
	s.t.Cleanup(func() {
		r.kill()
		if s.t.Failed() {
			s.t.Logf("log of agent %s:\n%s", cfg.AgentID, r.logged())
		}
	})
	s.eventually("the agent's links are up", func() bool { return a.Ready() && s.metric(linksOf(cfg.AgentID)) >= float64(r.links) })
	return r
}

// stop drains the agent and waits until it is gone.
func (r *runningAgent) stop() {
	r.cancel()
	<-r.done
}

// kill stops the agent without a drain.
func (r *runningAgent) kill() {
	r.Cut()
	r.stop()
}

// logged is all that the agent has logged, from debug on.
func (r *runningAgent) logged() string { return r.logs.String() }

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) Sync() error { return nil }

// eventually waits until cond holds and fails the test if it does not. cond
// runs in the test's goroutine.
func (s *site) eventually(what string, cond func() bool) {
	s.t.Helper()
	if !eventually(cond) {
		s.t.Fatalf("not within %v: %s", soon, what)
	}
}

// eventually waits until cond holds and reports whether it does.
func eventually(cond func() bool) bool {
	for end := time.Now().Add(soon); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// roundTrip checks that the connection echoes.
func roundTrip(t *testing.T, c net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != message {
		t.Fatalf("the echo of %q is %q, %v", message, got, err)
	}
}

// The set-up itself works, in both forms.
func TestSite(t *testing.T) {
	for _, o := range []siteOptions{{}, {plain: true}, {process: true}} {
		t.Run(fmt.Sprintf("process=%v,plain=%v", o.process, o.plain), func(t *testing.T) {
			s := startSite(t, o)
			c := s.dial("echo")
			roundTrip(t, c, "hello")
			s.waitMetric(active("echo"), 1)
			s.reload(func(o *siteOptions) { o.connectors[0].lines = []string{"max_sessions 1"} })
			roundTrip(t, c, "still there")
			c.CloseWrite()
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}
			s.waitMetric(closed("echo", "fin"), 1)
		})
	}
}
