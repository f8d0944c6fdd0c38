package hub

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// TestTwoKeys: the configuration must name the agent, the agent must announce
// the connector, and its credential must cover it.
func TestTwoKeys(t *testing.T) {
	for name, c := range map[string]struct {
		named, announced, scope []string
		ready                   bool
	}{
		"both keys":               {[]string{"a1"}, []string{"dir"}, nil, true},
		"agent is not named":      {[]string{"a2"}, []string{"dir"}, nil, false},
		"agent in another case":   {[]string{"A1"}, []string{"dir"}, nil, false},
		"not announced":           {[]string{"a1"}, []string{"other"}, nil, false},
		"nothing announced":       {[]string{"a1"}, []string{}, nil, false},
		"scope covers it":         {[]string{"a1"}, []string{"dir"}, []string{"dir"}, true},
		"scope is another's":      {[]string{"a1"}, []string{"dir"}, []string{"other"}, false},
		"scope covers nothing":    {[]string{"a1"}, []string{"dir"}, []string{}, false},
		"scope but not announced": {[]string{"a1"}, []string{"other"}, []string{"dir"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(dir(c.named...), &Connector{Name: "other"}))
			p := w.agent(login{id: "a1", connectors: c.announced, identity: &Identity{AgentID: "a1", Connectors: c.scope}})
			if ready, known := w.h.Ready("dir"); ready != c.ready || !known {
				t.Errorf("Ready is %v, %v", ready, known)
			}
			if got := slices.Contains(p.ack.Accepted, "dir"); got != c.ready {
				t.Errorf("the agent was told %v accepted, %v refused", p.ack.Accepted, p.ack.Refused)
			}
			if slices.Contains(p.ack.Refused, "dir") != (!c.ready && slices.Contains(c.announced, "dir")) {
				t.Errorf("the agent was told %v refused", p.ack.Refused)
			}
			if c.ready {
				w.dial().leave()
				return
			}
			cl := w.client("dir", "10.0.0.1:1")
			if o := cl.want(wire.ReasonNoAgent); o.Agent != "" {
				t.Errorf("agent %q", o.Agent)
			}
			wantRST(t, cl)
			w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "no_agent")
			w.wantMetric(1, "nowconnect_listener_errors_total", "connector", "dir", "type", "session")
		})
	}
}

func wantRST(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err == nil || isTimeout(err) {
		t.Errorf("got %v, want a reset", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func wantFIN(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("got %v, want FIN", err)
	}
}

func TestHelloIsHeldAgainstTheCredential(t *testing.T) {
	cfg := config(dir("a1", "a2"))
	cfg.MaxLinksPerAgent = 2
	for name, l := range map[string]login{
		"another agent's id":   {id: "a1", identity: &Identity{AgentID: "a2"}},
		"id in another case":   {id: "A1", identity: &Identity{AgentID: "a1"}},
		"one link too many":    {id: "a1", slot: 2},
		"the last slot of all": {id: "a1", slot: wire.MaxLinks - 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, cfg)
			p, err := w.shake(&l)
			if linkReason(t, err) != wire.ReasonRefused {
				t.Errorf("the agent got %v", err)
			}
			if r := linkReason(t, recv(t, p.hub)); r != wire.ReasonRefused {
				t.Errorf("the hub says %v", r)
			}
			if n := len(w.links("a1")) + len(w.links("a2")); n != 0 {
				t.Errorf("%d links", n)
			}
		})
	}
}

func TestHandshakeIsBoundedInTime(t *testing.T) {
	cfg := config(dir("a1"))
	cfg.HandshakeTimeout = 50 * time.Millisecond
	w := newWorld(t, cfg)
	_, h := tcpPair(t)
	err := w.h.ServeAgent(context.Background(), tunnel.NewNative(h, nil, nil), Identity{AgentID: "a1"}, "test")
	if linkReason(t, err) != wire.ReasonRefused {
		t.Errorf("got %v", err)
	}
}

// atWelcome is a hub's carrier that calls f when HELLO_ACK is to be written.
type atWelcome struct {
	tunnel.Carrier
	f func()
}

func (c *atWelcome) Write(p []byte) (int, error) {
	if wire.ParseHeader(p).Type == wire.TypeHelloAck {
		c.f()
	}
	return c.Carrier.Write(p)
}

