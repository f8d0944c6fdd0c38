package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestLinksShareOneInstance(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	cfg.Links, cfg.Software = 3, "nowconnect-agent/test"
	startAgent(t, cfg)
	eventually(t, "three links", func() bool { return hub.countLinks() == 3 })
	var slots []int
	for _, l := range hub.allLogins() {
		slots = append(slots, l.hello.Link)
		first := hub.allLogins()[0].hello
		if l.hello.Instance != first.Instance || len(l.hello.Instance) < 16 {
			t.Errorf("instances %q and %q", l.hello.Instance, first.Instance)
		}
		if l.hello.AgentID != "premise-1" || l.hello.Software != cfg.Software || !slices.Equal(l.hello.Connectors, []string{"echo"}) || l.carrier != "nowconnect" {
			t.Errorf("hello %+v over %s", l.hello, l.carrier)
		}
	}
	slices.Sort(slots)
	if !slices.Equal(slots, []int{0, 1, 2}) {
		t.Errorf("slots %v", slots)
	}
}

// TestServesWhileOneLinkIsDown cuts one of two links mid-session: the other's
// session must not notice, and the cut one comes back.
func TestServesWhileOneLinkIsDown(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	cfg.Links = 2
	a := startAgent(t, cfg)
	eventually(t, "two links", func() bool { return hub.countLinks() == 2 })
	kept, lost := hub.open(t, 0, "echo"), hub.open(t, 1, "echo")
	kept.echo(t, "one")
	lost.echo(t, "one")
	hub.link(1).remote.Close()
	if r := lost.wait(t); r.Reason != wire.ReasonLinkLost {
		t.Errorf("the session on the cut link ended with %v", r.Reason)
	}
	kept.echo(t, "two")
	if !a.Ready() {
		t.Error("not ready although one link is up")
	}
	eventually(t, "the link is back", func() bool { return hub.link(1) != nil })
	hub.open(t, 1, "echo").echo(t, "three")
	kept.echo(t, "four")
	if n := len(hub.allLogins()); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
}

// TestBackWithinHalfASecondOfARestart is what users see of a hub's restart.
func TestBackWithinHalfASecondOfARestart(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, nil)
	a := startAgent(t, testConfig(t, hub))
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })
	for _, down := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond, 0, 2 * time.Second, 0} {
		hub.stop()
		eventually(t, "the agent notices", func() bool { return !a.Ready() })
		time.Sleep(down)
		hub.start()
		start := time.Now()
		eventually(t, "a link", func() bool { return hub.countLinks() == 1 })
		took := time.Since(start)
		t.Logf("down for %v: back after %v", down, took)
		if took > 500*time.Millisecond {
			t.Errorf("down for %v: back only after %v", down, took)
		}
	}
}

// TestTroubleIsToldOnce: an agent whose hub is away all night fills no log.
func TestTroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		a, err := New(Config{
			URL: "http://127.0.0.1:1", AgentID: "premise-1", TokenFile: writeToken(t, testToken),
			Targets: map[string]Target{"echo": {"127.0.0.1", 1}}, Links: 1,
		}, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		var attempts []time.Time
		a.dialer.dial = func(context.Context, string, string) (net.Conn, error) {
			attempts = append(attempts, time.Now())
			return nil, fmt.Errorf("dial tcp 127.0.0.1:%d: connection refused", len(attempts))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := a.Run(ctx); err != nil {
			t.Fatal(err)
		}
		told := logs.FilterMessage("link cannot be made").Len()
		if told < 6 || told > 7 { // at the start and every ten minutes
			t.Errorf("told %d times in an hour", told)
		}
		if n := logs.FilterLevelExact(zapcore.WarnLevel).Len() + logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != told {
			t.Errorf("%d loud lines, %d expected", n, told)
		}
		checkSpacing(t, attempts)
	})
}

