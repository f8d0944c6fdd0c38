package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// shutdownNotice is what an LDAP client gets from a hub or an agent that leaves.
var shutdownNotice = ldapNotice(52, "NowConnect: shutting down")

// logLine returns the last line of a JSON log with this message; nil when
// there is none.
func logLine(log, msg string) (line map[string]any) {
	for l := range strings.Lines(log) {
		var m map[string]any
		if json.Unmarshal([]byte(l), &m) == nil && m["msg"] == msg {
			line = m
		}
	}
	return line
}

// names reads a list of words from a log line, sorted.
func names(v any) (out []string) {
	list, _ := v.([]any)
	for _, n := range list {
		out = append(out, fmt.Sprint(n))
	}
	slices.Sort(out)
	return out
}

// nameOf is the hub's name for a client's session.
func (s *site) nameOf(c *net.TCPConn, connector string) string {
	s.t.Helper()
	for _, x := range s.liveSessions(connector) {
		if x.Client == c.LocalAddr().String() {
			return x.Session
		}
	}
	s.t.Fatalf("the hub knows no session of %v", c.LocalAddr())
	return ""
}

// finish ends a session in order and sees that the other side does, too.
func finish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	roundTrip(t, c, "still served")
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if err := end(t, c, soon); err != nil {
		t.Errorf("a session that finishes sees %v, want FIN", err)
	}
}

// modules/nowconnect tests the hub's exit with one session; here agents are
// processes, too, and the sessions are of each kind.
func TestSIGTERMDrainsTheHub(t *testing.T) {
	const patience = 3 * time.Second
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true, hub: []string{"drain_timeout " + patience.String()}, connectors: []connector{
		{name: "echo", target: echo},
		{name: "ldap", target: echo, lines: []string{"protocol ldap"}},
	}})
	p := s.agentProcess(nil)
	s.waitMetric(linksOf(agentID), nearLinks)
	clients := s.sessions(3)
	finishes, stays, later := clients[0], clients[1], clients[2]
	ldap := s.dial("ldap")
	roundTrip(t, ldap, ldapRequest)
	want := []string{s.nameOf(stays, "echo"), s.nameOf(ldap, "ldap")}
	slices.Sort(want)

	asked := time.Now()
	s.child.Signal(syscall.SIGTERM)
	s.eventually("the hub drains", func() bool { return logLine(s.logged(), "draining") != nil })
	s.eventually("the agent hears of it", func() bool { return strings.Contains(p.Output(), "the hub drains this link") })
	// Caddy stops its apps in no fixed order: the listener may be closed
	// already. A client that still gets in is refused in the way of its
	// connector. TestHubTellsWhyItTakesNoClients shows the reason.
	if c, err := net.Dial("tcp", s.addr("echo")); err == nil {
		defer c.Close()
		if err := end(t, c, soon); err != nil {
			t.Errorf("a client that comes too late sees %v, want FIN", err)
		}
	}
	if c, err := net.Dial("tcp", s.addr("ldap")); err == nil {
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(soon))
		seesNotice(t, c, shutdownNotice)
	}
	finish(t, finishes)
	finish(t, later)
	roundTrip(t, stays, "still served")
	roundTrip(t, ldap, ldapRequest)

	if err := end(t, stays, soon); err != nil {
		t.Errorf("a session that is cut sees %v, want FIN", err)
	}
	if took := time.Since(asked); took < patience {
		t.Errorf("cut %v after the signal, drain_timeout is %v", took, patience)
	}
	seesNotice(t, ldap, shutdownNotice)
	if code := s.child.Wait(soon); code != 0 {
		t.Errorf("exit status %d", code)
	}
	report := logLine(s.logged(), "hub drained")
	if report["finished"] != 2.0 || report["cut"] != 2.0 || report["links"] != float64(nearLinks) || !slices.Equal(names(report["cut_sessions"]), want) {
		t.Errorf("the report is %v, want 2 finished and %v cut", report, want)
	}

	restart := time.Now()
	if err := s.startProcess(s.caddyfile()); err != nil {
		t.Fatal(err)
	}
	s.servedAgain(restart)
	s.waitMetric(linksOf(agentID), nearLinks)
}

func TestHubTellsWhyItTakesNoClients(t *testing.T) {
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{connectors: []connector{
		{name: "echo", target: echo},
		{name: "ldap", target: echo, lines: []string{"protocol ldap"}},
	}})
	c := s.sessions(1)[0]
	var status int
	var report string
	var wg sync.WaitGroup
	wg.Go(func() {
		status, report = s.adminDo(http.MethodPost, "/nowconnect/drain", "application/json", `{"timeout": "1m"}`)
	})
	s.eventually("the hub drains", func() bool {
		_, body := s.adminDo(http.MethodGet, "/nowconnect/agents", "", "")
		return strings.Contains(body, `"draining": true,`)
	})
	if err := end(t, s.dial("echo"), soon); err != nil {
		t.Errorf("a new client sees %v, want FIN", err)
	}
	seesNotice(t, s.dial("ldap"), shutdownNotice)
	s.waitMetric(closed("echo", "draining"), 1)
	s.waitMetric(closed("ldap", "draining"), 1)
	finish(t, c)
	wg.Wait()
	if status != http.StatusOK || !strings.Contains(report, `"finished": 1,`) {
		t.Errorf("the report: %d %s", status, report)
	}
	s.waitMetric(linksOf(agentID), 0)
}

