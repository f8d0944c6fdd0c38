package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// What strangers try before they are known is tested against a real Caddy in
// modules/agentendpoint and not here: Origin headers, wrong, empty, doubled and
// huge tokens (TestRefusals), HTTP/2 (TestHTTP2IsToldToUpgradeItsVersion),
// bytes that are no HTTP (TestGarbage), a HELLO with another agent's id
// (TestHelloCannotNameAnotherAgent), handshakes with wrong lengths and frames
// (TestHostileHandshakes) or without an end (TestUnfinishedHandshakesAreBounded).
// Here are those who are known and turn bad, and crowds on both doors at once.

// badAgent is an agent that has logged in and speaks in raw frames.
type badAgent struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	ack  wire.HelloAck
}

// badAgent logs in as the second agent.
func (s *site) badAgent(connectors ...string) *badAgent {
	s.t.Helper()
	c, err := net.Dial("tcp", s.http)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(soon))
	fmt.Fprintf(c, "GET /tunnel HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\nNowconnect-Version: 1\r\n"+
		"Nowconnect-Agent: %s\r\nAuthorization: Bearer %s\r\n\r\n", hubName, agent2ID, token2)
	b := &badAgent{t: s.t, conn: c, r: bufio.NewReader(c)}
	resp, err := http.ReadResponse(b.r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		s.t.Fatalf("%v %v", resp, err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), soon)
	defer cancel()
	b.ack, err = tunnel.SayHello(ctx, tunnel.NewNative(c, b.r, nil), wire.Hello{
		Version: wire.Version, AgentID: agent2ID, Instance: "bad", Connectors: connectors, Window: 65536, Software: "bad/1",
	})
	if err != nil {
		s.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(soon))
	s.waitMetric(linksOf(agent2ID), 1) // the hub welcomes first and places clients a moment later
	return b
}

// send writes frames.
func (b *badAgent) send(frames ...[]byte) {
	b.t.Helper()
	if _, err := b.conn.Write(slices.Concat(frames...)); err != nil {
		b.t.Errorf("send: %v", err)
	}
}

// until reads frames up to one of this type, and answers pings.
func (b *badAgent) until(want wire.Type) (wire.Header, []byte) {
	b.t.Helper()
	for {
		var head [wire.HeaderLen]byte
		if _, err := io.ReadFull(b.r, head[:]); err != nil {
			b.t.Fatalf("no %v: %v", want, err)
		}
		h := wire.ParseHeader(head[:])
		p := make([]byte, h.Length)
		if _, err := io.ReadFull(b.r, p); err != nil {
			b.t.Fatalf("no %v: %v", want, err)
		}
		if h.Type == want {
			return h, p
		}
		if h.Type == wire.TypePing {
			b.send(wire.AppendPing(nil, wire.TypePong, wire.ParsePing(p)))
		}
	}
}

// alive checks that the hub still listens to this link.
func (b *badAgent) alive() {
	b.t.Helper()
	const token = 0x1234567890
	b.send(wire.AppendPing(nil, wire.TypePing, token))
	if _, p := b.until(wire.TypePong); wire.ParsePing(p) != token {
		b.t.Errorf("PONG with %x", p)
	}
}

// thrownOut checks that the hub ends the link and says why.
func (b *badAgent) thrownOut(message string) {
	b.t.Helper()
	_, p := b.until(wire.TypeClose)
	if r, m := wire.ParseReason(p); r != wire.ReasonProtocol || !strings.Contains(m, message) {
		b.t.Errorf("CLOSE with %v, %q, want protocol with %q", r, m, message)
	}
	if _, err := io.Copy(io.Discard, b.r); err != nil && !testpeer.IsReset(err) {
		b.t.Errorf("after CLOSE: %v, want the end", err)
	}
}

// opened takes the session that a client of connector bad brings, and accepts.
func (b *badAgent) opened(s *site) (*net.TCPConn, wire.CID, wire.Open) {
	b.t.Helper()
	c := s.dial("bad")
	h, p := b.until(wire.TypeOpen)
	var o wire.Open
	if err := wire.Decode(p, &o); err != nil {
		b.t.Fatal(err)
	}
	b.send(wire.AppendFrame(nil, wire.TypeOpened, h.CID, nil))
	return c, h.CID, o
}

