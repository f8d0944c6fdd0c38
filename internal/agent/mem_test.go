package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// memHub is a hub on net.Pipe, for tests under synctest: a bubble's clock
// stands still while a real socket is waited for.
type memHub struct {
	links  chan *memLink
	down   atomic.Bool // refuses connections
	target func(net.Conn)

	// welcome, when set, changes the answer to a HELLO; auth, when set, receives
	// AUTH frames.
	welcome func(wire.Hello, *wire.HelloAck)
	auth    func(*memLink, string)
}

type memLink struct {
	link    *tunnel.Link
	carrier tunnel.Carrier
	hang    *atomic.Bool // swallow all that arrives
	hello   wire.Hello
	token   string // of the request that it began with
}

func newMemHub(t *testing.T) *memHub {
	t.Helper()
	return &memHub{links: make(chan *memLink, 16), target: func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}}
}

// agent returns an agent that knows only this hub and its one target.
func (h *memHub) agent(t *testing.T, cfg Config) (*Agent, *observer.ObservedLogs) {
	t.Helper()
	cfg.URL, cfg.AgentID, cfg.TokenFile = "http://localhost", "premise-1", writeToken(t, testToken)
	cfg.Targets = map[string]Target{"echo": {"target", 1}}
	core, logs := observer.New(zapcore.DebugLevel)
	a, err := New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	a.dialer.dial = func(context.Context, string, string) (net.Conn, error) {
		if h.down.Load() {
			return nil, errors.New("connection refused")
		}
		ours, theirs := net.Pipe()
		go h.serve(theirs)
		return ours, nil
	}
	a.dialTarget = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go h.target(theirs)
		return ours, nil
	}
	return a, logs
}

// hangingReader lets nothing through once hang is set, as a network that drops
// every packet: no error, no end.
type hangingReader struct {
	io.Reader
	hang *atomic.Bool
}

func (r *hangingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	for err == nil && r.hang.Load() {
		n, err = r.Reader.Read(p)
	}
	return n, err
}

func (h *memHub) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\nNowconnect-Version: 1\r\n\r\n")
	hang := new(atomic.Bool)
	c := tunnel.NewNative(conn, &hangingReader{Reader: br, hang: hang}, nil)
	hello, err := tunnel.ReadHello(context.Background(), c)
	if err != nil {
		return
	}
	ack := wire.HelloAck{Version: 1, Hub: "mem", Accepted: hello.Connectors}
	if h.welcome != nil {
		h.welcome(hello, &ack)
	}
	if tunnel.Welcome(c, ack) != nil {
		return
	}
	l := &memLink{carrier: c, hang: hang, hello: hello, token: strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")}
	// Its own pings would end a link that hangs.
	cfg := tunnel.Config{PingInterval: 24 * time.Hour, PingTimeout: 24 * time.Hour}
	if h.auth != nil {
		cfg.OnAuth = func(token []byte) { h.auth(l, string(token)) }
	}
	l.link = tunnel.NewHubLink(c, cfg, hello.Window)
	h.links <- l
	_ = l.link.Serve(context.Background())
}

func (h *memHub) nextLink(t *testing.T) *memLink {
	t.Helper()
	select {
	case l := <-h.links:
		return l
	case <-time.After(10 * time.Minute):
		t.Fatal("no link")
		return nil
	}
}

// open begins a session that stays until its client end or the link goes; the
// channel yields its result.
func (l *memLink) open(t *testing.T, connector string) <-chan tunnel.Result {
	t.Helper()
	client, result := l.openClient(t, connector)
	t.Cleanup(func() { client.Close() })
	return result
}

func (l *memLink) openClient(t *testing.T, connector string) (net.Conn, <-chan tunnel.Result) {
	t.Helper()
	s, err := l.link.Open(wire.Open{Connector: connector, Session: "s-" + connector}, tunnel.SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	client, server := net.Pipe()
	result := make(chan tunnel.Result, 1)
	go func() { result <- s.Run(tunnel.Endpoint{Conn: server}) }()
	return client, result
}

func runMem(t *testing.T, a *Agent, logs *observer.ObservedLogs) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Agent: a, logs: logs, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := a.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	return r
}

// runOne runs an agent with one link to h.
func runOne(t *testing.T, h *memHub) *running {
	t.Helper()
	a, logs := h.agent(t, Config{Links: 1})
	return runMem(t, a, logs)
}

// silentPipe dials a server that reads and never answers.
func silentPipe(t *testing.T) dialFunc {
	t.Helper()
	return func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		return ours, nil
	}
}
