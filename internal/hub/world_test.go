package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a hub, with whatever agents, targets and clients a test adds, all
// on real sockets. Its cleanup closes the hub and waits for everybody.
type world struct {
	t     testing.TB
	h     *Hub
	wg    sync.WaitGroup
	names int
}

func newWorld(t testing.TB, cfg *Config) *world {
	t.Helper()
	w := &world{t: t, h: New(zap.NewNop(), obs.New(obs.Options{}))}
	t.Cleanup(func() { w.h.Close(); w.wg.Wait() })
	if cfg != nil {
		w.h.Apply(cfg)
	}
	return w
}

// config makes a configuration of connectors that allow everything.
func config(connectors ...*Connector) *Config {
	c := &Config{ID: "hub-1", Connectors: map[string]*Connector{}}
	for _, k := range connectors {
		if k.Decider == nil {
			k.Decider = authz.AllowAll
		}
		c.Connectors[k.Name] = k
	}
	return c
}

func dir(agents ...string) *Connector { return &Connector{Name: "dir", Agents: agents} }

// login is how an agent presents itself; zero fields get defaults.
type login struct {
	id, instance string
	slot         int
	connectors   []string
	identity     *Identity             // what the credential proves; nil = id, without scope
	target       string                // address to dial; empty = an echo server
	hold         chan struct{}         // not nil: answer no OPEN before it is closed
	serve        func(*tunnel.Session) // in place of dialing target
}

// peer is an agent's end of a link.
type peer struct {
	*tunnel.Link
	ack   wire.HelloAck
	conn  net.Conn
	hub   chan error // what ServeAgent returned
	ended chan error // what the agent's Serve returned
}

func (w *world) shake(l *login) (*peer, error) {
	w.t.Helper()
	if l.instance == "" {
		l.instance = l.id + "-i1"
	}
	if l.connectors == nil {
		l.connectors = []string{"dir"}
	}
	if l.identity == nil {
		l.identity = &Identity{AgentID: l.id, Method: "test"}
	}
	a, h := tcpPair(w.t)
	p := &peer{conn: a, hub: make(chan error, 1), ended: make(chan error, 1)}
	w.wg.Go(func() {
		p.hub <- w.h.ServeAgent(context.Background(), tunnel.NewNative(h, nil, nil), *l.identity, "test")
	})
	c := tunnel.NewNative(a, nil, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var err error
	p.ack, err = tunnel.SayHello(ctx, c, wire.Hello{
		Version: wire.Version, AgentID: l.id, Instance: l.instance, Link: l.slot,
		Connectors: l.connectors, Window: tunnel.DefaultWindow, Software: "test/1",
	})
	if err != nil {
		return p, err
	}
	target := l.target
	if target == "" {
		target = w.echo()
	}
	p.Link = tunnel.NewAgentLink(c, tunnel.Config{OnOpen: func(s *tunnel.Session) {
		if l.serve != nil {
			w.wg.Go(func() { l.serve(s) })
			return
		}
		w.wg.Go(func() { serveTarget(s, target, l.hold) })
	}})
	w.wg.Go(func() { p.ended <- p.Serve(context.Background()) })
	return p, nil
}

func serveTarget(s *tunnel.Session, target string, hold chan struct{}) {
	if hold != nil {
		select {
		case <-hold:
		case <-s.Done():
		}
	}
	c, err := net.Dial("tcp", target)
	if err != nil {
		s.Refuse(wire.ReasonConnectFailed, err.Error())
		return
	}
	s.Accept(tunnel.Endpoint{Conn: c}, tunnel.SessionConfig{})
}

// agent logs in and waits until the hub would place sessions on the link.
func (w *world) agent(l login) *peer {
	w.t.Helper()
	before := w.links(l.id)
	p, err := w.shake(&l)
	if err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "the link is registered", func() bool {
		for _, x := range w.links(l.id) {
			if x.Instance == l.instance && x.Link == l.slot && !x.Draining && !containsLink(before, x) {
				return true
			}
		}
		return false
	})
	return p
}