// startWithBad has connector echo of a good agent, and connector bad for a bad
// one.
func startWithBad(t *testing.T) *site {
	t.Helper()
	return startSite(t, siteOptions{hub: []string{agent2Auth()}, connectors: []connector{
		{name: "echo", target: testpeer.Echo(t).Addr},
		{name: "bad", lines: []string{"agents " + agent2ID}},
	}})
}

func TestAgentThatBreaksTheProtocol(t *testing.T) {
	s := startWithBad(t)
	innocent := s.sessions(3)
	links := s.linksSince()
	data := func(cid wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeData, cid, []byte("x")) }
	lost := 0.0
	for name, c := range map[string]struct {
		frames  func(cid wire.CID) []byte // cid is an open session's
		message string                    // in the hub's CLOSE
	}{
		"length of 16 MiB": {func(cid wire.CID) []byte {
			return wire.AppendHeader(nil, wire.Header{Type: wire.TypeData, Length: 1<<24 - 1, CID: cid})
		}, "too long"},
		"length one too much": {func(cid wire.CID) []byte {
			return wire.AppendHeader(nil, wire.Header{Type: wire.TypeData, Length: wire.MaxData + 1, CID: cid})
		}, "too long"},
		"optional and too long": {func(wire.CID) []byte {
			return wire.AppendHeader(nil, wire.Header{Type: wire.OptionalBit | 0x7f, Length: wire.MaxData + 1})
		}, "too long"},
		"unknown mandatory frame":   {func(wire.CID) []byte { return wire.AppendFrame(nil, 0x55, 0, []byte("x")) }, "unknown mandatory frame"},
		"data for an unknown cid":   {func(cid wire.CID) []byte { return data(cid + 1000) }, "never opened"},
		"data for no cid":           {func(wire.CID) []byte { return data(0) }, "malformed"},
		"opened for an unknown cid": {func(cid wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeOpened, cid+1000, nil) }, "never opened"},
		"opened twice":              {func(cid wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeOpened, cid, nil) }, "not allowed here"},
		"open from an agent": {func(cid wire.CID) []byte {
			return wire.AppendFrame(nil, wire.TypeOpen, cid+1, []byte(`{"connector":"echo","window":1}`))
		}, "not allowed here"},
		"hello again":     {func(wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeHello, 0, []byte("{}")) }, "malformed"},
		"empty data":      {func(cid wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeData, cid, nil) }, "malformed"},
		"short ping":      {func(wire.CID) []byte { return wire.AppendFrame(nil, wire.TypePing, 0, []byte("x")) }, "malformed"},
		"credit overflow": {func(cid wire.CID) []byte { return wire.AppendCredit(nil, cid, 1<<32-1) }, "outstanding"},
		"credit overflow by and by": {func(cid wire.CID) []byte {
			return slices.Concat(wire.AppendCredit(nil, cid, wire.MaxWindow-1), wire.AppendCredit(nil, cid, wire.MaxWindow-1))
		}, "outstanding"},
		"close without a reason":           {func(wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeClose, 0, nil) }, "malformed"},
		"credential that nobody asked for": {func(wire.CID) []byte { return wire.AppendFrame(nil, wire.TypeAuth, 0, []byte("x")) }, "not allowed here"},
	} {
		t.Run(name, func(t *testing.T) {
			b := s.badAgent("bad")
			b.t = t
			client, cid, _ := b.opened(s)
			b.send(c.frames(cid))
			b.thrownOut(c.message)
			if err := end(t, client, soon); !testpeer.IsReset(err) {
				t.Errorf("its client sees %v, want a reset", err)
			}
			lost++
			s.waitMetric(linksOf(agent2ID), 0)
			for _, c := range innocent {
				roundTrip(t, c, "unharmed")
			}
		})
	}
	s.waitMetric(closed("bad", "link_lost"), lost)
	s.waitMetric(errorsOf("bad", "session"), lost)
	s.waitMetric(reconnects(agent2ID, "protocol"), lost-1)
	for link, since := range s.linksSince() {
		if !since.Equal(links[link]) {
			t.Errorf("link %s of the good agent is from %v, was from %v", link, since, links[link])
		}
	}
	if v := s.metric(errorsOf("echo", "session")); v != 0 {
		t.Errorf("%s is %v", errorsOf("echo", "session"), v)
	}
}

