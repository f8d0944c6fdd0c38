package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

func isResetErr(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

func eachCarrier(t *testing.T, f func(t *testing.T, carrier string)) {
	for _, c := range append([]string{bare}, carriers...) {
		t.Run(c, func(t *testing.T) { f(t, c) })
	}
}

// payload is random bytes that differ per seed.
func payload(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// pump writes b in pieces of random size and then FIN.
func pump(c *net.TCPConn, b []byte, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := min(len(b), 1+r.IntN(100<<10))
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return c.CloseWrite()
}

func TestBytesArriveIntactBothWaysAtOnce(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		p := newPair(t, pairOptions{carrier: carrier})
		var wg sync.WaitGroup
		for i := range 8 {
			st := p.open(SessionConfig{})
			up, down := payload(uint64(i), 1<<20+i*7919), payload(uint64(100+i), 2<<20+i*104729)
			check := func(from net.Conn, want []byte, who string) {
				got, err := io.ReadAll(from)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
					t.Errorf("session %d: %s got %d of %d bytes, %v", i, who, len(got), len(want), err)
				}
			}
			wg.Go(func() { _ = pump(st.client, up, 1) })
			wg.Go(func() { _ = pump(st.target, down, 2) })
			wg.Go(func() { check(st.target, up, "target") })
			wg.Go(func() { check(st.client, down, "client") })
			wg.Go(func() {
				h, a := recv(t, st.hub), recv(t, st.agent)
				if h.Reason != wire.ReasonFin || a.Reason != wire.ReasonFin {
					t.Errorf("session %d ended with %v (%s) at the hub, %v (%s) at the agent", i, h.Reason, h.Message, a.Reason, a.Message)
				}
				if h.Sent != int64(len(up)) || h.Received != int64(len(down)) || !h.Opened {
					t.Errorf("session %d: result %+v", i, h)
				}
			})
		}
		wg.Wait()
		if n := p.hub.NumSessions() + p.agent.NumSessions(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
}

func TestHalfCloseLivesUntilBothSidesAreDone(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		for _, dir := range []string{"client first", "target first"} {
			t.Run(dir, func(t *testing.T) {
				p := newPair(t, pairOptions{carrier: carrier})
				st := p.open(SessionConfig{})
				first, second := st.client, st.target
				if dir == "target first" {
					first, second = second, first
				}
				first.Write([]byte("request"))
				first.CloseWrite()
				if got, err := io.ReadAll(second); string(got) != "request" || err != nil {
					t.Fatalf("got %q, %v", got, err)
				}
				want := payload(7, 10<<20)
				go pump(second, want, 3)
				got, err := io.ReadAll(first)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d of %d bytes after the half-close, %v", len(got), len(want), err)
				}
				if h, a := st.results(t); h.Reason != wire.ReasonFin || a.Reason != wire.ReasonFin {
					t.Errorf("ended with %v and %v", h, a)
				}
			})
		}
	})
}

func TestResetPassesBothWays(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		p := newPair(t, pairOptions{carrier: carrier})
		for _, from := range []string{"client", "target", "client after its FIN", "target after its FIN"} {
			t.Run(from, func(t *testing.T) {
				st := p.open(SessionConfig{})
				a, b := st.client, st.target
				if from[0] == 't' {
					a, b = b, a
				}
				a.Write([]byte("x"))
				io.ReadFull(b, make([]byte, 1))
				if len(from) > 6 {
					a.CloseWrite()
					wantEOF(t, b)
				}
				a.SetLinger(0)
				a.Close()
				if len(from) > 6 {
					// EOF was read already: the reset shows when b writes.
					eventually(t, "write fails", func() bool { _, err := b.Write([]byte("y")); return err != nil })
				} else {
					wantRST(t, b)
				}
				if h, g := st.results(t); h.Reason != wire.ReasonRst || g.Reason != wire.ReasonRst {
					t.Errorf("ended with %v and %v", h, g)
				}
			})
		}
	})
}

func TestRefusedDialIsTyped(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain", target: func(s *Session) { s.Refuse(wire.ReasonConnectFailed, "connection refused") }})
	client, side := tcpPair(t)
	s, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("sent ahead"))
	r := s.Run(Endpoint{Conn: side})
	if r.Reason != wire.ReasonConnectFailed || !r.Remote || r.Message != "connection refused" || r.Opened {
		t.Errorf("got %+v", r)
	}
	wantRST(t, client)
}

func TestConnectTimeoutAtTheHub(t *testing.T) {
	cancelled := make(chan struct{})
	p := newPair(t, pairOptions{carrier: "plain", target: func(s *Session) { <-s.Done(); close(cancelled) }})
	client, side := tcpPair(t)
	begin := time.Now()
	s, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{ConnectTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	r := s.Run(Endpoint{Conn: side})
	if r.Reason != wire.ReasonConnectTimeout || time.Since(begin) > 5*time.Second {
		t.Errorf("got %+v after %v", r, time.Since(begin))
	}
	recv(t, cancelled) // the agent's dial is told to stop
	wantRST(t, client)
}

// TestStalledReaderStopsOnlyItself lets a client not read while its target
// sends without end. Everything else goes on, and no queue passes its bound.
func TestStalledReaderStopsOnlyItself(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		const depth = 8 // frames
		o := new(counting)
		p := newPair(t, pairOptions{carrier: carrier})
		stuck := p.open(SessionConfig{Observer: o, MaxWindow: depth * wire.MaxFrame})
		stuck.client.SetReadBuffer(4 << 10)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for {
				stuck.target.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := stuck.target.Write(b); err != nil {
					select {
					case <-stop:
						return
					default:
					}
				}
			}
		})
		eventually(t, "queue fills", func() bool { return stuck.session.QueueFrames() >= depth/2 && o.drains.Load() > 0 })
		writes := o.writes.Load()
		deepest := 0
		for i := range 20 {
			st := p.open(SessionConfig{})
			want := payload(uint64(i), 1<<20)
			go pump(st.target, want, 1)
			go pump(st.client, want, 1)
			if got, err := io.ReadAll(st.client); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("beside the stalled client: %d bytes, %v", len(got), err)
			}
			io.Copy(io.Discard, st.target)
			deepest = max(deepest, stuck.session.QueueFrames())
		}
		if deepest > depth {
			t.Errorf("queue grew to %d frames, the bound is %d", deepest, depth)
		}
		if n := o.writes.Load() - writes; n != 0 {
			t.Errorf("%d writes told while the client takes nothing", n)
		}
		close(stop)
		stuck.client.SetLinger(0)
		stuck.client.Close() // the hub's side notices although it only waits
		if h := recv(t, stuck.hub); h.Reason != wire.ReasonRst {
			t.Errorf("ended with %+v", h)
		}
		wg.Wait()
	})
}

