package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// carriers are the ways a link is carried in production: both, each over TLS,
// and native in the clear for tests that look at the bytes.
var carriers = []string{"plain", "tls", "websocket", "websocket-tls"}

// bare is a carrier that can do no more than Carrier asks for: no socket to
// tune or to ask, no reading ahead, no half-close, as it would be with QUIC.
const bare = "bare"

type bareCarrier struct{ c net.Conn }

func (b bareCarrier) Read(p []byte) (int, error)         { return b.c.Read(p) }
func (b bareCarrier) Write(p []byte) (int, error)        { return b.c.Write(p) }
func (b bareCarrier) Flush() error                       { return nil }
func (b bareCarrier) Close() error                       { return b.c.Close() }
func (b bareCarrier) SetReadDeadline(t time.Time) error  { return b.c.SetReadDeadline(t) }
func (b bareCarrier) SetWriteDeadline(t time.Time) error { return b.c.SetWriteDeadline(t) }
func (b bareCarrier) Name() string                       { return bare }

// pair is a hub link and an agent link joined by a real connection.
type pair struct {
	t          testing.TB
	hub, agent *Link
	hubErr     error
	agentErr   error
	hubConn    net.Conn // the raw sockets, to cut
	agentConn  net.Conn
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	target     func(*Session) // for sessions that open did not make
	targets    sync.Map       // session name to func(*Session)
	serial     atomic.Int64
}

type pairOptions struct {
	carrier    string
	hub, agent Config
	window     uint32 // the agent's, as its HELLO would say; 0 = default
	target     func(*Session)
}

func newPair(t testing.TB, o pairOptions) *pair {
	t.Helper()
	p := &pair{t: t, target: o.target}
	if o.window == 0 {
		o.window = DefaultWindow
	}
	o.agent.Window = o.window
	o.agent.OnOpen = func(s *Session) {
		target := p.target
		if f, ok := p.targets.Load(s.Open().Session); ok {
			target = f.(func(*Session))
		}
		if target == nil {
			target = func(s *Session) { s.Refuse(wire.ReasonConnectFailed, "the test has no target for it") }
		}
		p.wg.Go(func() { target(s) })
	}
	a, h := tcpPair(t)
	p.agentConn, p.hubConn = a, h
	ac, hc := carry(t, o.carrier, a, h)
	p.hub, p.agent = NewHubLink(hc, o.hub, o.window), NewAgentLink(ac, o.agent)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	var served sync.WaitGroup
	served.Go(func() { p.hubErr = p.hub.Serve(ctx) })
	served.Go(func() { p.agentErr = p.agent.Serve(ctx) })
	t.Cleanup(func() { cancel(); served.Wait(); p.wg.Wait() })
	return p
}

// carry wraps the two ends of a connection.
func carry(t testing.TB, kind string, a, h net.Conn) (agent, hub Carrier) {
	t.Helper()
	var flush func() error
	if kind == "tls" || kind == "websocket-tls" {
		g := NewGather(a)
		flush = g.Flush
		cert, pool := testCert(t)
		ta := tls.Client(g, &tls.Config{RootCAs: pool, ServerName: "hub.test"})
		th := tls.Server(h, &tls.Config{Certificates: []tls.Certificate{cert}})
		errc := make(chan error, 1)
		go func() { errc <- th.Handshake() }()
		if err := ta.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-errc; err != nil {
			t.Fatal(err)
		}
		g.Collect()
		a, h = ta, th
	}
	if kind == bare {
		return bareCarrier{a}, bareCarrier{h}
	}
	if kind == "websocket" || kind == "websocket-tls" {
		return NewWebSocket(a, nil, flush, true), NewWebSocket(h, nil, nil, false)
	}
	return NewNative(a, nil, flush), NewNative(h, nil, nil)
}

func testCert(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"hub.test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// tcpPair returns both ends of a TCP connection; the test's end closes them.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type res struct {
		c   net.Conn
		err error
	}
	ch := make(chan res, 1)
	go func() { c, err := ln.Accept(); ch <- res{c, err} }()
	d, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { d.Close(); r.c.Close() })
	return d.(*net.TCPConn), r.c.(*net.TCPConn)
}

// stream is one session seen from outside: what a client and a target hold.
type stream struct {
	client, target *net.TCPConn
	session        *Session    // hub side
	hub, agent     chan Result // one value each when over
}

// open makes a session whose two local ends are real sockets.
func (p *pair) open(cfg SessionConfig) *stream {
	p.t.Helper()
	st := &stream{hub: make(chan Result, 1), agent: make(chan Result, 1)}
	client, clientSide := tcpPair(p.t)
	targetSide, target := tcpPair(p.t)
	st.client, st.target = client, target
	name := fmt.Sprint("s", p.serial.Add(1))
	p.targets.Store(name, func(s *Session) { st.agent <- s.Accept(Endpoint{Conn: targetSide}, SessionConfig{}) })
	s, err := p.hub.Open(wire.Open{Connector: "test", Session: name}, cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	st.session = s
	p.wg.Go(func() { st.hub <- s.Run(Endpoint{Conn: clientSide}) })
	return st
}

func (st *stream) results(t *testing.T) (hub, agent Result) {
	t.Helper()
	return recv(t, st.hub), recv(t, st.agent)
}

func recv[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(60 * time.Second):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

// wantRST fails unless reading c ends with a reset.
func wantRST(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if !isResetErr(err) {
		t.Errorf("got %v, want a reset", err)
	}
}

func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.Copy(io.Discard, c); err != nil || n != 0 {
		t.Errorf("got %d bytes and %v, want EOF", n, err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func linkReason(t *testing.T, err error) wire.Reason {
	t.Helper()
	var le *LinkError
	if !errors.As(err, &le) {
		t.Fatalf("%v is not a LinkError", err)
	}
	return le.Reason
}
