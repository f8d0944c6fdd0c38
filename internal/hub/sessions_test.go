package hub

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestSessionIsToldWhole(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	cl := w.dial()
	ss := w.h.Sessions("")
	if len(ss) != 1 || ss[0].Agent != "a1" || ss[0].BytesC2A != 4 || ss[0].BytesA2C != 4 || ss[0].Connector != "dir" {
		t.Errorf("Sessions: %+v", ss)
	}
	if n := len(w.h.Sessions("other")); n != 0 {
		t.Errorf("%d sessions of another connector", n)
	}
	w.wantMetric(1, "nowconnect_tcp_active_connections", "connector", "dir")
	w.wantMetric(0, "nowconnect_sessions_closed_total", "connector", "dir")
	o := cl.leave()
	if o.Agent != "a1" || o.BytesC2A != 4 || o.BytesA2C != 4 || o.Duration <= 0 || o.Session != ss[0].Session ||
		o.Decision.Outcome != authz.Allow || o.Decision.Reason != "allow_all" {
		t.Errorf("outcome %+v", o)
	}
	w.wantMetric(0, "nowconnect_tcp_active_connections", "connector", "dir")
	w.wantMetric(1, "nowconnect_tcp_connections_total", "connector", "dir")
	w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "fin")
	w.wantMetric(1, "nowconnect_open_seconds", "connector", "dir")
	w.wantMetric(1, "nowconnect_connection_duration_seconds", "connector", "dir")
	w.wantMetric(4, "nowconnect_tcp_bytes_total", "connector", "dir", "direction", "a2c")
	w.wantMetric(1, "nowconnect_pdp_decisions_total", "connector", "dir", "result", "allow")
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		cfg     func(*Config, *Connector)
		live    []string // addresses of clients that are in
		refused string
		admit   string // one that is let in nevertheless; empty = nobody is
		message string
	}{
		"hub": {func(c *Config, _ *Connector) { c.MaxSessions = 2 },
			[]string{"10.0.0.1:1", "10.0.0.2:1"}, "10.0.0.3:1", "", "max_sessions 2 of the hub"},
		"connector": {func(_ *Config, k *Connector) { k.MaxSessions = 2 },
			[]string{"10.0.0.1:1", "10.0.0.2:1"}, "10.0.0.3:1", "", "max_sessions 2 of the connector"},
		"client": {func(_ *Config, k *Connector) { k.MaxSessionsPerClient = 2 },
			[]string{"10.0.0.1:1", "10.0.0.1:2"}, "10.0.0.1:3", "10.0.0.2:1", "max_sessions_per_client 2"},
		"client, IPv4-mapped": {func(_ *Config, k *Connector) { k.MaxSessionsPerClient = 2 },
			[]string{"10.0.0.1:1", "[::ffff:10.0.0.1]:2"}, "[::ffff:a00:1]:3", "[::ffff:10.0.0.2]:1", "max_sessions_per_client 2"},
		"client, IPv6": {func(_ *Config, k *Connector) { k.MaxSessionsPerClient = 1 },
			[]string{"[2001:db8::1]:1"}, "[2001:0db8:0::1]:2", "[2001:db8::2]:1", "max_sessions_per_client 1"},
	} {
		t.Run(name, func(t *testing.T) {
			k := dir("a1")
			cfg := config(k)
			c.cfg(cfg, k)
			w := newWorld(t, cfg)
			w.agent(login{id: "a1"})
			var in []*client
			for _, a := range c.live {
				cl := w.client("dir", a)
				cl.mustEcho()
				in = append(in, cl)
			}
			out := w.client("dir", c.refused)
			if o := out.want(wire.ReasonLimit); o.Message != c.message {
				t.Errorf("message %q, want %q", o.Message, c.message)
			}
			wantRST(t, out)
			if c.admit != "" {
				cl := w.client("dir", c.admit)
				cl.mustEcho()
				cl.leave()
			}
			in[0].leave()
			again := w.client("dir", c.refused)
			again.mustEcho()
			again.leave()
			w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "limit")
		})
	}
}

func TestAllowCIDRs(t *testing.T) {
	k := dir("a1")
	k.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	w := newWorld(t, config(k))
	w.agent(login{id: "a1"})
	for addr, ok := range map[string]bool{
		"10.1.2.3:1": true, "[::ffff:10.1.2.3]:1": true, "[2001:db8::9]:1": true,
		"11.0.0.1:1": false, "[::ffff:11.0.0.1]:1": false, "[2001:db9::1]:1": false, "127.0.0.1:1": false,
	} {
		cl := w.client("dir", addr)
		if ok {
			cl.mustEcho()
			cl.leave()
			continue
		}
		cl.want(wire.ReasonDenied)
		wantRST(t, cl)
	}
	w.wantMetric(3, "nowconnect_pdp_decisions_total", "connector", "dir") // nobody asks policy about the others
}