// A client that comes while the agent's welcome is on its way is placed with
// that agent, and its OPEN does not overtake the welcome.
func TestClientDuringTheWelcome(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	a, h := tcpPair(t)
	var c *client
	hub := &atWelcome{Carrier: tunnel.NewNative(h, nil, nil)}
	hub.f = func() {
		c = w.client("dir", "10.0.0.1:1000")
		eventually(t, "the client is placed or refused", func() bool { return w.perLink("a1")[0] == 1 || len(c.out) == 1 })
	}
	w.wg.Go(func() { _ = w.h.ServeAgent(context.Background(), hub, Identity{AgentID: "a1"}, "test") })
	agent := tunnel.NewNative(a, nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := tunnel.SayHello(ctx, agent, wire.Hello{
		Version: wire.Version, AgentID: "a1", Instance: "i", Connectors: []string{"dir"}, Window: tunnel.DefaultWindow,
	}); err != nil {
		t.Fatal(err)
	}
	target := w.echo()
	l := tunnel.NewAgentLink(agent, tunnel.Config{OnOpen: func(s *tunnel.Session) {
		w.wg.Go(func() { serveTarget(s, target, nil) })
	}})
	w.wg.Go(func() { _ = l.Serve(context.Background()) })
	c.mustEcho()
	c.leave()
	l.Close(wire.ReasonShutdown, "")
}

// An agent that is gone before its welcome takes nobody with it.
func TestAgentGoneBeforeItsWelcome(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	a, h := tcpPair(t)
	var c *client
	hub := &atWelcome{Carrier: tunnel.NewNative(h, nil, nil)}
	hub.f = func() {
		c = w.client("dir", "10.0.0.1:1000")
		eventually(t, "the client is placed", func() bool { return w.perLink("a1")[0] == 1 })
		h.Close()
	}
	ended := make(chan error, 1)
	w.wg.Go(func() { ended <- w.h.ServeAgent(context.Background(), hub, Identity{AgentID: "a1"}, "test") })
	if _, err := tunnel.SayHello(t.Context(), tunnel.NewNative(a, nil, nil), wire.Hello{
		Version: wire.Version, AgentID: "a1", Instance: "i", Connectors: []string{"dir"}, Window: tunnel.DefaultWindow,
	}); err == nil {
		t.Error("welcomed")
	}
	if r := linkReason(t, recv(t, ended)); r != wire.ReasonLinkLost {
		t.Errorf("ended with %v", r)
	}
	c.want(wire.ReasonLinkLost)
	if n := len(w.links("a1")); n != 0 {
		t.Errorf("%d links left", n)
	}
}

func TestNoAgentsBeforeTheFirstConfiguration(t *testing.T) {
	w := newWorld(t, nil)
	_, err := w.shake(&login{id: "a1"})
	if linkReason(t, err) != wire.ReasonDraining {
		t.Errorf("got %v", err)
	}
}

// served opens n sessions, keeps them, and returns who serves each.
func (w *world) served(n int) (agents []string, clients []*client) {
	w.t.Helper()
	known := map[string]bool{}
	for _, s := range w.h.Sessions("dir") {
		known[s.Session] = true
	}
	for range n {
		clients = append(clients, w.dial())
		for _, s := range w.h.Sessions("dir") {
			if !known[s.Session] {
				known[s.Session] = true
				agents = append(agents, s.Agent)
			}
		}
	}
	return agents, clients
}

func TestBalance(t *testing.T) {
	for balance, want := range map[Balance][]string{
		BalanceFirst:         {"a1", "a1", "a1", "a1", "a1", "a1"},
		BalanceRoundRobin:    {"a2", "a3", "a1", "a2", "a3", "a1"},
		BalanceLeastSessions: {"a1", "a2", "a3", "a1", "a2", "a3"},
		"":                   {"a1", "a2", "a3", "a1", "a2", "a3"}, // least_sessions is the default
	} {
		t.Run(string(balance), func(t *testing.T) {
			k := dir("a1", "a2", "a3")
			k.Balance = balance
			w := newWorld(t, config(k))
			for _, id := range []string{"a3", "a2", "a1"} { // the order of the configuration counts
				w.agent(login{id: id})
			}
			if got, _ := w.served(len(want)); !slices.Equal(got, want) {
				t.Errorf("served by %v, want %v", got, want)
			}
		})
	}
}

func TestLeastSessionsCountsWhatIsLiveNow(t *testing.T) {
	w := newWorld(t, config(dir("a1", "a2")))
	w.agent(login{id: "a1"})
	w.agent(login{id: "a2"})
	_, cl := w.served(4)
	cl[1].leave() // both were a2's
	cl[3].leave()
	if got, _ := w.served(2); !slices.Equal(got, []string{"a2", "a2"}) {
		t.Errorf("served by %v", got)
	}
}

func TestBalanceFirstFallsBackAndReturns(t *testing.T) {
	k := dir("a1", "a2")
	k.Balance = BalanceFirst
	w := newWorld(t, config(k))
	w.agent(login{id: "a2"})
	first, _ := w.served(1)
	p := w.agent(login{id: "a1"})
	second, _ := w.served(1)
	p.conn.Close()
	eventually(t, "a1 is gone", func() bool { return len(w.links("a1")) == 0 })
	third, _ := w.served(1)
	if got := slices.Concat(first, second, third); !slices.Equal(got, []string{"a2", "a1", "a2"}) {
		t.Errorf("served by %v", got)
	}
}

func (w *world) perLink(id string) map[int]int {
	m := map[int]int{}
	for _, l := range w.links(id) {
		m[l.Link] += l.Sessions
	}
	return m
}

func TestSessionsSpreadOverAnAgentsLinks(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	for slot := range 3 {
		w.agent(login{id: "a1", slot: slot})
	}
	w.served(6)
	if m := w.perLink("a1"); m[0] != 2 || m[1] != 2 || m[2] != 2 {
		t.Errorf("sessions by link: %v", m)
	}
}

// A bulk transfer keeps new sessions off its link, as many sessions would.
func TestPlacementAvoidsABusyLink(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1", slot: 0})
	w.agent(login{id: "a1", slot: 1})
	bulk := w.dial()
	bulk.mustEcho()
	busy := 0
	if w.perLink("a1")[1] == 1 {
		busy = 1
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(done)
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := bulk.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(bulk, b); err != nil {
				return
			}
		}
	})
	eventually(t, "the hub sees the traffic", func() bool {
		w.h.mu.Lock()
		defer w.h.mu.Unlock()
		for _, l := range w.h.agents["a1"].links {
			if l.hello.Link == busy {
				return l.Rate() > 32*sessionRate
			}
		}
		return false
	})
	w.served(5)
	if m := w.perLink("a1"); m[busy] != 1 || m[1-busy] != 5 {
		t.Errorf("sessions by link: %v, with bulk on link %d", m, busy)
	}
}

