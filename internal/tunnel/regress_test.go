package tunnel

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Everything arrived (peer's FIN too); the peer then leaves in order.
func TestBytesQueuedWithFinSurviveTheLink(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain"})
	st := p.open(SessionConfig{})
	payload := bytes.Repeat([]byte("x"), 24<<20)
	st.client.CloseWrite()
	go func() { st.target.Write(payload); st.target.CloseWrite() }()
	// read just enough for the agent to be done
	got := 0
	buf := make([]byte, 16<<10)
	for {
		select {
		case a := <-st.agent:
			if a.Reason != wire.ReasonFin {
				t.Fatalf("agent %+v", a)
			}
			t.Logf("agent session over with fin after client read %d; hub queue %d", got, st.session.Queued())
			goto done
		default:
		}
		st.client.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, _ := st.client.Read(buf)
		got += n
		time.Sleep(100 * time.Microsecond)
	}
done:
	if p.agent.NumSessions() != 0 {
		t.Fatal("agent still has sessions")
	}
	p.agent.Close(wire.ReasonShutdown, "agent drained, nothing left") // as internal/agent does
	st.client.SetReadDeadline(time.Now().Add(10 * time.Second))
	rest, err := io.ReadAll(st.client)
	got += len(rest)
	h := <-st.hub
	t.Logf("client got %d of %d, end %v; hub result %v", got, len(payload), err, h.Reason)
	if got != len(payload) {
		t.Errorf("lost %d bytes, client saw err=%v", len(payload)-got, err)
	}
}

// Pooled sessions keep the window they once grew to.
func TestIdleSessionsGiveBudgetBack(t *testing.T) {
	b := NewBudget(8 << 20)
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{Budget: b}})
	payload := make([]byte, 8<<20)
	for range 8 {
		st := p.open(SessionConfig{})
		go st.target.Write(payload)
		io.CopyN(io.Discard, st.client, int64(len(payload)))
		t.Logf("session idle, queued %d, budget used %d", st.session.Queued(), b.Used())
	}
	if _, err := p.hub.Open(wire.Open{Connector: "test"}, SessionConfig{}); err != nil {
		t.Errorf("8 idle sessions, nothing queued, budget 8 MiB: %v", err)
	}
}

// Growth after the end is never given back.
func TestBudgetAfterEnd(t *testing.T) {
	b := NewBudget(64 << 20)
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{Budget: b}})
	st := p.open(SessionConfig{})
	s := st.session
	eventually(t, "attached", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.ep != nil })
	s.Reset(wire.ReasonRevoked, "x")
	// what drainChunk does when a write succeeds between finish and SetDeadline
	s.mu.Lock()
	s.epochStart = time.Now()
	s.wroteLocked(make([]byte, 48<<10))
	s.mu.Unlock()
	if n := b.Used(); n != 0 {
		t.Errorf("%d bytes leaked", n)
	}
}

// The link's reader must not wait for the writer's socket.
func TestWebSocketPingWhileWriteBlocks(t *testing.T) {
	a, h := tcpPair(t)
	a.SetReadBuffer(1)
	h.SetWriteBuffer(1)
	c := NewWebSocket(h, nil, nil, false)
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	full := NewWebSocket(a, nil, nil, true).(*webSocket)
	full.message(wsPing, []byte("hi"))
	full.message(wsBinary, []byte("data"))
	full.Flush()
	got := make(chan string, 1)
	go func() { b := make([]byte, 10); n, _ := c.Read(b); got <- string(b[:n]) }()
	select {
	case s := <-got:
		t.Log(s)
	case <-time.After(2 * time.Second):
		t.Error("Read is blocked by a Write in progress after a WebSocket ping")
	}
	c.Close()
	<-stuck
}

// Close must unblock at once.
func TestCloseOfStuckGather(t *testing.T) {
	a, h := tcpPair(t)
	a.SetWriteBuffer(4096)
	h.SetReadBuffer(4096)
	g := NewGather(a)
	cert, pool := testCert(t)
	ta := tls.Client(g, &tls.Config{RootCAs: pool, ServerName: "hub.test"})
	th := tls.Server(h, &tls.Config{Certificates: []tls.Certificate{cert}})
	go th.Handshake()
	if err := ta.Handshake(); err != nil {
		t.Fatal(err)
	}
	g.Collect()
	c := NewNative(ta, nil, g.Flush)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
			if err := c.Flush(); err != nil {
				return
			}
		}
	})
	time.Sleep(300 * time.Millisecond)
	begin := time.Now()
	c.Close()
	if d := time.Since(begin); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	wg.Wait()
}