func TestDecisions(t *testing.T) {
	for name, c := range map[string]struct {
		d       authz.Decision
		reason  wire.Reason
		message string
		result  string
		errors  float64
	}{
		"deny":                   {authz.Decision{Outcome: authz.Deny, Reason: "rule 7"}, wire.ReasonDenied, "rule 7", "deny", 0},
		"error":                  {authz.Decision{Outcome: authz.Error, Err: errors.New("pdp is down")}, wire.ReasonPDPError, "pdp is down", "error", 1},
		"the zero value":         {authz.Decision{}, wire.ReasonPDPError, "", "error", 1},
		"an outcome from nobody": {authz.Decision{Outcome: 77, Reason: "?"}, wire.ReasonPDPError, "?", "error", 1},
	} {
		t.Run(name, func(t *testing.T) {
			k := dir("a1")
			k.Decider = authz.DeciderFunc(func(context.Context, *authz.Request) authz.Decision { return c.d })
			w := newWorld(t, config(k))
			var dialed atomic.Bool
			w.agent(login{id: "a1", target: w.serve(func(tc net.Conn) { dialed.Store(true); tc.Close() })})
			cl := w.client("dir", "10.0.0.1:1")
			_, late := cl.Write([]byte("secret"))
			o := cl.want(c.reason)
			if o.Message != c.message || o.Agent != "" {
				t.Errorf("outcome %+v", o)
			}
			if late == nil { // else the write has met the reset, and a read sees only the end
				wantRST(t, cl)
			}
			if dialed.Load() {
				t.Error("the target was dialed")
			}
			w.wantMetric(1, "nowconnect_pdp_decisions_total", "connector", "dir", "result", c.result)
			w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", c.reason.String())
			w.wantMetric(c.errors, "nowconnect_listener_errors_total", "connector", "dir", "type", "pdp")
		})
	}
}

func TestRequestNamesWhoAndWhat(t *testing.T) {
	k := dir("a1")
	got := make(chan *authz.Request, 2)
	k.Decider = authz.DeciderFunc(func(_ context.Context, r *authz.Request) authz.Decision {
		got <- r
		return authz.Decision{Outcome: authz.Deny}
	})
	w := newWorld(t, config(k))
	o := w.client("dir", "[::ffff:10.0.0.1]:77").want(wire.ReasonDenied)
	r := recv(t, got)
	if r.Subject.Type != "ip" || r.Subject.ID != "10.0.0.1" || r.Action.Name != "connect" ||
		r.Resource.Type != "connector" || r.Resource.ID != "dir" {
		t.Errorf("%+v", r)
	}
	for key, want := range map[string]any{"cid": o.Session, "source_ip": "10.0.0.1", "source_port": 77, "listener": "127.0.0.1:389", "hub": "hub-1"} {
		if r.Context[key] != want {
			t.Errorf("context %s is %v, want %v", key, r.Context[key], want)
		}
	}
	_, h := tcpPair(t)
	w.h.ServeClient(context.Background(), &Client{Connector: "dir", Conn: h, Addr: netip.MustParseAddrPort("10.0.0.1:1"),
		SNI: "ldap.example.com", Subject: &authz.Entity{Type: "cert", ID: "CN=app"}})
	r = recv(t, got)
	if r.Subject.ID != "CN=app" || r.Context["sni"] != "ldap.example.com" || r.Context["source_ip"] != "10.0.0.1" {
		t.Errorf("%+v", r)
	}
}

// slow is a Decider that tells when it was asked and waits for its answer.
type slow struct {
	asked  chan *authz.Request
	answer chan authz.Decision
}

func newSlow() *slow {
	return &slow{make(chan *authz.Request, 100), make(chan authz.Decision, 100)}
}

func (s *slow) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	s.asked <- r
	select {
	case d := <-s.answer:
		return d
	case <-ctx.Done():
		return authz.Decision{Err: ctx.Err()}
	}
}

func allow() authz.Decision { return authz.Decision{Outcome: authz.Allow, Reason: "test"} }
func deny() authz.Decision  { return authz.Decision{Outcome: authz.Deny, Reason: "test"} }

func with(k *Connector, d authz.Decider) *Connector {
	k.Decider = d
	return k
}

func denyAll() authz.Decider {
	return authz.DeciderFunc(func(context.Context, *authz.Request) authz.Decision { return deny() })
}