func TestPlacementSkipsDrainingAndDeadLinks(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	draining := w.agent(login{id: "a1", slot: 0})
	dead := w.agent(login{id: "a1", slot: 1})
	w.agent(login{id: "a1", slot: 2})
	draining.Drain("test")
	dead.conn.Close()
	eventually(t, "the dead link is gone", func() bool { return len(w.links("a1")) == 2 })
	w.served(3)
	if m := w.perLink("a1"); m[0] != 0 || m[2] != 3 {
		t.Errorf("sessions by link: %v", m)
	}
	if !w.links("a1")[0].Draining {
		t.Error("Status does not show the drain")
	}
}

func TestPlacementTriesTheNextWhenAnAgentsMemoryIsFull(t *testing.T) {
	k := dir("a1", "a2")
	k.Balance = BalanceFirst
	cfg := config(k)
	cfg.AgentMemory = 2 * tunnel.DefaultWindow
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	w.agent(login{id: "a2"})
	if got, _ := w.served(3); !slices.Equal(got, []string{"a1", "a1", "a2"}) {
		t.Errorf("served by %v", got)
	}
}

func TestAgentMemoryIsALimit(t *testing.T) {
	cfg := config(dir("a1"))
	cfg.AgentMemory = tunnel.DefaultWindow + wire.MaxFrame // one session, and one with the least window
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	a, b := w.dial(), w.dial()
	cl := w.client("dir", "10.0.0.1:1")
	if o := cl.want(wire.ReasonLimit); o.Message != "agent_memory of agent a1" {
		t.Errorf("message %q", o.Message)
	}
	a.leave()
	b.leave()
	w.dial().leave()
	w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "limit")
	if n := w.h.agents["a1"].budget.Used(); n != 0 {
		t.Errorf("%d bytes of the budget are still taken", n)
	}
}

