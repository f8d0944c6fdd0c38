package obs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Label values of closed sets.
const (
	c2a = "c2a" // client to agent
	a2c = "a2c" // agent to client
)

// Side tells whose queue overflowed.
type Side string

// The sides: the hub's queue, filled by an agent that ignored its credit, or
// the agent's, as the agent told the hub.
const (
	SideHub   Side = "hub"
	SideAgent Side = "agent"
)

// ErrorKind tells what failed while an accepted connection was served.
type ErrorKind string

// The kinds of listener error.
const (
	ErrorWrite   ErrorKind = "write"   // writing to the client
	ErrorSession ErrorKind = "session" // the session through the tunnel
	ErrorPDP     ErrorKind = "pdp"     // asking the policy decision point
)

// Connector records what happens on one connector, seen from the hub. It is
// the tunnel.Observer of the hub's sessions: what is sent goes to the agent.
// Its methods may be called concurrently; none allocates or blocks.
type Connector struct {
	write, drain           prometheus.Observer
	overflowHub            *counter
	overflowAgent          *counter
	errWrite, errSession   *counter
	errPDP                 *counter
	acceptErrors           *counter
	connections            *counter
	bytesC2A, bytesA2C     *counter
	finSent, finRecv       *counter
	rstSent, rstRecv       *counter
	closed                 map[wire.Reason]*counter // fixed keys: wire.SessionReasons
	open, duration         prometheus.Observer
	framesC2A, framesA2C   prometheus.Observer
	pdpAllow, pdpDeny      *counter
	pdpError               *counter
	pdpAsked, pdpFromCache prometheus.Observer
}

func newConnector(f *hubFamilies, name string) *Connector {
	c := &Connector{
		write:         f.writeDrain.observer(name, "write"),
		drain:         f.writeDrain.observer(name, "drain"),
		overflowHub:   f.overflow.counter(string(SideHub), name),
		overflowAgent: f.overflow.counter(string(SideAgent), name),
		errWrite:      f.listenerErr.counter(name, string(ErrorWrite)),
		errSession:    f.listenerErr.counter(name, string(ErrorSession)),
		errPDP:        f.listenerErr.counter(name, string(ErrorPDP)),
		acceptErrors:  f.acceptErr.counter(name),
		connections:   f.connections.counter(name),
		bytesC2A:      f.bytes.counter(c2a, name),
		bytesA2C:      f.bytes.counter(a2c, name),
		finSent:       f.finSent.counter(name),
		finRecv:       f.finRecv.counter(name),
		rstSent:       f.rstSent.counter(name),
		rstRecv:       f.rstRecv.counter(name),
		closed:        make(map[wire.Reason]*counter),
		open:          f.open.observer(name),
		duration:      f.duration.observer(name),
		framesC2A:     f.frameBytes.observer(c2a, name),
		framesA2C:     f.frameBytes.observer(a2c, name),
		pdpAllow:      f.pdpDecisions.counter(authz.Allow.String(), name),
		pdpDeny:       f.pdpDecisions.counter(authz.Deny.String(), name),
		pdpError:      f.pdpDecisions.counter(authz.Error.String(), name),
		pdpAsked:      f.pdpSeconds.observer(name, "false"),
		pdpFromCache:  f.pdpSeconds.observer(name, "true"),
	}
	for _, r := range wire.SessionReasons() {
		c.closed[r] = f.closed.counter(name, r.String())
	}
	return c
}

// Accepted counts a client connection.
func (c *Connector) Accepted() { c.connections.Inc() }

// AcceptError counts a connection that failed before it was one, such as a
// broken PROXY header or a listener out of file descriptors.
func (c *Connector) AcceptError() { c.acceptErrors.Inc() }

// Closed counts the end of a session. A reason outside of
// wire.SessionReasons, which only a newer peer can give, counts as rst.
func (c *Connector) Closed(r wire.Reason) {
	n, ok := c.closed[r]
	if !ok {
		n = c.closed[wire.ReasonRst]
	}
	n.Inc()
}

// OpenTime records how long it took from accepting the client until the target
// could send its first byte.
func (c *Connector) OpenTime(d time.Duration) { c.open.Observe(d.Seconds()) }

// Duration records how long a connection lasted.
func (c *Connector) Duration(d time.Duration) { c.duration.Observe(d.Seconds()) }

// Overflow counts a session that was reset for ignoring credits.
func (c *Connector) Overflow(s Side) {
	if s == SideAgent {
		c.overflowAgent.Inc()
		return
	}
	c.overflowHub.Inc()
}

// ListenerError counts an error while serving an accepted connection.
func (c *Connector) ListenerError(k ErrorKind) {
	switch k {
	case ErrorWrite:
		c.errWrite.Inc()
	case ErrorPDP:
		c.errPDP.Inc()
	default:
		c.errSession.Inc()
	}
}

// PDP records one policy decision; cached means that no engine ran for it.
func (c *Connector) PDP(o authz.Outcome, cached bool, d time.Duration) {
	switch o {
	case authz.Allow:
		c.pdpAllow.Inc()
	case authz.Deny:
		c.pdpDeny.Inc()
	default:
		c.pdpError.Inc()
	}
	if cached {
		c.pdpFromCache.Observe(d.Seconds())
		return
	}
	c.pdpAsked.Observe(d.Seconds())
}

// FrameSent counts a DATA frame of n payload bytes to the agent.
func (c *Connector) FrameSent(n int) {
	c.bytesC2A.Add(n)
	c.framesC2A.Observe(float64(n))
}

// FrameReceived counts a DATA frame of n payload bytes from the agent. Its
// bytes count as carried when the client's socket took them: see Written.
func (c *Connector) FrameReceived(n int) { c.framesA2C.Observe(float64(n)) }

// Written counts n bytes that the client's socket took.
func (c *Connector) Written(n int) { c.bytesA2C.Add(n) }

// WriteTime records how long handing a frame to the client's socket took, as
// far as it went without waiting.
func (c *Connector) WriteTime(d time.Duration) { c.write.Observe(d.Seconds()) }

// DrainTime records how long the kernel then took to accept the rest.
func (c *Connector) DrainTime(d time.Duration) { c.drain.Observe(d.Seconds()) }

// FinSent counts a FIN frame to the agent.
func (c *Connector) FinSent() { c.finSent.Inc() }

// FinReceived counts a FIN frame from the agent.
func (c *Connector) FinReceived() { c.finRecv.Inc() }

// RstSent counts an RST frame to the agent.
func (c *Connector) RstSent() { c.rstSent.Inc() }

// RstReceived counts an RST frame from the agent.
func (c *Connector) RstReceived() { c.rstRecv.Inc() }