// No new session on a link that is being closed.
func TestOpenDuringClose(t *testing.T) {
	a, h := tcpPair(t)
	a.SetReadBuffer(1)
	h.SetWriteBuffer(1)
	l := NewHubLink(NewNative(h, nil, nil), Config{}, wire.MaxWindow)
	done := make(chan error, 1)
	go func() { done <- l.Serve(t.Context()) }()
	s, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	client, side := tcpPair(t)
	go s.Run(Endpoint{Conn: side})
	go func() {
		b := make([]byte, 1<<20)
		for {
			if _, err := client.Write(b); err != nil {
				return
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	go l.Close(wire.ReasonRevoked, "credential is no longer valid")
	time.Sleep(100 * time.Millisecond)
	if _, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{}); err == nil {
		t.Error("Open succeeds 100 ms after Close(revoked) began")
	}
	<-done
}

// Clients that come while a link is stalled must not kill it.
func TestOpensWhileStalledDoNotEndTheLink(t *testing.T) {
	a, h := tcpPair(t)
	a.SetReadBuffer(1)
	h.SetWriteBuffer(1)
	l := NewHubLink(NewNative(h, nil, nil), Config{Budget: NewBudget(256 << 20)}, 64<<10)
	done := make(chan error, 1)
	go func() { done <- l.Serve(t.Context()) }()
	opened := 0
	begin := time.Now()
	var mu sync.Mutex
	var last error
	for time.Since(begin) < 2*time.Second && !l.Ended() {
		ch := make(chan error, 1)
		go func() {
			_, err := l.Open(wire.Open{Connector: "addomain", Session: "0a1b2c3d-zzzz", Client: "10.20.30.40:50000", ConnectTimeout: 3000}, SessionConfig{ConnectTimeout: 300 * time.Millisecond})
			ch <- err
		}()
		select {
		case err := <-ch:
			mu.Lock()
			last = err
			mu.Unlock()
			if err == nil {
				opened++
			} else {
				time.Sleep(time.Millisecond)
			}
		case <-time.After(time.Second): // the inline writer is stuck
		}
	}
	time.Sleep(time.Second)
	if l.Ended() {
		t.Errorf("link ended after %d opens in %v: %v", opened, time.Since(begin), <-done)
		return
	}
	t.Log(opened, last)
	l.Close(wire.ReasonShutdown, "")
	<-done
}

// What a stuck link holds of c2a bytes.
func TestQueuedBytesAreBounded(t *testing.T) {
	a, h := tcpPair(t)
	l := NewHubLink(NewNative(h, nil, nil), Config{}, wire.MaxWindow)
	done := make(chan error, 1)
	go func() { done <- l.Serve(t.Context()) }()
	var conns []net.Conn
	for range 200 {
		s, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
		if err != nil {
			t.Fatal(err)
		}
		client, side := tcpPair(t)
		conns = append(conns, client)
		go s.Run(Endpoint{Conn: side})
	}
	drainN := func(n int64) { io.CopyN(io.Discard, a, n) }
	for _, c := range conns {
		go func() {
			b := make([]byte, 1<<20)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
	drainN(100 << 20) // levels grow
	time.Sleep(500 * time.Millisecond)
	l.out.mu.Lock()
	q := l.out.queued
	n := len(l.out.small) + len(l.out.large)
	l.out.mu.Unlock()
	t.Logf("queued %d KiB in %d buffers, maxQueued %d KiB, 200 sessions", q>>10, n, maxQueued>>10)
	if q > maxQueued+2*maxQuantum {
		t.Errorf("queued %d, bound %d", q, maxQueued)
	}
	l.Close(wire.ReasonShutdown, "")
	<-done
}

// A session that is over must not clear the deadline that says so.
func TestAwaitDrainedAfterEnd(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain"})
	st := p.open(SessionConfig{})
	s := st.session
	eventually(t, "attached", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.ep != nil })
	_, other := tcpPair(t)
	s2 := newSession(p.hub, 4711, SessionConfig{})
	s2.ep = &Endpoint{Conn: struct{ net.Conn }{other}, TCP: other}
	s2.below = newRawSocket(other)
	s2.finish(Result{Reason: wire.ReasonRevoked})
	if err := s2.awaitDrained(s2.below, time.Now()); err == nil {
		t.Error("awaitDrained goes on for a session that is over; the Write that follows has no deadline and may block for ever")
	}
}

// An OPEN that is read after the link has failed (the reader still has
// frames in its buffer) makes a session that nobody ends.
func TestOpenAfterFailIsNotLeaked(t *testing.T) {
	a, _ := tcpPair(t)
	b := NewBudget(1 << 20)
	l := NewAgentLink(NewNative(a, nil, nil), Config{Budget: b, OnOpen: func(*Session) {}})
	l.fail(lost(io.ErrUnexpectedEOF)) // the writer or the keeper saw it first
	o, _ := wire.AppendMessage(nil, wire.TypeOpen, 1, &wire.Open{Connector: "c", Window: 1}, wire.MaxData)
	_ = l.openFrame(1, o[wire.HeaderLen:])
	if n := l.NumSessions(); n != 0 {
		t.Errorf("%d sessions that never end, %d bytes of budget", n, b.Used())
	}
}

// A peer that is told CLOSE while it sends with all its might must learn the
// reason, and not find the connection reset.
func TestCloseIsHeardByAPeerThatSends(t *testing.T) {
	for range 5 {
		p := newPair(t, pairOptions{carrier: "tls"})
		streams := []*stream{}
		for range 8 {
			st := p.open(SessionConfig{})
			streams = append(streams, st)
			go func() {
				b := make([]byte, 64<<10)
				for {
					if _, err := st.client.Write(b); err != nil {
						return
					}
				}
			}()
			io.ReadFull(st.target, make([]byte, 64<<10))
		}
		p.agent.Close(wire.ReasonShutdown, "agent stops")
		for _, st := range streams {
			if h, a := st.results(t); h.Reason != wire.ReasonShutdown || a.Reason != wire.ReasonShutdown {
				t.Errorf("ended with %+v at the hub, %+v at the agent", h, a)
			}
		}
	}
}