// What may be newer than this hub, or was under way when a session ended, does
// no harm.
func TestAgentWithUnknownFramesThatAreOptional(t *testing.T) {
	s := startWithBad(t)
	b := s.badAgent("bad")
	client, cid, _ := b.opened(s)
	b.send(wire.AppendFrame(nil, wire.OptionalBit|1, 0, []byte("news")), wire.AppendFrame(nil, wire.OptionalBit|0x7f, cid, make([]byte, wire.MaxData)),
		wire.AppendFrame(nil, wire.OptionalBit|2, 4711, nil), wire.AppendFrame(nil, wire.TypeData, cid, []byte("hello")))
	got := make([]byte, 5)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
		t.Errorf("the client gets %q, %v", got, err)
	}
	b.send(wire.AppendReason(nil, cid, wire.ReasonRst, ""))
	if err := end(t, client, soon); !testpeer.IsReset(err) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	b.send(wire.AppendFrame(nil, wire.TypeData, cid, []byte("late")), wire.AppendFrame(nil, wire.TypeFin, cid, nil), wire.AppendCredit(nil, cid, 1<<32-1))
	b.alive()
}

// A client that does not read gets no credit for its agent. An agent that sends
// on all the same loses the session, and nothing else.
func TestAgentThatIgnoresCredit(t *testing.T) {
	s := startWithBad(t)
	innocent := s.sessions(3)
	b := s.badAgent("bad")
	neighbour, neighbourCID, _ := b.opened(s)
	victim, cid, _ := b.opened(s)
	_ = victim.SetReadBuffer(4096)

	frame := wire.AppendFrame(nil, wire.TypeData, cid, make([]byte, wire.MaxData))
	over := make(chan struct{})
	sent := make(chan int, 1)
	go func() { // until the RST is here; the reader must not wait for the writer
		n := 0
		defer func() { sent <- n }()
		for {
			select {
			case <-over:
				return
			default:
			}
			if _, err := b.conn.Write(frame); err != nil {
				return
			}
			n += wire.MaxData
		}
	}()
	h, p := b.until(wire.TypeRst)
	close(over)
	n := <-sent
	if r, m := wire.ParseReason(p); h.CID != cid || r != wire.ReasonOverflow || !strings.Contains(m, "beyond the credit") {
		t.Errorf("RST of cid %d with %v, %q, want cid %d and overflow", h.CID, r, m, cid)
	}
	t.Logf("reset after %d KiB", n>>10)
	if most := 64 << 20; n > most {
		t.Errorf("reset after %d bytes, want fewer than %d", n, most)
	}
	overflow := func(side, connector string) string {
		return fmt.Sprintf("nowconnect_queue_overflow_total{connector=%q,side=%q}", connector, side)
	}
	s.waitMetric(overflow("hub", "bad"), 1)
	s.waitMetric(errorsOf("bad", "session"), 1)
	s.waitMetric(closed("bad", "overflow"), 1)
	s.waitMetric(active("bad"), 1)
	_ = victim.SetReadDeadline(time.Now().Add(soon))
	if _, err := io.Copy(io.Discard, victim); !testpeer.IsReset(err) {
		t.Errorf("the client sees %v after what it was sent in time, want a reset", err)
	}

	// The other session of this link, and other agents, know nothing of it.
	b.send(wire.AppendFrame(nil, wire.TypeData, neighbourCID, []byte("hello")))
	got := make([]byte, 5)
	if _, err := io.ReadFull(neighbour, got); err != nil || string(got) != "hello" {
		t.Errorf("the link's other client gets %q, %v", got, err)
	}
	b.alive()
	for _, c := range innocent {
		roundTrip(t, c, "unharmed")
	}
	for _, series := range []string{overflow("hub", "echo"), overflow("agent", "echo"), overflow("agent", "bad"), errorsOf("echo", "session")} {
		if v := s.metric(series); v != 0 {
			t.Errorf("%s is %v", series, v)
		}
	}
}

