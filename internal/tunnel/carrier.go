package tunnel

import (
	"io"
	"net"
	"time"
)

// Carrier is one link's byte stream: frames straight on a connection
// ([NewNative]) or inside WebSocket messages ([NewWebSocket]). Another
// transport, such as a QUIC stream, fits behind the same interface.
//
// One goroutine may read while another writes. Each Write holds whole frames.
type Carrier interface {
	io.Reader
	// Write takes p whole or fails. It may keep a copy of p until Flush, but
	// never p itself.
	Write(p []byte) (int, error)
	Flush() error
	// Close unblocks Read and Write. It may be called twice.
	Close() error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Name is the value of the HTTP Upgrade header: "nowconnect" or "websocket".
	Name() string
}

// aheader is a carrier that can read what has arrived already.
type aheader interface {
	// readAhead reads without waiting; 0 when nothing is there, or the end, or
	// an error, which Read then tells.
	readAhead(p []byte) int
}

// Names of the carriers as they stand in the HTTP Upgrade header.
const (
	NativeName    = "nowconnect"
	WebSocketName = "websocket"
)

// native carries frames straight on a connection.
type native struct {
	net.Conn
	r     io.Reader
	flush func() error
	ahead aheadReader
	read  func(p []byte) (int, error) // r's, made once
}

// NewNative returns the carrier that writes frames straight to conn. r yields
// bytes that were already read from conn (the rest of an HTTP upgrade) and
// then conn's own; nil means conn itself. flush, when not nil, is called after
// each batch of writes.
func NewNative(conn net.Conn, r io.Reader, flush func() error) Carrier {
	if r == nil {
		r = conn
	}
	return &native{Conn: conn, r: r, flush: flush, ahead: newAheadReader(conn), read: r.Read}
}

// NetConn returns the connection below.
func (c *native) NetConn() net.Conn { return c.Conn }

func (c *native) Name() string               { return NativeName }
func (c *native) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c *native) readAhead(p []byte) int     { return c.ahead.during(c.read, p) }

func (c *native) Close() error { return closeBelow(c.Conn) }

// CloseWrite ends our direction, below any TLS: what was flushed still arrives.
func (c *native) CloseWrite() error { return closeWriteBelow(c.Conn) }

func closeWriteBelow(c net.Conn) error {
	if t := below(c); t != nil {
		return t.CloseWrite()
	}
	return errNoHalfClose
}

// closeBelow closes the socket before the wrappers around it. crypto/tls would
// first write its close_notify, and wait up to five seconds for a link that
// takes no more; CLOSE has said all there is to say.
func closeBelow(c net.Conn) error {
	if t := below(c); t != nil {
		_ = t.Close()
	}
	return c.Close()
}

func (c *native) Flush() error {
	if c.flush == nil {
		return nil
	}
	return c.flush()
}
