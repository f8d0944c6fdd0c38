package tunnel

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Endpoint is the local end of a session: the client's connection at the hub,
// the target's at the agent.
type Endpoint struct {
	// Conn carries the bytes. The session reads, writes and closes it.
	Conn net.Conn
	// TCP is the socket below Conn, for RST and for telling a full socket from
	// a slow one; nil when unknown, and then an abnormal end looks like a
	// close. When Conn itself is a *net.TCPConn it may be left nil.
	TCP *net.TCPConn
	// Prefix holds bytes that were already read from Conn; they are sent first.
	Prefix []byte
	// Watch, when not nil, sees the bytes that pass. It must be fast.
	Watch Watcher
	// Farewell, when not nil, returns the last bytes for Conn when the session
	// ends for reason r and is not over at TCP level; nil or empty means none.
	// It is called once, after the last Watch.
	Farewell func(r wire.Reason) []byte
}

// Watcher sees a session's bytes in order, at one endpoint.
type Watcher interface {
	FromLocal(p []byte) // read from Conn
	ToLocal(p []byte)   // written to Conn
}

// closeWriter is what a connection with a half-close has.
type closeWriter interface{ CloseWrite() error }

// errNoHalfClose means that the connection cannot end one direction alone.
var errNoHalfClose = errors.New("connection has no half-close")

// CloseWrite ends the direction towards the local side, as FIN does. A Conn
// that wraps TLS must have a CloseWrite of its own; for one that has none, the
// socket below is shut down, which is right for wrappers that pass bytes on
// unchanged (PROXY protocol, throttling).
func (e *Endpoint) CloseWrite() error {
	if c, ok := e.Conn.(closeWriter); ok {
		return c.CloseWrite()
	}
	if t := e.socket(); t != nil {
		return t.CloseWrite()
	}
	return errNoHalfClose
}

// socket returns the TCP socket below the endpoint, or nil.
func (e *Endpoint) socket() *net.TCPConn {
	if e.TCP != nil {
		return e.TCP
	}
	t, _ := e.Conn.(*net.TCPConn)
	return t
}

// Close ends the endpoint in the way that fits reason: with FIN after an
// orderly end, an idle timeout or a shutdown, else with RST, which tells the
// local side that what it has is not complete. A Farewell goes before either
// and turns RST into FIN, which alone lets it arrive.
func (e *Endpoint) Close(r wire.Reason) {
	if e.Farewell != nil && r != wire.ReasonFin && r != wire.ReasonRst {
		if last := e.Farewell(r); len(last) > 0 {
			e.say(last)
			return
		}
	}
	if !endsWithFin(r) {
		if t := e.socket(); t != nil {
			_ = t.SetLinger(0) // makes Close send RST
			_ = t.Close()
		}
	}
	_ = e.Conn.Close()
}

// farewellTime bounds how long a farewell may take to be written and for the
// local side to answer it with its own FIN.
const farewellTime = time.Second

// say writes the last bytes, ends the direction, and reads what the local side
// still sends: closing a socket with unread bytes would turn into RST, and RST
// would take the farewell with it.
func (e *Endpoint) say(last []byte) {
	_ = e.Conn.SetDeadline(time.Now().Add(farewellTime))
	if _, err := e.Conn.Write(last); err == nil && e.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, e.Conn, 1<<20)
	}
	_ = e.Conn.Close()
}

// endsWithFin reports whether a session that ends for r ends its local
// connection in order.
func endsWithFin(r wire.Reason) bool {
	switch r {
	case wire.ReasonFin, wire.ReasonIdle, wire.ReasonShutdown, wire.ReasonDraining:
		return true
	}
	return false
}