func TestSessionIsInTheBooksWhilePolicyThinks(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1"), d)))
	w.agent(login{id: "a1"})
	cl := w.client("dir", "10.0.0.1:1")
	r := recv(t, d.asked)
	if ss := w.h.Sessions("dir"); len(ss) != 1 || ss[0].Session != r.Context["cid"] || ss[0].Agent != "" {
		t.Errorf("Sessions: %+v", ss)
	}
	d.answer <- allow()
	cl.mustEcho()
	cl.leave()
}

// TestPolicyChangeWhileTheOldOneThinks applies a new configuration between the
// question and the answer: whatever the old policy says then, the new one
// decides, and no byte gets through before.
func TestPolicyChangeWhileTheOldOneThinks(t *testing.T) {
	for name, c := range map[string]struct {
		old    authz.Decision
		now    *Config
		reason wire.Reason
	}{
		"yes becomes no":               {allow(), config(with(dir("a1"), denyAll())), wire.ReasonDenied},
		"no becomes yes":               {deny(), config(dir("a1")), wire.ReasonFin},
		"broken becomes yes":           {authz.Decision{Err: errors.New("closed by the reload")}, config(dir("a1")), wire.ReasonFin},
		"yes but the connector went":   {allow(), config(), wire.ReasonRevoked},
		"yes but the agent went":       {allow(), config(dir("a2")), wire.ReasonNoAgent},
		"yes but the source is out":    {allow(), config(&Connector{Name: "dir", Agents: []string{"a1"}, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}), wire.ReasonDenied},
		"yes and the new says yes too": {allow(), config(dir("a1")), wire.ReasonFin},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSlow()
			w := newWorld(t, config(with(dir("a1"), d)))
			var dialed atomic.Int32
			w.agent(login{id: "a1", target: w.serve(func(tc net.Conn) { dialed.Add(1); io.Copy(tc, tc); tc.Close() })})
			cl := w.client("dir", "10.0.0.1:1")
			cl.Write([]byte("x"))
			recv(t, d.asked)
			w.h.Apply(c.now)
			d.answer <- c.old
			if c.reason == wire.ReasonFin {
				if _, err := io.ReadFull(cl, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				cl.leave()
				return
			}
			cl.want(c.reason)
			wantRST(t, cl)
			if dialed.Load() != 0 {
				t.Error("the target was dialed")
			}
		})
	}
}

// TestPolicyChangeUnderLoadLetsNobodyThrough flips policy while clients come.
// Each Decider knows whether it is in force; a session that a retired one
// admitted must end.
func TestPolicyChangeUnderLoadLetsNobodyThrough(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	for range 15 {
		w.h.Apply(config(dir("a1")))
		var clients []*client
		for range 8 {
			clients = append(clients, w.client("dir", "10.0.0.1:1"))
		}
		w.h.Apply(config(with(dir("a1"), denyAll())))
		for _, c := range clients {
			c.want(wire.ReasonDenied)
		}
	}
}

func TestLiveSessionsAreJudgedAgain(t *testing.T) {
	narrow := dir("a1")
	narrow.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	failing := authz.DeciderFunc(func(context.Context, *authz.Request) authz.Decision { return authz.Decision{Err: errors.New("down")} })
	for name, c := range map[string]struct {
		now    *Config
		reason wire.Reason
	}{
		"connector is removed":             {config(), wire.ReasonRevoked},
		"agent is taken off the connector": {config(dir("a2")), wire.ReasonRevoked},
		"source is no longer allowed":      {config(narrow), wire.ReasonDenied},
		"policy says no":                   {config(with(dir("a1"), denyAll())), wire.ReasonDenied},
		"policy cannot be asked":           {config(graced(with(dir("a1"), failing), -1)), wire.ReasonPDPError},
		"nothing changes":                  {config(dir("a1")), wire.ReasonFin},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(dir("a1")))
			w.agent(login{id: "a1"})
			cl := w.dial()
			w.h.Apply(c.now)
			if c.reason == wire.ReasonFin {
				eventually(t, "the session is judged", func() bool {
					return w.metric("nowconnect_pdp_decisions_total", "connector", "dir") == 2
				})
				cl.mustEcho()
				cl.leave()
				return
			}
			cl.want(c.reason)
			wantRST(t, cl)
			w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", c.reason.String())
		})
	}
}

// TestJudgingStopsForANewerConfiguration: the verdict of a policy that was
// taken back while it was asked ends nobody.
func TestJudgingStopsForANewerConfiguration(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	cl := w.dial()
	mistake := newSlow()
	w.h.Apply(config(with(dir("a1"), mistake)))
	recv(t, mistake.asked)
	w.h.Apply(config(dir("a1")))
	mistake.answer <- deny()
	eventually(t, "both have judged", func() bool {
		return w.metric("nowconnect_pdp_decisions_total", "connector", "dir") == 3
	})
	cl.mustEcho()
	cl.leave()
}