// checkSpacing holds a lost hub's retries to the promise: jittered, 0.2 s at
// first, 30 s at last, never more often than 0.1 s.
func checkSpacing(t *testing.T, at []time.Time) {
	t.Helper()
	var quick, slow []time.Duration
	for i := 1; i < len(at); i++ {
		d := at[i].Sub(at[i-1])
		if at[i].Sub(at[0]) < quickRetry {
			quick = append(quick, d)
		} else {
			slow = append(slow, d)
		}
	}
	if lo, hi := slices.Min(quick), slices.Max(quick); lo < 100*time.Millisecond || hi > 200*time.Millisecond {
		t.Errorf("quick retries are %v to %v apart", lo, hi)
	}
	if hi := slices.Max(slow); hi > 30*time.Second || hi < 20*time.Second {
		t.Errorf("slow retries reach %v", hi)
	}
	slices.Sort(quick)
	if len(slices.Compact(quick)) < 10 {
		t.Error("no jitter")
	}
	if n := len(at); n < 150 || n > 300 {
		t.Errorf("%d attempts in an hour", n)
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff{min: 200 * time.Millisecond, max: 30 * time.Second}
		within := func(what string, d, hi time.Duration) {
			t.Helper()
			if d < hi/2 || d > hi {
				t.Errorf("%s: %v is not in the upper half of %v", what, d, hi)
			}
		}
		for _, hi := range []time.Duration{2000, 4000, 8000, 16000, 30000, 30000} {
			within("refused", b.next(troubleRefused), hi*time.Millisecond)
		}
		b.lived(steadyLink)
		within("after a reset", b.next(troubleLost), 200*time.Millisecond)
		time.Sleep(time.Second)
		within("quick", b.next(troubleLost), 200*time.Millisecond)
		time.Sleep(quickRetry)
		within("growing", b.next(troubleLost), 400*time.Millisecond)

		b.lived(steadyLink)
		for range 3 { // a hub that is started anew every few seconds
			within("restarts", b.next(troubleLost), 200*time.Millisecond)
			time.Sleep(steadyLink - time.Second)
			b.lived(steadyLink - time.Second)
		}
		for range 50 { // one that accepts and fails at once
			time.Sleep(b.next(troubleLost))
			b.lived(time.Millisecond)
		}
		if d := b.next(troubleLost); d < 10*time.Second {
			t.Errorf("a flapping hub is asked again after %v", d)
		}
		b.lived(steadyLink)
		for _, hi := range []time.Duration{200, 400, 800, 1600, 3200, 5000, 5000} {
			within("busy", b.next(troubleBusy), hi*time.Millisecond)
		}
		within("superseded", b.next(troubleSuperseded), 30*time.Second)
	})
}

// TestSteadyLinkResetsBackoff: one that dies young does not.
func TestSteadyLinkResetsBackoff(t *testing.T) {
	for _, tt := range []struct {
		lives time.Duration
		least time.Duration // of the delay after it
		most  time.Duration
	}{{9 * time.Second, 10 * time.Second, 31 * time.Second}, {11 * time.Second, 0, 300 * time.Millisecond}} {
		t.Run(tt.lives.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newMemHub(t)
				a, logs := net.agent(t, Config{Links: 1})
				net.down.Store(true)
				run := runMem(t, a, logs)
				time.Sleep(10 * time.Minute)
				net.down.Store(false)
				l := net.nextLink(t)
				time.Sleep(tt.lives)
				l.carrier.Close()
				start := time.Now()
				net.nextLink(t)
				if d := time.Since(start); d < tt.least || d > tt.most {
					t.Errorf("a link that lived %v was made again after %v", tt.lives, d)
				}
				run.stop()
				<-run.done
			})
		})
	}
}

func TestSupersededByAnotherInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newMemHub(t)
		run := runOne(t, net)
		l := net.nextLink(t)
		time.Sleep(time.Minute) // long enough to reset any backoff
		l.link.Close(wire.ReasonSuperseded, "another login")
		start := time.Now()
		net.nextLink(t)
		if d := time.Since(start); d < 15*time.Second || d > 30*time.Second {
			t.Errorf("back after %v: two processes would take turns", d)
		}
		e := run.logs.FilterMessageSnippet("another agent process has logged in").All()
		if len(e) != 1 || e[0].Level != zapcore.ErrorLevel {
			t.Errorf("logged %v", e)
		}
		run.stop()
		<-run.done
	})
}