// counting is an Observer that counts.
type counting struct {
	noObserver
	writes, drains, received atomic.Int64
}

func (c *counting) WriteTime(time.Duration) { c.writes.Add(1) }
func (c *counting) DrainTime(time.Duration) { c.drains.Add(1) }
func (c *counting) FrameReceived(n int)     { c.received.Add(int64(n)) }

func TestClientResetIsSeenWhileStalledForCredit(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{PingInterval: 20 * time.Millisecond}})
	st := p.open(SessionConfig{})
	st.target.SetReadBuffer(4 << 10)
	b := make([]byte, 64<<10)
	for {
		st.client.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := st.client.Write(b); err != nil {
			break // everything up to the target is full
		}
	}
	st.client.SetLinger(0)
	st.client.Close()
	if h := recv(t, st.hub); h.Reason != wire.ReasonRst {
		t.Errorf("hub ended with %+v", h)
	}
	if a := recv(t, st.agent); a.Reason != wire.ReasonRst || !a.Remote {
		t.Errorf("agent ended with %+v", a)
	}
}

func TestWindowGrowsForABulkTransferAndRespectsTheBudget(t *testing.T) {
	for _, memory := range []int64{0, 256 << 10} {
		budget := NewBudget(memory)
		p := newPair(t, pairOptions{carrier: "plain", hub: Config{Budget: budget, MaxWindow: 1 << 20}})
		st := p.open(SessionConfig{})
		p.hub.rtt.Store(int64(100 * time.Millisecond)) // as if the link were long
		go func() { st.target.Write(make([]byte, 16<<20)); st.target.CloseWrite() }()
		peak := int64(0)
		buf := make([]byte, 32<<10)
		for {
			_, err := st.client.Read(buf)
			peak = max(peak, budget.Used())
			if err != nil {
				break
			}
		}
		want := int64(1 << 20)
		if memory > 0 {
			want = memory
		}
		if peak > want || peak < want/2 {
			t.Errorf("memory %d: the window peaked at %d, want about %d", memory, peak, want)
		}
		st.client.CloseWrite()
		st.results(t)
		if n := budget.Used(); n != 0 {
			t.Errorf("%d bytes of budget leaked", n)
		}
	}
}

func TestBudgetRefusesSessionsBeyondIt(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{Budget: NewBudget(64<<10 + 2*wire.MaxFrame)},
		target: func(s *Session) { <-s.Done() }})
	windows := []uint32{}
	for {
		s, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{})
		if errors.Is(err, ErrBudget) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		windows = append(windows, s.Open().Window)
	}
	if len(windows) != 3 || windows[0] != 64<<10 || windows[2] != wire.MaxFrame {
		t.Errorf("windows %v, want one full and two of a frame", windows)
	}
}

func TestIdleTimeoutOnlyWhenConfigured(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{PingInterval: 20 * time.Millisecond}})
	short, long := p.open(SessionConfig{IdleTimeout: 150 * time.Millisecond}), p.open(SessionConfig{})
	for range 10 { // traffic keeps it alive
		short.client.Write([]byte("x"))
		io.ReadFull(short.target, make([]byte, 1))
		time.Sleep(30 * time.Millisecond)
	}
	select {
	case r := <-short.hub:
		t.Fatalf("ended while busy: %+v", r)
	default:
	}
	if h, a := short.results(t); h.Reason != wire.ReasonIdle || a.Reason != wire.ReasonIdle {
		t.Errorf("ended with %v and %v", h, a)
	}
	wantEOF(t, short.client)
	long.client.Write([]byte("still here"))
	if _, err := io.ReadFull(long.target, make([]byte, 10)); err != nil {
		t.Error(err)
	}
}

func TestIdleSessionCostsNoGoroutineOfOurs(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain"})
	settle := func() int {
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
		return runtime.NumGoroutine()
	}
	before := settle()
	const n = 50
	for range n {
		st := p.open(SessionConfig{})
		st.client.Write([]byte("ping"))
		io.ReadFull(st.target, make([]byte, 4))
	}
	// One that called Run and one that called Accept, each session.
	if more := settle() - before; more != 2*n {
		t.Errorf("%d goroutines for %d idle sessions, want %d", more, n, 2*n)
	}
}

func TestFarewellArrivesBeforeTheEnd(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain", target: func(s *Session) { s.Refuse(wire.ReasonConnectFailed, "") }})
	client, side := tcpPair(t)
	s, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	client.Write(bytes.Repeat([]byte("unread"), 1000)) // would turn a close into RST
	s.Run(Endpoint{Conn: side, Farewell: func(r wire.Reason) []byte { return []byte("bye: " + r.String()) }})
	client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(client); string(got) != "bye: connect_failed" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