func TestSameInstanceAndSlotSupersedesAtOnce(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	old := w.agent(login{id: "a1"})
	other := w.agent(login{id: "a1", slot: 1})
	cl := w.dial() // on the old link: slot 0 is emptiest first
	fresh := w.agent(login{id: "a1"})
	if r := linkReason(t, recv(t, old.hub)); r != wire.ReasonSuperseded {
		t.Errorf("the old link ended with %v", r)
	}
	if r := linkReason(t, recv(t, old.ended)); r != wire.ReasonSuperseded {
		t.Errorf("the old agent was told %v", r)
	}
	cl.want(wire.ReasonLinkLost)
	wantRST(t, cl)
	if other.Ended() || fresh.Ended() {
		t.Error("another link ended too")
	}
	w.dial().leave()
	w.wantMetric(1, "nowconnect_tunnel_reconnects_total", "agent", "a1", "reason", "superseded")
}

// TestSupersedeDoesNotWaitForASilentOldLink blackholes the old link: its peer
// reads nothing and its socket is full.
func TestSupersedeDoesNotWaitForASilentOldLink(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	a, h := tcpPair(t)
	a.SetReadBuffer(1)
	h.SetWriteBuffer(1)
	w.wg.Go(func() {
		w.h.ServeAgent(context.Background(), tunnel.NewNative(h, nil, nil), Identity{AgentID: "a1"}, "test")
	})
	if _, err := tunnel.SayHello(context.Background(), tunnel.NewNative(a, nil, nil), wire.Hello{
		Version: 1, AgentID: "a1", Instance: "a1-i1", Connectors: []string{"dir"}, Window: wire.MaxWindow}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the link is there", func() bool { return len(w.links("a1")) == 1 })
	stuck := w.client("dir", "10.0.0.1:1")
	w.wg.Go(func() { io.Copy(stuck, neverEnding{}) })
	time.Sleep(50 * time.Millisecond)
	begin := time.Now()
	w.agent(login{id: "a1"})
	w.dial().leave()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the new link served after %v", d)
	}
	stuck.want(wire.ReasonLinkLost)
	eventually(t, "the old link is gone", func() bool { return len(w.links("a1")) == 1 })
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestNewerInstanceRetiresTheOlderWhichMayFinish(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	old := w.agent(login{id: "a1", instance: "old"})
	old1 := w.agent(login{id: "a1", instance: "old", slot: 1})
	a, b := w.dial(), w.dial()
	w.agent(login{id: "a1", instance: "new"})
	eventually(t, "the old agent is told to open no more", func() bool { return old.Draining() && old1.Draining() })
	a.mustEcho() // still lives
	w.dial().leave()
	for _, l := range w.links("a1") {
		if l.Draining != (l.Instance == "old") {
			t.Errorf("link %+v", l)
		}
	}
	a.leave()
	b.leave()
	for _, p := range []*peer{old, old1} {
		if r := linkReason(t, recv(t, p.hub)); r != wire.ReasonSuperseded {
			t.Errorf("ended with %v", r)
		}
	}
	w.dial().leave()
	w.wantMetric(1, "nowconnect_tunnel_links", "agent", "a1")
}

func TestRetiredLinkIsCutAfterDrainTimeout(t *testing.T) {
	cfg := config(dir("a1"))
	cfg.DrainTimeout = 100 * time.Millisecond
	w := newWorld(t, cfg)
	old := w.agent(login{id: "a1", instance: "old"})
	cl := w.dial()
	w.agent(login{id: "a1", instance: "new"})
	recv(t, old.hub)
	cl.want(wire.ReasonLinkLost)
}

func TestReconnectsAreCountedByReason(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	p := w.agent(login{id: "a1"})
	w.wantMetric(0, "nowconnect_tunnel_reconnects_total", "agent", "a1") // the first is none
	p.conn.Close()
	recv(t, p.hub)
	eventually(t, "gone", func() bool { return len(w.links("a1")) == 0 })
	p = w.agent(login{id: "a1"})
	w.wantMetric(1, "nowconnect_tunnel_reconnects_total", "agent", "a1", "reason", "link_lost")
	p.Link.Close(wire.ReasonShutdown, "agent stops")
	recv(t, p.hub)
	eventually(t, "gone", func() bool { return len(w.links("a1")) == 0 })
	w.agent(login{id: "a1", instance: "another"})
	w.wantMetric(1, "nowconnect_tunnel_reconnects_total", "agent", "a1", "reason", "shutdown")
	w.agent(login{id: "a1", slot: 1, instance: "another"}) // a second link is no reconnect
	w.wantMetric(2, "nowconnect_tunnel_reconnects_total", "agent", "a1")
}

// TestCredentialRevokedBetweenLoginAndHello: Apply judges the links that it
// finds, and one whose agent has not said HELLO yet is not among them.
func TestCredentialRevokedBetweenLoginAndHello(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	a, h := tcpPair(t)
	hub := make(chan error, 1)
	w.wg.Go(func() {
		hub <- w.h.ServeAgent(context.Background(), tunnel.NewNative(h, nil, nil), Identity{AgentID: "a1"}, "test")
	})
	// Half of HELLO is there when the configuration changes.
	hello, err := wire.AppendMessage(nil, wire.TypeHello, 0, &wire.Hello{
		Version: 1, AgentID: "a1", Instance: "i", Connectors: []string{"dir"}, Window: 1}, wire.MaxHello)
	if err != nil {
		t.Fatal(err)
	}
	a.Write(hello[:10])
	time.Sleep(20 * time.Millisecond)
	cfg := config(dir("a1"))
	cfg.StillValid = func(Identity) bool { return false }
	w.h.Apply(cfg)
	a.Write(hello[10:])
	if r := linkReason(t, recv(t, hub)); r != wire.ReasonRevoked {
		t.Errorf("ended with %v", r)
	}
	if n := len(w.links("a1")); n != 0 {
		t.Errorf("%d links", n)
	}
}

// TestForgottenNamesComeBackWhole removes an agent and a connector while a
// handshake and a connection are on their way, and brings them back: nobody
// may end up outside of the hub's books.
func TestForgottenNamesComeBackWhole(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	c, k := w.h.lookup(context.Background(), "dir")
	l := w.h.newLink(w.h.config(), nopCarrier(t), wire.Hello{Instance: "i", Link: 3, Connectors: []string{"dir"}, Window: 1}, Identity{AgentID: "a1"}, "test")
	w.h.Apply(config())
	w.h.Apply(config(dir("a1")))
	w.agent(login{id: "a1"})
	w.dial()
	s := &session{name: "s", conn: c, client: &Client{}, cancel: func() {}}
	if v := w.h.admit(s, k); v != nil {
		t.Fatal(v)
	}
	if n := len(w.h.Sessions("dir")); n != 2 {
		t.Errorf("%d sessions in the books, want 2", n)
	}
	w.h.dismiss(s)
	if err := w.h.register(l); err != nil {
		t.Fatal(err)
	}
	if n := len(w.links("a1")); n != 2 {
		t.Errorf("%d links in the books, want 2", n)
	}
	w.h.unregister(l, nil)
	l.Close(wire.ReasonShutdown, "")
}

func nopCarrier(t *testing.T) tunnel.Carrier {
	_, h := tcpPair(t)
	return tunnel.NewNative(h, nil, nil)
}

func TestCredentialNoLongerValidClosesTheLink(t *testing.T) {
	w := newWorld(t, config(dir("a1", "a2")))
	gone := w.agent(login{id: "a1"})
	stays := w.agent(login{id: "a2"})
	a, b := w.dial(), w.dial() // least sessions: one each
	cfg := config(dir("a1", "a2"))
	cfg.StillValid = func(id Identity) bool { return id.AgentID == "a2" }
	w.h.Apply(cfg)
	if r := linkReason(t, recv(t, gone.ended)); r != wire.ReasonRevoked {
		t.Errorf("the agent was told %v", r)
	}
	a.want(wire.ReasonRevoked)
	wantRST(t, a)
	b.mustEcho()
	if stays.Ended() {
		t.Error("the other agent's link ended too")
	}
	b.leave()
}

// TestPlacementTriesTheNextWhenALinkDies cuts the preferred agent's link again
// and again while clients come: some choose it just before it dies. One that
// was opened on it may be lost with it, but with another agent there nobody is
// told that there is none.
func TestPlacementTriesTheNextWhenALinkDies(t *testing.T) {
	k := dir("a1", "a2")
	k.Balance = BalanceFirst
	w := newWorld(t, config(k))
	w.agent(login{id: "a2"})
	echo := w.echo()
	for range 20 {
		p := w.agent(login{id: "a1", target: echo})
		clients := make([]*client, 10)
		for i := range clients {
			clients[i] = w.client("dir", "10.0.0.1:1")
			clients[i].CloseWrite()
			if i == len(clients)/2 {
				w.wg.Go(func() { p.conn.Close() })
			}
		}
		for _, c := range clients {
			if o := recv(t, c.out); o.Reason != wire.ReasonFin && o.Reason != wire.ReasonLinkLost {
				t.Errorf("ended with %v (%s)", o.Reason, o.Message)
			}
		}
		recv(t, p.hub)
	}
}