// TestHalfDeadLinkIsReplaced: the hub stops answering without a FIN.
func TestHalfDeadLinkIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newMemHub(t)
		run := runOne(t, net)
		l := net.nextLink(t)
		s := l.open(t, "echo")
		time.Sleep(time.Minute)
		l.hang.Store(true)
		start := time.Now()
		net.nextLink(t)
		if d := time.Since(start); d > 42*time.Second { // interval, deadline, first retry, the keeper's tick
			t.Errorf("replaced after %v", d)
		}
		e := run.logs.FilterMessage("link is lost").All()
		if len(e) != 1 || e[0].ContextMap()["reason"] != "ping_timeout" {
			t.Errorf("logged %v", e)
		}
		if n := run.sessions.count(); n != 0 {
			t.Errorf("%d sessions outlive their link", n)
		}
		l.carrier.Close()
		<-s
		run.stop()
		<-run.done
	})
}

func TestRefusedConnectorsAreTold(t *testing.T) {
	hub := newTestHub(t, nil)
	hub.accept = []string{}
	cfg := testConfig(t, hub)
	cfg.Links = 2
	a := startAgent(t, cfg)
	eventually(t, "two links", func() bool { return a.logs.FilterMessage("link is up").Len() == 2 })
	if a.Ready() {
		t.Error("ready, and no connector was accepted")
	}
	e := a.logs.FilterMessageSnippet("the hub refuses connectors").All()
	if len(e) != 1 || fmt.Sprint(e[0].ContextMap()["refused"]) != "[echo]" {
		t.Errorf("logged %v", e)
	}
}

// TestOnlyOwnTargetsAreDialed is the agent's key of the two: a hub that asks
// for more gets a reason and no connection.
func TestOnlyOwnTargetsAreDialed(t *testing.T) {
	hub := newTestHub(t, nil)
	secret := testpeer.Echo(t)
	cfg := testConfig(t, hub)
	cfg.Targets["unlisted"] = targetOf(t, secret.Addr)
	cfg.Connectors = []string{"echo"}
	startAgent(t, cfg)
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })
	for _, name := range []string{"unlisted", "unknown", "ECHO", "echo.", "echo_"} {
		if r := hub.open(t, 0, name).wait(t); r.Reason != wire.ReasonConnectFailed || r.Opened {
			t.Errorf("%s: %v", name, r)
		}
	}
	if secret.Accepted() != 0 {
		t.Error("a target was dialed that is not in the list")
	}
	hub.open(t, 0, "echo").echo(t, "still fine")
}

func TestTypedDialFailures(t *testing.T) {
	hub := newTestHub(t, nil)
	refused := testpeer.FreeAddr(t)
	cfg := testConfig(t, hub)
	cfg.Targets["refused"] = targetOf(t, refused)
	cfg.Targets["nowhere"] = Target{"no-such-host.invalid", 389}
	cfg.Targets["blackhole"] = Target{"192.0.2.1", 389}
	cfg.ConnectTimeout = 10 * time.Second
	core, logs := observer.New(zapcore.DebugLevel)
	ag, err := New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	real := ag.dialTarget
	ag.dialTarget = func(ctx context.Context, network, addr string) (net.Conn, error) {
		// No packet of a test should leave the machine.
		switch host, _, _ := net.SplitHostPort(addr); host {
		case "192.0.2.1":
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
		case "no-such-host.invalid":
			return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
		}
		return real(ctx, network, addr)
	}
	a := runAgent(t, ag, logs)
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })
	tests := []struct {
		connector string
		reason    wire.Reason
		message   string
	}{
		{"refused", wire.ReasonConnectFailed, "connection refused"},
		{"nowhere", wire.ReasonConnectFailed, "target name does not resolve"},
		{"blackhole", wire.ReasonConnectTimeout, "no answer from the target in time"},
	}
	for _, tt := range tests {
		start := time.Now()
		r := hub.openWith(t, 0, wire.Open{Connector: tt.connector, Session: "s1", ConnectTimeout: 200}).wait(t)
		if r.Reason != tt.reason || r.Message != tt.message || !r.Remote || r.Opened {
			t.Errorf("%s: %+v", tt.connector, r)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s: the hub asked for 200ms and waited %v", tt.connector, d)
		}
	}
	eventually(t, "three lines", func() bool { return a.logs.FilterMessage("session ended").Len() == 3 })
	e := a.logs.FilterMessage("session ended").All()[0]
	m := e.ContextMap()
	if e.Level != zapcore.InfoLevel || m["cid"] != "s1" || m["connector"] != "refused" || m["reason"] != "connect_failed" || m["target"] != refused {
		t.Errorf("logged %v", m)
	}
}