func TestSIGTERMDrainsTheAgent(t *testing.T) {
	const patience = 3 * time.Second
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true, connectors: []connector{
		{name: "echo", target: echo},
		{name: "ldap", target: echo, lines: []string{"protocol ldap"}},
	}})
	drain := func(c *agent.Config) { c.DrainTimeout = patience }
	p := s.agentProcess(drain)
	s.waitMetric(linksOf(agentID), nearLinks)
	clients := s.sessions(3)
	finishes, stays, later := clients[0], clients[1], clients[2]
	ldap := s.dial("ldap")
	roundTrip(t, ldap, ldapRequest)
	want := []string{"echo/" + s.nameOf(stays, "echo"), "ldap/" + s.nameOf(ldap, "ldap")}
	slices.Sort(want)

	asked := time.Now()
	p.Signal(syscall.SIGTERM)
	s.waitMetric(`nowconnect_agents_connected{connector="echo"}`, 0)
	// The hub has nobody else to place a client with.
	s.refused("echo", "127.0.0.1")
	seesNotice(t, s.dial("ldap"), ldapNotice(52, "NowConnect: no agent connected"))
	s.waitMetric(closed("echo", "no_agent"), 1)
	s.waitMetric(closed("ldap", "no_agent"), 1)
	finish(t, finishes)
	finish(t, later)
	roundTrip(t, stays, "still served")
	roundTrip(t, ldap, ldapRequest)

	if err := end(t, stays, soon); err != nil {
		t.Errorf("a session that is cut sees %v, want FIN", err)
	}
	if took := time.Since(asked); took < patience {
		t.Errorf("cut %v after the signal, drain_timeout is %v", took, patience)
	}
	seesNotice(t, ldap, shutdownNotice)
	if code := p.Wait(soon); code != 0 {
		t.Errorf("exit status %d", code)
	}
	report := logLine(p.Output(), "drained, and cut sessions that were still live")
	if report["finished"] != 2.0 || report["cut"] != 2.0 || report["lost"] != 0.0 || !slices.Equal(names(report["cut_sessions"]), want) {
		t.Errorf("the report is %v, want 2 finished and %v cut", report, want)
	}
	s.waitMetric(linksOf(agentID), 0)
	s.waitMetric(closed("echo", "fin"), 2)
	s.waitMetric(closed("echo", "shutdown"), 1)
	s.waitMetric(closed("ldap", "shutdown"), 1)

	restart := time.Now()
	s.agentProcess(drain)
	s.servedAgain(restart)
}

// greeter tells its name to everyone and then echoes.
func greeter(t *testing.T, name byte) *testpeer.Target {
	t.Helper()
	return testpeer.Serve(t, func(c *net.TCPConn) {
		if _, err := c.Write([]byte{name}); err != nil {
			return
		}
		if _, err := io.Copy(c, c); err == nil {
			c.CloseWrite()
		}
	})
}

// With a second agent nobody notices that the first one leaves: clients come
// all the time, and each is served by one or the other.
func TestClientsGoToTheOtherAgentWhileOneDrains(t *testing.T) {
	first, second := greeter(t, '1'), greeter(t, '2')
	s := startSite(t, siteOptions{
		process: true, race: true, noAgent: true, hub: []string{agent2Auth()},
		connectors: []connector{{name: "echo", target: first.Addr, lines: []string{"agents " + agentID + " " + agent2ID, "balance first"}}},
	})
	p := s.agentProcess(func(c *agent.Config) { c.DrainTimeout = soon })
	s.o.connectors[0].target = second.Addr
	s.agentProcess(s.asAgent2)
	s.waitMetric(linksOf(agentID), nearLinks)
	s.waitMetric(linksOf(agent2ID), nearLinks)

	greeted := func(c net.Conn) byte {
		t.Helper()
		b, err := bufio.NewReaderSize(c, 16).ReadByte() // nothing follows unasked
		if err != nil {
			t.Errorf("a client is not served: %v", err)
		}
		return b
	}
	held := s.dial("echo")
	if by := greeted(held); by != '1' {
		t.Fatalf("served by %c, want the first agent", by)
	}
	p.Signal(syscall.SIGTERM)
	var by []byte
	for deadline := time.Now().Add(soon); time.Now().Before(deadline) && strings.Count(string(by), "2") < 50; {
		c := s.dial("echo")
		by = append(by, greeted(c))
		_ = c.Close()
	}
	if n := strings.Count(string(by), "2"); n < 50 || strings.Trim(string(by), "1") != strings.Repeat("2", n) {
		t.Errorf("served by %s, want the second agent from some client on", by)
	}
	finish(t, held)
	if code := p.Wait(soon); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if report := logLine(p.Output(), "drained"); report["cut"] != 0.0 {
		t.Errorf("the report is %v, want nothing cut", report)
	}
	m := s.scrape()
	for series, v := range m {
		if strings.HasPrefix(series, "nowconnect_sessions_closed_total") && !strings.Contains(series, `"fin"`) && !strings.Contains(series, `"rst"`) && v != 0 {
			t.Errorf("%s is %v", series, v)
		}
	}
}