// The hub's configuration says who serves what, and an agent cannot add to it.
func TestAgentThatClaimsAnothersConnector(t *testing.T) {
	right, wrong := greeter(t, '1'), greeter(t, '2')
	s := startSite(t, siteOptions{hub: []string{agent2Auth()}, connectors: []connector{
		{name: "echo", target: right.Addr},
		{name: "bad", target: wrong.Addr, lines: []string{"agents " + agent2ID}},
	}})
	s.o.connectors[0].target = wrong.Addr
	thief := s.agent(s.asAgent2)
	s.eventually("the claim is logged", func() bool {
		l := logLine(s.logged(), "agent announces connectors that the configuration does not give it")
		return l["level"] == "error" && l["agent"] == agent2ID && slices.Equal(names(l["refused"]), []string{"echo"}) && slices.Equal(names(l["accepted"]), []string{"bad"})
	})
	if !strings.Contains(thief.logged(), "the hub refuses connectors that this agent offers") {
		t.Error("the agent is not told")
	}
	greeting := func(connector string) byte {
		c := s.dial(connector)
		defer c.Close()
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Errorf("a client of %s: %v", connector, err)
		}
		return b[0]
	}
	for range 20 {
		if by := greeting("echo"); by != '1' {
			t.Fatalf("served by agent %c", by)
		}
	}
	if by := greeting("bad"); by != '2' {
		t.Errorf("its own connector is served by agent %c", by)
	}
	s.waitMetric(`nowconnect_agents_connected{connector="echo"}`, 1)
	// Nor does it come in when the rightful one is gone.
	s.first.stop()
	s.waitMetric(`nowconnect_agents_connected{connector="echo"}`, 0)
	s.refused("echo", "127.0.0.1")
	if n := wrong.Accepted(); n != 1 {
		t.Errorf("the claimed connector's target got %d connections, want the one of its own connector", n)
	}
}

// quick runs f several times and wants one run below a second: a busy machine
// slows some, a full queue of strangers all of them.
func quick(t *testing.T, what string, f func()) {
	t.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		f()
		best = min(best, time.Since(began))
		if best < time.Second {
			break
		}
	}
	t.Logf("%s in %v", what, best.Round(time.Millisecond))
	if best >= time.Second {
		t.Errorf("%s takes %v at best, want less than 1s", what, best)
	}
}

// silent connects n times to addr and says nothing.
func silent(t *testing.T, n int, addr string) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

// Strangers who connect and say nothing, on every door at once: agents with and
// without TLS, clients with and without.
func TestSilentCrowdsKeepNobodyOut(t *testing.T) {
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{hub: []string{agent2Auth()}, connectors: []connector{
		{name: "echo", target: echo, lines: []string{"agents " + agentID + " " + agent2ID}},
		{name: "overtls", target: echo},
		{name: "crowded", target: testpeer.Echo(t).Addr, lines: []string{"max_sessions 1000"}},
	}})
	withTLS := strings.Replace(s.caddyfile(), "nowconnect overtls", "tls\n\t\t\t\tnowconnect overtls", 1)
	if status, answer := s.post(withTLS); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	for _, addr := range []string{s.http, s.https, s.addr("overtls"), s.addr("crowded")} {
		silent(t, 1000, addr)
	}
	s.waitMetric(active("crowded"), 1000) // who needs no greeting is served, up to the limit
	quick(t, "a client", func() {
		if !s.serves("echo") {
			t.Error("not served")
		}
	})
	quick(t, "a client with TLS", func() {
		c := tls.Client(s.dial("overtls"), &tls.Config{RootCAs: s.ca.Pool, ServerName: hubName})
		roundTrip(t, c, "hello")
		_ = c.Close()
	})
	quick(t, "an agent", func() { s.agent(s.asAgent2).kill() })
	quick(t, "a request", func() { s.get("/healthz") })
	s.refused("crowded", "127.0.0.1")
	s.waitMetric(closed("crowded", "limit"), 1)
	s.waitMetric(active("overtls"), 0) // nobody is a client before the end of the TLS handshake
}