// TestDialStopsWithItsSession: a client that gives up must not leave a dial
// behind that holds a place.
func TestDialStopsWithItsSession(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	cfg.ConnectTimeout = time.Hour
	core, logs := observer.New(zapcore.DebugLevel)
	ag, err := New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	dialing, gaveUp := make(chan struct{}), make(chan struct{})
	ag.dialTarget = func(ctx context.Context, _, _ string) (net.Conn, error) {
		close(dialing)
		<-ctx.Done()
		close(gaveUp)
		return nil, ctx.Err()
	}
	a := runAgent(t, ag, logs)
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })
	s := hub.open(t, 0, "echo")
	<-dialing
	s.Reset(wire.ReasonRst, "client left")
	<-gaveUp
	eventually(t, "the place is free", func() bool { return a.sessions.count() == 0 })
}

func TestMaxSessions(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	cfg.Links, cfg.MaxSessions = 2, 2
	a := startAgent(t, cfg)
	eventually(t, "two links", func() bool { return hub.countLinks() == 2 })
	one, two := hub.open(t, 0, "echo"), hub.open(t, 1, "echo")
	one.echo(t, "x")
	two.echo(t, "x")
	if r := hub.open(t, 0, "echo").wait(t); r.Reason != wire.ReasonLimit || r.Message != "agent has 2 sessions, its max_sessions" {
		t.Errorf("the third: %+v", r)
	}
	one.client.Close()
	one.wait(t)
	eventually(t, "a place", func() bool { return a.sessions.count() == 1 })
	hub.open(t, 1, "echo").echo(t, "y")
}

func TestSessionsKeepFINAndRST(t *testing.T) {
	t.Parallel()
	hub := newTestHub(t, nil)
	const size = 10 << 20
	cfg := testConfig(t, hub)
	cfg.Targets["after-fin"] = targetOf(t, testpeer.SendAfterFIN(t, size).Addr)
	cfg.Targets["resets"] = targetOf(t, testpeer.Resetter(t, 3).Addr)
	a := startAgent(t, cfg)
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })

	s := hub.open(t, 0, "after-fin")
	if _, err := io.WriteString(s.client, "request"); err != nil {
		t.Fatal(err)
	}
	_ = s.client.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(s.client)
	want, _ := io.ReadAll(testpeer.Pattern(size))
	if err != nil || string(got) != string(want) {
		t.Errorf("%d bytes after the client's FIN, want %d; %v", len(got), size, err)
	}
	if r := s.wait(t); r.Reason != wire.ReasonFin {
		t.Errorf("ended with %+v", r)
	}

	s = hub.open(t, 0, "resets")
	if _, err := io.WriteString(s.client, "abcdef"); err != nil {
		t.Fatal(err)
	}
	_ = s.client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.client.Read(make([]byte, 1)); !testpeer.IsReset(err) {
		t.Errorf("the client saw %v", err)
	}
	eventually(t, "both lines", func() bool { return a.logs.FilterMessage("session ended").Len() == 2 })
	m := a.logs.FilterMessage("session ended").All()[0].ContextMap()
	if m["reason"] != "fin" || m["bytes_c2a"] != int64(len("request")) || m["bytes_a2c"] != int64(size) {
		t.Errorf("logged %v", m)
	}
}

