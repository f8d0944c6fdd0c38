package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// back is how long an agent or a hub that was killed may take, from its
// restart until clients are served again.
const back = 5 * time.Second

// atOnce is far more than it takes to notice that a process is gone, and far
// less than the 40 s after which pings would tell.
const atOnce = 5 * time.Second

// agentProcess runs the program nowconnect-agent with the configuration that an
// agent in this process would have. Its health port is off.
func (s *site) agentProcess(edit func(*agent.Config)) *testpeer.Process {
	s.t.Helper()
	cfg := s.agentConfig()
	if edit != nil {
		edit(&cfg)
	}
	targets := make(map[string]string)
	for name, t := range cfg.Targets {
		targets[name] = t.String()
	}
	tunnel := map[string]any{
		"url": cfg.URL, "agent_id": cfg.AgentID, "auth": map[string]string{"token_file": cfg.TokenFile},
		"backoff_max": cfg.BackoffMax.String(),
	}
	if cfg.CABundle != "" {
		tunnel["ca_bundle"], tunnel["server_name"] = cfg.CABundle, cfg.ServerName
	}
	b, err := json.Marshal(map[string]any{
		"tunnel": tunnel, "targets": targets, "health": map[string]int{"port": 0},
		"limits":        map[string]string{"drain_timeout": cfg.DrainTimeout.String()},
		"observability": map[string]string{"log_level": "debug"},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	file := s.write("agent-"+cfg.AgentID+".json", string(b))
	return testpeer.Start(s.t, nil, testpeer.BuildBinary(s.t, "./cmd/nowconnect-agent", true), "-config", file)
}

// reconnects is the series of an agent's links that came back.
func reconnects(agent, reason string) string {
	return fmt.Sprintf("nowconnect_tunnel_reconnects_total{agent=%q,reason=%q}", agent, reason)
}

// errorsOf is the series of errors while serving a connector's clients.
func errorsOf(connector, kind string) string {
	return fmt.Sprintf("nowconnect_listener_errors_total{connector=%q,type=%q}", connector, kind)
}

// serves reports whether a new client of the connector gets its echo.
func (s *site) serves(connector string) bool {
	c, err := net.DialTimeout("tcp", s.addr(connector), time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(soon))
	if _, err := io.WriteString(c, "x"); err != nil {
		return false
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// servedAgain waits until clients are served and checks that this took no
// longer than back from the restart on.
func (s *site) servedAgain(restart time.Time) {
	s.t.Helper()
	s.eventually("clients are served again", func() bool { return s.serves("echo") })
	took := time.Since(restart)
	s.t.Logf("served %v after the restart", took.Round(time.Millisecond))
	if took > back {
		s.t.Errorf("served %v after the restart, want at most %v", took, back)
	}
}

// sessions opens n echo sessions and sees that they work.
func (s *site) sessions(n int) []*net.TCPConn {
	s.t.Helper()
	out := make([]*net.TCPConn, n)
	for i := range out {
		out[i] = s.dial("echo")
		roundTrip(s.t, out[i], "hello")
	}
	return out
}

// end waits until the connection is over and returns how: nil for FIN. Nothing
// may come before it.
func end(t *testing.T, c net.Conn, within time.Duration) error {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	n, err := c.Read(make([]byte, 1))
	switch {
	case n > 0:
		t.Error("a byte in place of the end")
	case errors.Is(err, os.ErrDeadlineExceeded):
		t.Fatalf("the connection is not over after %v", within)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// allReset waits until every connection was reset and returns how long that
// took from began on.
func allReset(t *testing.T, clients []*net.TCPConn, began time.Time, within time.Duration) time.Duration {
	t.Helper()
	for _, c := range clients {
		if err := end(t, c, time.Until(began.Add(within))); !testpeer.IsReset(err) {
			t.Errorf("the client sees %v, want a reset", err)
		}
	}
	return time.Since(began)
}

func TestKilledAgent(t *testing.T) {
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true})
	p := s.agentProcess(nil)
	s.waitMetric(linksOf(agentID), nearLinks)
	clients := s.sessions(20)
	s.waitMetric(active("echo"), 20)

	killed := time.Now()
	p.Kill()
	t.Logf("all sessions reset %v after the kill", allReset(t, clients, killed, atOnce).Round(time.Millisecond))
	s.waitMetric(closed("echo", "link_lost"), 20)
	s.waitMetric(errorsOf("echo", "session"), 20)
	s.waitMetric(linksOf(agentID), 0)
	s.waitMetric(active("echo"), 0)
	// Without an agent a client is refused and does not hang.
	s.refused("echo", "127.0.0.1")
	s.waitMetric(closed("echo", "no_agent"), 1)

	restart := time.Now()
	s.agentProcess(nil)
	s.servedAgain(restart)
	s.waitMetric(linksOf(agentID), nearLinks)
}

func TestKilledHub(t *testing.T) {
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true})
	p := s.agentProcess(nil)
	s.waitMetric(linksOf(agentID), nearLinks)
	clients := s.sessions(20)

	killed := time.Now()
	s.child.Kill()
	for _, c := range clients {
		_ = end(t, c, time.Until(killed.Add(atOnce))) // the kernel says how, all sent data was read
	}
	restart := time.Now()
	if err := s.startProcess(s.caddyfile()); err != nil {
		t.Fatal(err)
	}
	s.servedAgain(restart)
	s.waitMetric(linksOf(agentID), nearLinks)
	select {
	case <-p.Done():
		t.Error("the agent did not outlive the hub")
	default:
	}
}

// Pings in tests: short enough to wait for, long enough for a busy machine.
const (
	pingInterval = 250 * time.Millisecond
	pingTimeout  = 500 * time.Millisecond
)

// byProxy makes an agent reach the hub through p, with short pings.
func byProxy(p *testpeer.Proxy) func(*agent.Config) {
	return func(c *agent.Config) {
		c.URL = "https://" + p.Addr + "/tunnel"
		c.PingInterval, c.PingTimeout = pingInterval, pingTimeout
		c.HandshakeTimeout, c.BackoffMax = time.Second, 200*time.Millisecond
	}
}

// slack is what a busy machine may add to a ping deadline.
const slack = 3 * time.Second

func TestBlackholedLinkIsFoundByTheHub(t *testing.T) {
	s := startSite(t, siteOptions{noAgent: true, hub: []string{"ping_interval " + pingInterval.String(), "ping_timeout " + pingTimeout.String()}})
	p := testpeer.TCPProxy(t, s.https)
	s.agent(byProxy(p))
	clients := s.sessions(5)

	dropped := time.Now()
	p.Blackhole()
	took := allReset(t, clients, dropped, soon)
	t.Logf("found after %v", took.Round(time.Millisecond))
	if want := pingInterval + pingTimeout; took > want+slack {
		t.Errorf("found after %v, the ping deadline is %v", took, want)
	}
	s.waitMetric(closed("echo", "link_lost"), 5)
	s.waitMetric(linksOf(agentID), 0)

	p.Heal()
	s.waitMetric(linksOf(agentID), nearLinks)
	s.waitMetric(reconnects(agentID, "ping_timeout"), nearLinks)
	if !s.serves("echo") {
		t.Error("the links are up and serve nobody")
	}
}

// The hub would notice after 40 s; the agent does earlier, and its login takes
// the dead link's place.
func TestNewLoginTakesOver(t *testing.T) {
	s := startSite(t, siteOptions{noAgent: true})
	p := testpeer.TCPProxy(t, s.https)
	s.agent(byProxy(p))
	clients := s.sessions(6)

	dropped := time.Now()
	p.Strand()
	took := allReset(t, clients, dropped, soon)
	t.Logf("taken over after %v", took.Round(time.Millisecond))
	if want := pingInterval + pingTimeout; took > want+slack {
		t.Errorf("taken over after %v, the agent's ping deadline is %v", took, want)
	}
	s.waitMetric(reconnects(agentID, "superseded"), nearLinks)
	s.waitMetric(linksOf(agentID), nearLinks)
	s.waitMetric(closed("echo", "link_lost"), 6)
	if !s.serves("echo") {
		t.Error("the links are up and serve nobody")
	}
}

// usage is what the process holds at one moment.
type usage struct{ goroutines, heap int }

// measure takes the least of some readings: goroutines of the measurement
// itself come and go.
func measure(r *runningAgent) usage {
	u := usage{1 << 30, 1 << 40}
	runtime.GC()
	for range 5 {
		runtime.GC() // twice at first: what has a finalizer goes in the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		r.logs.mu.Lock()
		heap := int(m.HeapAlloc) - r.logs.b.Cap() // the test keeps the agent's log
		r.logs.mu.Unlock()
		u = usage{min(u.goroutines, runtime.NumGoroutine()), min(u.heap, heap)}
	}
	return u
}

func median(of []usage) usage {
	var g, h []int
	for _, u := range of {
		g, h = append(g, u.goroutines), append(h, u.heap)
	}
	slices.Sort(g)
	slices.Sort(h)
	return usage{g[len(g)/2], h[len(h)/2]}
}

// Hub and agent are both in this process, so what either keeps of a lost link
// shows. Both look for dead links; whoever is first, the other way follows.
func TestLostLinksLeaveNothingBehind(t *testing.T) {
	const (
		cycles            = 200
		edge              = 20 // cycles that are compared
		interval, timeout = 15 * time.Millisecond, 60 * time.Millisecond
	)
	s := startSite(t, siteOptions{noAgent: true, plain: true, hub: []string{"ping_interval " + interval.String(), "ping_timeout " + timeout.String()}})
	p := testpeer.TCPProxy(t, s.http)
	r := s.agent(func(c *agent.Config) {
		c.URL, c.Links = "http://"+p.Addr+"/tunnel", 1
		c.PingInterval, c.PingTimeout = interval, timeout
		c.BackoffMin, c.BackoffMax = 5*time.Millisecond, 5*time.Millisecond
	})
	cycle := func(measured bool) (u usage) {
		// A busy machine can miss a ping by itself: then the session is lost
		// before its time, and the next one counts.
		s.eventually("a session", func() bool {
			c, err := net.DialTimeout("tcp", s.addr("echo"), soon)
			if err != nil {
				return false // refused so fast, without an agent, that dial sees it
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(soon))
			if _, err := io.WriteString(c, "x"); err != nil {
				return false
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return false
			}
			if measured {
				for p.Open() != 1 { // the lost link's connection may still be closing
					time.Sleep(time.Millisecond)
				}
				u = measure(r)
			}
			p.Strand()
			_ = end(t, c, soon)
			return true
		})
		return u
	}
	began := time.Now()
	for range edge {
		cycle(false) // pools and tables get their size
	}
	var first, last []usage
	for range edge {
		first = append(first, cycle(true))
	}
	for range cycles - 2*edge {
		cycle(false)
	}
	for range edge {
		last = append(last, cycle(true))
	}
	a, b := median(first), median(last)
	t.Logf("%d cycles in %v: %d → %d goroutines, %d → %d KiB", cycles+edge, time.Since(began).Round(time.Millisecond),
		a.goroutines, b.goroutines, a.heap>>10, b.heap>>10)
	if b.goroutines > a.goroutines+5 {
		t.Errorf("%d goroutines in the first cycles, %d in the last", a.goroutines, b.goroutines)
	}
	if b.heap > a.heap+1<<20 {
		t.Errorf("%d KiB in the first cycles, %d KiB in the last", a.heap>>10, b.heap>>10)
	}
	m := s.scrape()
	t.Logf("superseded %v, ping_timeout %v", m[reconnects(agentID, "superseded")], m[reconnects(agentID, "ping_timeout")])
	if n := m[reconnects(agentID, "superseded")] + m[reconnects(agentID, "ping_timeout")]; n < cycles {
		t.Errorf("%v links were lost, want at least %d", n, cycles)
	}
}