func TestRemovedConnectorComesBack(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	w.dial().leave()
	w.h.Apply(config())
	if _, known := w.h.Ready("dir"); known {
		t.Error("still known")
	}
	w.h.Apply(config(dir("a1")))
	w.dial().leave()
	w.wantMetric(2, "nowconnect_tcp_connections_total", "connector", "dir") // nothing was reset
}

func TestClientWaitsForAConfigurationAboutToCommit(t *testing.T) {
	w := newWorld(t, nil)
	cl := w.client("dir", "10.0.0.1:1")
	time.Sleep(50 * time.Millisecond)
	w.h.Apply(config(&Connector{Name: "other"})) // not this one yet
	time.Sleep(50 * time.Millisecond)
	w.h.Apply(config(with(dir("a1"), denyAll())))
	cl.want(wire.ReasonDenied) // so it was found
}

func TestUnknownConnectorIsGivenUp(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	begin := time.Now()
	cl := w.client("nosuch", "10.0.0.1:1")
	o := cl.want(wire.ReasonNoAgent)
	if d := time.Since(begin); d < startPatience || d > startPatience+10*time.Second {
		t.Errorf("after %v", d)
	}
	if !strings.Contains(o.Message, `"nosuch"`) {
		t.Errorf("message %q", o.Message)
	}
	wantRST(t, cl)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.clientCtx(ctx, "nosuch", "10.0.0.1:1").want(wire.ReasonNoAgent) // at once
}

func TestContextBoundsTheDecision(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1"), d)))
	ctx, cancel := context.WithCancel(context.Background())
	cl := w.clientCtx(ctx, "dir", "10.0.0.1:1")
	recv(t, d.asked)
	cancel()
	cl.want(wire.ReasonPDPError)
}

func TestUnansweredOpenTimesOut(t *testing.T) {
	k := dir("a1")
	k.ConnectTimeout = 50 * time.Millisecond
	w := newWorld(t, config(k))
	w.agent(login{id: "a1", hold: make(chan struct{})})
	cl := w.client("dir", "10.0.0.1:1")
	cl.want(wire.ReasonConnectTimeout)
	wantRST(t, cl)
}

func TestTargetThatRefusesIsTyped(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	ln, _ := tcpPair(t)
	w.agent(login{id: "a1", target: ln.LocalAddr().String()}) // a port that nobody listens on
	cl := w.client("dir", "10.0.0.1:1")
	if o := cl.want(wire.ReasonConnectFailed); o.Agent != "a1" || o.Message == "" {
		t.Errorf("outcome %+v", o)
	}
	wantRST(t, cl)
	w.wantMetric(1, "nowconnect_listener_errors_total", "connector", "dir", "type", "session")
}

// A client in this process talks over a pipe, whose end the hub can only take
// for a half-close. The end of its life resets the session all the same.
func TestLifeEndsASession(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	ours, theirs := net.Pipe()
	defer ours.Close()
	life, end := context.WithCancel(t.Context())
	out := make(chan Outcome, 1)
	go func() {
		out <- w.h.ServeClient(life, &Client{
			Connector: "dir", Conn: theirs, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Life: life,
			Subject: &authz.Entity{Type: "service", ID: "ldap_admin"},
		})
	}()
	if _, err := io.WriteString(ours, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ours, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	end()
	if o := recv(t, out); o.Reason != wire.ReasonRst || o.Message != "client is gone" || o.BytesC2A != 4 || o.BytesA2C != 4 {
		t.Errorf("%+v", o)
	}
	if _, err := ours.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	w.wantMetric(0, "nowconnect_tcp_active_connections", "connector", "dir")
}

// A client that goes while policy thinks is no fault of policy's, whichever of
// its two contexts is noticed first.
func TestLifeEndsWhilePolicyThinks(t *testing.T) {
	thinks := make(chan struct{})
	w := newWorld(t, config(with(dir("a1"), authz.DeciderFunc(func(ctx context.Context, _ *authz.Request) authz.Decision {
		thinks <- struct{}{}
		<-ctx.Done()
		return authz.Fail(authz.KindTimeout, ctx.Err())
	}))))
	for range 200 {
		life, end := context.WithCancel(t.Context())
		_, theirs := net.Pipe()
		out := make(chan Outcome, 1)
		go func() {
			out <- w.h.ServeClient(life, &Client{Connector: "dir", Conn: theirs, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Life: life})
		}()
		<-thinks
		end()
		if o := recv(t, out); o.Reason != wire.ReasonRst {
			t.Fatalf("ended with %v (%s)", o.Reason, o.Message)
		}
	}
	w.wantMetric(0, "nowconnect_listener_errors_total", "connector", "dir", "type", "pdp")
}
