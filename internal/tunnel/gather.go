package tunnel

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// gatherSize is how many bytes a Gather holds before it writes by itself: three
// full TLS records. A fourth would no longer fit into one segment of the
// kernel's (64 KiB), and what is copied should stay in the nearest cache
// (docs/performance.md).
const gatherSize = 50 << 10

// gathers holds buffers of gatherSize. A link has one only while it writes:
// idle links hold none.
var gathers = sync.Pool{New: func() any {
	b := make([]byte, 0, gatherSize)
	return &b
}}

// Gather is a net.Conn that collects writes until Flush, so that all TLS
// records of one batch leave in one system call. It belongs between the TCP
// connection and crypto/tls, at either end. Until Collect it writes through:
// nobody would flush for the TLS handshake or an HTTP server.
//
// It reads through, too, and lets a carrier above TLS read what is there
// already without waiting for more.
type Gather struct {
	net.Conn
	ahead *aheadReader // owned by the reading goroutine; not nil while that must not wait

	mu      sync.Mutex
	collect bool
	buf     *[]byte // bytes not yet written; from gathers, nil between batches
}

// NewGather returns a Gather over conn that writes through until Collect.
func NewGather(conn net.Conn) *Gather { return &Gather{Conn: conn} }

// Read reads from the connection below.
func (g *Gather) Read(p []byte) (int, error) {
	if g.ahead == nil {
		return g.Conn.Read(p)
	}
	return g.ahead.read(p)
}

// GatherBelow finds the Gather under a TLS connection and other wrappers that
// have NetConn; nil if there is none. One above TLS does not count: there
// nothing is left to gather.
func GatherBelow(conn net.Conn) *Gather {
	secure := false
	for range maxWrappers {
		if g, ok := conn.(*Gather); ok && secure {
			return g
		}
		if _, ok := conn.(*tls.Conn); ok {
			secure = true
		}
		c, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = c.NetConn()
	}
	return nil
}

// Collect ends the write-through of the handshake: from now on bytes wait for
// Flush.
func (g *Gather) Collect() {
	g.mu.Lock()
	g.collect = true
	g.mu.Unlock()
}

// Write collects p, and writes what it holds when it is full.
func (g *Gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.collect {
		return g.Conn.Write(p)
	}
	if g.buf != nil && len(*g.buf)+len(p) > gatherSize {
		if err := g.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) >= gatherSize {
		return g.Conn.Write(p)
	}
	if g.buf == nil {
		g.buf = gathers.Get().(*[]byte)
	}
	*g.buf = append(*g.buf, p...)
	return len(p), nil
}

// ReadFrom lets an HTTP server without TLS go on sending files without copying
// them. It is for connections that never collect.
func (g *Gather) ReadFrom(r io.Reader) (int64, error) { return io.Copy(g.Conn, r) }

// Flush writes what was collected.
func (g *Gather) Flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flushLocked()
}

func (g *Gather) flushLocked() error {
	if g.buf == nil {
		return nil
	}
	_, err := g.Conn.Write(*g.buf)
	*g.buf = (*g.buf)[:0]
	gathers.Put(g.buf)
	g.buf = nil
	return err
}

// Close flushes what it can (crypto/tls writes its close_notify last) and
// closes the connection. It does not wait for a Write in progress: closing is
// how such a Write is unblocked.
func (g *Gather) Close() error {
	if g.mu.TryLock() {
		_ = g.flushLocked() // best effort: the connection is going away
		g.mu.Unlock()
	}
	return g.Conn.Close()
}

// NetConn returns the connection below, as tls.Conn.NetConn does.
func (g *Gather) NetConn() net.Conn { return g.Conn }