func TestClassify(t *testing.T) {
	hubSays := func(status int) error {
		return &ConnectError{Stage: stageUpgrade, Status: status, FromHub: true, Err: errors.New("x")}
	}
	remote := func(r wire.Reason) error { return &tunnel.LinkError{Reason: r, Remote: true} }
	tests := []struct {
		err  error
		want trouble
	}{
		{hubSays(http.StatusUnauthorized), troubleRefused},
		{hubSays(http.StatusForbidden), troubleRefused},
		{hubSays(http.StatusServiceUnavailable), troubleBusy}, // starting, draining or crowded
		{&ConnectError{Stage: stageHello, FromHub: true, Err: remote(wire.ReasonDraining)}, troubleBusy},
		{&ConnectError{Stage: stageUpgrade, Status: 403, Err: errors.New("x")}, troubleLost},
		{&ConnectError{Stage: stageProxy, Status: 407, Err: errors.New("x")}, troubleRefused},
		{&ConnectError{Stage: stageProxy, Status: 502, Err: errors.New("x")}, troubleLost},
		{&ConnectError{Stage: stageDial, Err: errors.New("x")}, troubleLost},
		{&ConnectError{Stage: stageToken, Err: errors.New("x")}, troubleRefused},
		{&ConnectError{Stage: stageHello, FromHub: true, Err: remote(wire.ReasonRefused)}, troubleRefused},
		{remote(wire.ReasonSuperseded), troubleSuperseded},
		{remote(wire.ReasonShutdown), troubleLost},
		{remote(wire.ReasonRevoked), troubleRefused},
		{&tunnel.LinkError{Reason: wire.ReasonLinkLost}, troubleLost},
		{&tunnel.LinkError{Reason: wire.ReasonPingTimeout}, troubleLost},
	}
	for _, tt := range tests {
		if got := classify(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

// TestCarrierChoice: when to leave the native carrier and when to come back.
func TestCarrierChoice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &carrierChoice{mode: CarrierAuto}
		if c.first() != CarrierNative || !c.spoiled(CarrierNative) {
			t.Error("a fresh agent does not try WebSocket at once")
		}
		if !c.worked(CarrierWebSocket) || c.first() != CarrierWebSocket || c.worked(CarrierWebSocket) {
			t.Error("a fallback does not hold, or is told twice")
		}
		time.Sleep(retryNative + time.Second)
		if c.first() != CarrierNative {
			t.Error("the native carrier gets no second chance")
		}
		c.worked(CarrierNative)
		if c.spoiled(CarrierNative) || c.spoiled(CarrierNative) || !c.spoiled(CarrierNative) {
			t.Error("a restarting hub looks like an intermediary, or an intermediary is never seen")
		}
		c.worked(CarrierWebSocket)
		if c.spoiled(CarrierWebSocket) || c.first() != CarrierNative {
			t.Error("a fallback survives its own failure")
		}
		for _, mode := range []string{CarrierNative, CarrierWebSocket} {
			fixed := &carrierChoice{mode: mode}
			if fixed.first() != mode || fixed.spoiled(mode) || fixed.worked(mode) || fixed.first() != mode {
				t.Errorf("mode %s changes", mode)
			}
		}
	})
}

func TestNewRefusesAWrongConfig(t *testing.T) {
	_, err := New(Config{URL: "http://hub.example.com", AgentID: "a", TokenFile: "x", Targets: map[string]Target{"e": {"h", 1}}}, zap.NewNop())
	if err == nil || !strings.HasPrefix(err.Error(), "agent: url: http://hub.example.com/tunnel would send the token") {
		t.Errorf("got %v", err)
	}
	_, err = New(Config{URL: "https://hub", AgentID: "a", TokenFile: "x", Targets: map[string]Target{"e": {"h", 1}}, CABundle: "/nonexistent"}, zap.NewNop())
	if err == nil || !strings.HasPrefix(err.Error(), "CA bundle: ") {
		t.Errorf("got %v", err)
	}
}

// TestInsecureIsLoud: the only thing between a token and the network is a line
// that nobody can miss.
func TestInsecureIsLoud(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	a, err := New(Config{
		URL: "http://192.0.2.1", AgentID: "a", TokenFile: writeToken(t, testToken), Insecure: true,
		Targets: map[string]Target{"e": {"h", 1}}, HealthAddr: testpeer.FreeAddr(t),
	}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	var dialed atomic.Bool
	a.dialer.dial = func(context.Context, string, string) (net.Conn, error) {
		dialed.Store(true)
		return nil, errors.New("no network in this test")
	}
	r := runAgent(t, a, logs)
	eventually(t, "a dial", dialed.Load)
	if e := r.logs.FilterMessageSnippet("INSECURE").All(); len(e) != 1 || e[0].Level != zapcore.WarnLevel {
		t.Errorf("logged %v", e)
	}
}
