package testpeer

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Target is a TCP server on 127.0.0.1.
type Target struct {
	Addr string

	accepted atomic.Int64
	server   *server
}

// Accepted is how many connections came in since the start.
func (t *Target) Accepted() int { return int(t.accepted.Load()) }

// Open is how many connections are being served now.
func (t *Target) Open() int { return t.server.open() }

// Serve runs handle for each connection, in a goroutine of its own, and closes
// the connection when handle returns. When the test ends, all connections are
// closed and all handlers waited for: a handler must return once its
// connection fails.
func Serve(tb testing.TB, handle func(*net.TCPConn)) *Target {
	tb.Helper()
	t := new(Target)
	t.server = serve(tb, func(c *net.TCPConn) {
		t.accepted.Add(1)
		handle(c)
	})
	t.Addr = t.server.addr
	return t
}

// Echo returns what it gets and passes on the end of it.
func Echo(tb testing.TB) *Target {
	tb.Helper()
	return Serve(tb, func(c *net.TCPConn) {
		if _, err := io.Copy(c, c); err == nil {
			c.CloseWrite()
		}
	})
}

// Silent accepts and then neither reads nor writes.
func Silent(tb testing.TB) *Target {
	tb.Helper()
	over := make(chan struct{})
	t := Serve(tb, func(*net.TCPConn) { <-over })
	tb.Cleanup(func() { close(over) })
	return t
}

// Resetter reads n bytes of each connection and then resets it. With n = 0 it
// does so at once.
func Resetter(tb testing.TB, n int64) *Target {
	tb.Helper()
	return Serve(tb, func(c *net.TCPConn) {
		io.CopyN(io.Discard, c, n) // reset either way
		reset(c)
	})
}

// SendAfterFIN reads until the client's FIN, then sends Pattern(n) and its own
// FIN: the client's half must have been closed without the other.
func SendAfterFIN(tb testing.TB, n int64) *Target {
	tb.Helper()
	return Serve(tb, func(c *net.TCPConn) {
		if _, err := io.Copy(io.Discard, c); err != nil {
			return
		}
		io.Copy(c, Pattern(n)) // the client notices what is missing
	})
}

// FINFirst sends its FIN at once and then reads all that the client sends. got
// receives each connection's number of bytes, or -1 if it did not end in order.
func FINFirst(tb testing.TB) (t *Target, got <-chan int64) {
	tb.Helper()
	ch := make(chan int64, 1024)
	t = Serve(tb, func(c *net.TCPConn) {
		c.CloseWrite()
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			n = -1
		}
		ch <- n
	})
	return t, ch
}

// Pattern is n bytes that repeat at no power of two, so that bytes lost,
// doubled or moved show.
func Pattern(n int64) io.Reader { return io.LimitReader(new(pattern), n) }

type pattern struct{ at uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		x := p.at * 0x9e3779b97f4a7c15 // spreads the position over all bits
		b[i] = byte(x >> 56)
		p.at++
	}
	return len(b), nil
}

// server accepts connections until the test ends.
type server struct {
	addr string

	mu     sync.Mutex
	conns  map[*net.TCPConn]struct{} // guarded by mu
	closed bool                      // guarded by mu
	wg     sync.WaitGroup
}

func serve(tb testing.TB, handle func(*net.TCPConn)) *server {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &server{addr: ln.Addr().String(), conns: make(map[*net.TCPConn]struct{})}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.run(c.(*net.TCPConn), handle)
		}
	})
	tb.Cleanup(func() {
		ln.Close()
		s.closeAll()
		s.wg.Wait()
	})
	return s
}

func (s *server) run(c *net.TCPConn, handle func(*net.TCPConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		handle(c)
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
}

func (s *server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