func containsLink(ls []LinkStatus, x LinkStatus) bool {
	for _, l := range ls {
		if l.Since.Equal(x.Since) && l.Link == x.Link {
			return true
		}
	}
	return false
}

func (w *world) links(id string) []LinkStatus {
	for _, a := range w.h.Status().Agents {
		if a.ID == id {
			return a.Links
		}
	}
	return nil
}

// serve accepts connections and hands each to f.
func (w *world) serve(f func(net.Conn)) string {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { f(c) })
		}
	})
	w.t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func (w *world) echo() string {
	return w.serve(func(c net.Conn) {
		defer c.Close()
		io.Copy(c, c)
	})
}

// client is one client connection, seen from outside.
type client struct {
	*net.TCPConn
	t   testing.TB
	out chan Outcome
}

func (w *world) client(connector, addr string) *client {
	return w.clientCtx(context.Background(), connector, addr)
}

func (w *world) clientCtx(ctx context.Context, connector, addr string) *client {
	w.t.Helper()
	a, h := tcpPair(w.t)
	c := &client{TCPConn: a, t: w.t, out: make(chan Outcome, 1)}
	cl := &Client{Connector: connector, Conn: h, Addr: netip.MustParseAddrPort(addr), Listener: "127.0.0.1:389"}
	w.wg.Go(func() { c.out <- w.h.ServeClient(ctx, cl) })
	return c
}

// dial makes a client that has seen its own bytes come back.
func (w *world) dial() *client {
	w.t.Helper()
	w.names++
	c := w.client("dir", fmt.Sprintf("10.0.0.1:%d", 1000+w.names))
	c.mustEcho()
	return c
}

func (c *client) mustEcho() {
	c.t.Helper()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		c.t.Fatal(err)
	}
	var b [4]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "ping" {
		select {
		case o := <-c.out:
			c.t.Fatalf("echo: %q, %v: %v %s", b, err, o.Reason, o.Message)
		case <-time.After(time.Second):
			c.t.Fatalf("echo: %q, %v", b, err)
		}
	}
}

// want waits for the connection's outcome and checks why it ended.
func (c *client) want(r wire.Reason) Outcome {
	c.t.Helper()
	o := recv(c.t, c.out)
	if o.Reason != r {
		c.t.Errorf("ended with %v (%s), want %v", o.Reason, o.Message, r)
	}
	return o
}

// leave ends the connection in order and waits for that.
func (c *client) leave() Outcome {
	c.t.Helper()
	c.CloseWrite()
	return c.want(wire.ReasonFin)
}

func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ch := make(chan net.Conn, 1)
	go func() { c, _ := ln.Accept(); ch <- c }()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a := <-ch
	t.Cleanup(func() { d.Close(); a.Close() })
	return d.(*net.TCPConn), a.(*net.TCPConn)
}

func recv[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func linkReason(t testing.TB, err error) wire.Reason {
	t.Helper()
	var le *tunnel.LinkError
	if !errors.As(err, &le) {
		t.Fatalf("%v is not a LinkError", err)
	}
	return le.Reason
}

// metric sums the series of name whose labels include all of the pairs.
func (w *world) metric(name string, pairs ...string) float64 {
	w.t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(w.h.Metrics().Collector(w.h))
	fs, err := r.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range fs {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if hasLabels(m, pairs) {
				found = true
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	if !found {
		w.t.Errorf("no series %s %v", name, pairs)
	}
	return sum
}

func hasLabels(m *dto.Metric, pairs []string) bool {
	for i := 0; i < len(pairs); i += 2 {
		ok := false
		for _, l := range m.GetLabel() {
			ok = ok || l.GetName() == pairs[i] && l.GetValue() == pairs[i+1]
		}
		if !ok {
			return false
		}
	}
	return true
}

func (w *world) wantMetric(v float64, name string, pairs ...string) {
	w.t.Helper()
	if got := w.metric(name, pairs...); got != v {
		w.t.Errorf("%s %v is %v, want %v", name, pairs, got, v)
	}
}
