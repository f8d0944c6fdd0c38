package hub

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// bubble is a hub on net.Pipe, for tests under synctest: its clock stands still
// while a real socket is waited for.
type bubble struct {
	*world
	cfg  *Config
	logs *observer.ObservedLogs

	mu     sync.Mutex
	asked  []string // tokens that were verified
	verify func(ctx context.Context, token string) (Identity, error)
}

var errTestRefused = errors.New("token: test says no")

// inBubble runs f with a hub whose agent a1 may serve dir and other. A token is
// good for an hour unless the test says otherwise.
func inBubble(t *testing.T, f func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		b := &bubble{logs: logs, world: &world{t: t, h: New(zap.New(core), obs.New(obs.Options{}))}}
		b.verify = func(context.Context, string) (Identity, error) {
			return Identity{AgentID: "a1", Method: "test", Expires: time.Now().Add(time.Hour)}, nil
		}
		b.cfg = config(dir("a1"), &Connector{Name: "other", Agents: []string{"a1"}})
		b.cfg.PingInterval, b.cfg.PingTimeout = 20*time.Second, 20*time.Second
		b.cfg.Reauthenticate = func(ctx context.Context, agent, token string) (Identity, error) {
			if agent != "a1" {
				t.Errorf("asked about agent %q", agent)
			}
			b.mu.Lock()
			b.asked = append(b.asked, token)
			verify := b.verify
			b.mu.Unlock()
			return verify(ctx, token)
		}
		b.h.Apply(b.cfg)
		f(t, b)
		b.h.Close()
		b.wg.Wait()
	})
}

func (b *bubble) verifies(f func(ctx context.Context, token string) (Identity, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.verify = f
}

func (b *bubble) numAsked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.asked)
}

func refuseAll(context.Context, string) (Identity, error) { return Identity{}, errTestRefused }

// member is an agent's link into a bubble.
type member struct {
	*tunnel.Link
	b     *bubble
	ack   wire.HelloAck
	acks  chan wire.AuthAck
	hub   chan error // what ServeAgent returned
	ended chan error
	drain chan string
}

// join logs agent a1 in with this identity. edit may change its HELLO.
func (b *bubble) join(id Identity, edit func(*wire.Hello)) *member {
	b.t.Helper()
	id.AgentID, id.Method = "a1", "test"
	a, h := net.Pipe()
	m := &member{b: b, acks: make(chan wire.AuthAck, 10000), hub: make(chan error, 1), ended: make(chan error, 1), drain: make(chan string, 1)}
	b.wg.Go(func() {
		m.hub <- b.h.ServeAgent(context.Background(), tunnel.NewNative(h, nil, nil), id, "test")
	})
	hello := wire.Hello{
		Version: 1, AgentID: "a1", Instance: "i1", Connectors: []string{"dir", "other"}, Window: tunnel.DefaultWindow,
		Capabilities: []string{wire.CapReauth, wire.CapHandover, "some-day"},
	}
	if edit != nil {
		edit(&hello)
	}
	c := tunnel.NewNative(a, nil, nil)
	var err error
	if m.ack, err = tunnel.SayHello(context.Background(), c, hello); err != nil {
		b.t.Fatal(err)
	}
	m.Link = tunnel.NewAgentLink(c, tunnel.Config{
		OnOpen:    func(s *tunnel.Session) { b.wg.Go(func() { echoInMemory(s) }) },
		OnAuthAck: func(a wire.AuthAck) { m.acks <- a },
		OnDrain:   func(s string) { m.drain <- s },
	})
	b.wg.Go(func() { m.ended <- m.Serve(context.Background()) })
	synctest.Wait()
	return m
}

func echoInMemory(s *tunnel.Session) {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		var p [4]byte
		for {
			// A pipe has no FIN: the target must be told to end its side.
			if _, err := io.ReadFull(theirs, p[:]); err != nil || string(p[:]) == "quit" {
				return
			}
			if _, err := theirs.Write(p[:]); err != nil {
				return
			}
		}
	}()
	s.Accept(tunnel.Endpoint{Conn: ours}, tunnel.SessionConfig{})
	theirs.Close()
	<-done
}

// renew sends a token and returns the answer.
func (m *member) renew(token string) wire.AuthAck {
	m.b.t.Helper()
	if err := m.SendAuth(token); err != nil {
		m.b.t.Fatal(err)
	}
	return <-m.acks
}

// guest is a client inside of a bubble.
type guest struct {
	net.Conn
	t   testing.TB
	out chan Outcome
}

// call connects a client. It does not look whether that works.
func (b *bubble) call(connector string) *guest {
	ours, theirs := net.Pipe()
	g := &guest{Conn: ours, t: b.t, out: make(chan Outcome, 1)}
	b.names++
	cl := &Client{Connector: connector, Conn: theirs, Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(b.names))}
	b.wg.Go(func() { g.out <- b.h.ServeClient(context.Background(), cl); ours.Close() })
	return g
}

// works sends bytes there and back.
func (g *guest) works() {
	g.t.Helper()
	g.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := g.Write([]byte("ping")); err != nil {
		g.t.Fatalf("write: %v", err)
	}
	var p [4]byte
	if _, err := io.ReadFull(g, p[:]); err != nil {
		g.t.Fatalf("read: %v", err)
	}
}

// leave ends the connection in order.
func (g *guest) leave() {
	g.t.Helper()
	if _, err := g.Write([]byte("quit")); err != nil {
		g.t.Fatalf("write: %v", err)
	}
	g.Close()
	g.want(wire.ReasonFin)
}

func (g *guest) want(r wire.Reason) {
	g.t.Helper()
	if o := <-g.out; o.Reason != r {
		g.t.Errorf("ended with %v (%s), want %v", o.Reason, o.Message, r)
	}
}

func (g *guest) live() bool {
	synctest.Wait()
	return len(g.out) == 0
}