// Strangers who use up the hub's file descriptors make it deaf for as long as
// they stay, and no longer. The listener of caddy-l4 alone would be deaf from then
// on; that of the network nowconnect tries again.
func TestListenerSurvivesFileDescriptorExhaustion(t *testing.T) {
	s := startSite(t, siteOptions{process: true, files: 80, network: "nowconnect/"})
	roundTrip(t, s.dial("echo"), "before")
	accepts := fmt.Sprintf("nowconnect_listener_accept_errors_total{connector=%q}", "echo")
	before := s.metric(accepts)
	var crowd []net.Conn
	leave := func() {
		for _, c := range crowd {
			c.Close()
		}
		crowd = nil
	}
	t.Cleanup(leave)
	var waiting []*net.TCPConn
	s.eventually("the hub cannot accept", func() bool {
		if len(crowd) < 200 {
			c, err := net.Dial("tcp", s.http)
			if err != nil {
				t.Fatal(err)
			}
			crowd = append(crowd, c)
		}
		if len(crowd)%20 == 0 && len(waiting) < 10 {
			waiting = append(waiting, s.dial("echo"))
		}
		return strings.Contains(s.logged(), "cannot accept clients for now")
	})
	leave()
	s.eventually("the hub accepts again", func() bool { return s.serves("echo") })
	roundTrip(t, waiting[len(waiting)-1], "I have waited")
	if n := s.metric(accepts); n < before+1 {
		t.Errorf("%v accept errors, %v before", n, before)
	}
}

// A token is in its two files and nowhere else, nor is one that was tried.
// modules/nowconnect has TestSecretsStaySecret about the hub by itself.
func TestTokensAppearNowhere(t *testing.T) {
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true, hub: []string{agent2Auth()}})
	const wrong = "wrong-horse-battery-staple-0000000000"
	file := s.write("wrong", wrong+"\n")
	refused := s.agentProcess(func(c *agent.Config) { c.AgentID, c.TokenFile = agent2ID, file })
	s.eventually("a wrong token is refused", func() bool { return strings.Contains(refused.Output(), "the hub cannot be used") })
	good := s.agentProcess(nil)
	s.waitMetric(linksOf(agentID), nearLinks)
	s.badAgent("bad") // sends token2
	roundTrip(t, s.dial("echo"), "hello")

	_, config := s.adminDo(http.MethodGet, "/config/", "", "")
	_, agents := s.adminDo(http.MethodGet, "/nowconnect/agents", "", "")
	_, sessions := s.adminDo(http.MethodGet, "/nowconnect/sessions", "", "")
	_, adminMetrics := s.adminDo(http.MethodGet, "/metrics", "", "")
	_, metrics := s.get("/metrics")
	_, ready := s.get("/readyz")
	_, command := s.adminDo(http.MethodGet, "/debug/pprof/cmdline", "", "")
	_, stacks := s.adminDo(http.MethodGet, "/debug/pprof/goroutine?debug=2", "", "")
	_, vars := s.adminDo(http.MethodGet, "/debug/vars", "", "")
	if !strings.Contains(command, "--config") || !strings.Contains(stacks, "goroutine ") || !strings.Contains(vars, "cmdline") {
		t.Errorf("Caddy's debug pages are elsewhere: %.80q %.80q %.80q", command, stacks, vars)
	}
	places := map[string]string{
		"pprof's command line": command, "pprof's stacks": stacks, "expvar": vars,
		"/config/": config, "agents": agents, "sessions": sessions, "admin metrics": adminMetrics, "metrics": metrics, "readyz": ready,
		"the hub's output": s.child.Output(), "the agent's output": good.Output(), "the refused agent's output": refused.Output(),
	}
	if !strings.Contains(s.logged(), "agent login failed") || !strings.Contains(s.logged(), `"level":"debug"`) || !strings.Contains(good.Output(), "link is up") {
		t.Error("the logs do not tell enough to prove anything")
	}
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "token" || d.Name() == "wrong" {
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
		for _, secret := range []string{token, token2, wrong} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has the token %s", place, secret)
			}
		}
	}
}
