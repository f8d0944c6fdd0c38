// Package l1 owns the reference that everything is measured against: the
// simplest possible two-hop TLS relay without multiplexing. Each client
// connection gets a TLS connection of its own, taken from a pool that the
// agent opened ahead of time; bytes move by io.Copy.
//
// Invariants: FIN and RST pass in both directions; a refused target resets the
// client; a pooled connection that stopped answering is never handed out; no
// idea of ours about speed goes in here, or the measure would move.
package l1

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// Bytes that cross a pooled connection before it carries a session.
const (
	beat    = 'h' // agent to hub, every beatEvery while pooled
	start   = 'S' // hub to agent: a client is here, dial
	dialled = 'A' // agent to hub: the target answered, its bytes follow
)

const (
	beatEvery = 5 * time.Second
	beatLimit = 3 * beatEvery
	dialLimit = 5 * time.Second
	takeLimit = 10 * time.Second
)

// PoolSize is how many idle connections the agent keeps at the hub.
const PoolSize = 64

type halfCloser interface {
	io.Writer
	CloseWrite() error
}

// oneWay copies until EOF and passes it on as a FIN; any other end resets both
// sides, which also ends the other direction.
func oneWay(dst halfCloser, src io.Reader, plain *net.TCPConn, link *tls.Conn) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	// The peer of a finished copy may be gone already: that is no reset.
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ENOTCONN) {
		reset(plain)
		reset(link.NetConn().(*net.TCPConn))
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
