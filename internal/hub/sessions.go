package hub

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Client is one accepted connection.
type Client struct {
	Connector string
	// Conn, TCP and Prefix as in tunnel.Endpoint.
	Conn   net.Conn
	TCP    *net.TCPConn
	Prefix []byte
	// Addr is the client as policy sees it, after a trusted PROXY header.
	Addr netip.AddrPort
	// Listener is the local address that accepted the connection.
	Listener string
	// SNI is the TLS server name that the client asked for; empty without TLS.
	SNI string
	// Subject is the client's verified certificate identity; nil means that
	// its source IP is all we know of it.
	Subject *authz.Entity
	// Life, when not nil, resets the session when it ends. It is for clients in
	// this process, whose Conn cannot tell a half-close from a close.
	Life context.Context
	// OnDrain, when not nil, is called on a goroutine of its own when a drain
	// begins while the session is live: who keeps it for later should close it.
	OnDrain func()
}

// Outcome tells what became of a client connection.
type Outcome struct {
	Session  string // the hub's name for it
	Reason   wire.Reason
	Message  string
	Decision authz.Decision
	Agent    string // who served it; empty if nobody did
	BytesC2A int64
	BytesA2C int64
	Duration time.Duration
}

// session is one client connection, from its admission to its end.
type session struct {
	name    string
	conn    *connector // set for good by admit
	client  *Client
	started time.Time
	sampled bool               // its allows go into the audit
	cancel  context.CancelFunc // stops the decision and placement
	verdict atomic.Pointer[verdict]
	tunnel  atomic.Pointer[tunnel.Session] // nil until policy in force has said yes; agent is set before
	agent   atomic.Pointer[string]
	asking  atomic.Pointer[string] // the agent that policy was asked about last
	meter   meter

	decision authz.Decision // the latest that counted; ServeClient's until tunnel is set, then guarded by Hub.mu
	asked    atomic.Int32   // how many decisions there were
	permit   permit         // guarded by Hub.mu
}

// verdict is why a session was ended before or while it was carried.
type verdict struct {
	reason  wire.Reason
	message string
}

// end ends the session from any goroutine. It reports whether this call did.
func (s *session) end(r wire.Reason, message string) bool {
	if !s.verdict.CompareAndSwap(nil, &verdict{r, message}) {
		return false
	}
	s.cancel()
	if t := s.tunnel.Load(); t != nil {
		t.Reset(r, message)
	}
	return true
}

// server returns the agent that the session is placed with; empty before.
func (s *session) server() string {
	if a := s.agent.Load(); a != nil {
		return *a
	}
	return ""
}

// meant returns the agent that the session is placed with, or else the one that
// it would be if policy allows; empty before the first question.
func (s *session) meant() string {
	if a := s.server(); a != "" {
		return a
	}
	if a := s.asking.Load(); a != nil {
		return *a
	}
	return ""
}

const clientGone = "client is gone"

// ServeClient judges a connection, places it with an agent, and moves its
// bytes until it is over. It closes cl.Conn in the way that the outcome calls
// for. ctx bounds the decision and the placement, not the session; so does half
// a minute.
func (h *Hub) ServeClient(ctx context.Context, cl *Client) Outcome {
	started := time.Now()
	c, k := h.lookup(ctx, cl.Connector)
	ep := tunnel.Endpoint{Conn: cl.Conn, TCP: cl.TCP, Prefix: cl.Prefix}
	if c == nil {
		ep.Close(wire.ReasonNoAgent)
		out := Outcome{Reason: wire.ReasonNoAgent, Message: fmt.Sprintf("no connector %q is configured", cl.Connector), Duration: time.Since(started)}
		h.auditEnd(&session{conn: &h.unknown, client: cl}, &out)
		return out
	}
	if k.LDAP {
		w := newLDAPWatch(cl.Prefix)
		ep.Watch, ep.Farewell = w, w.farewell
	}
	c.stats.Accepted()
	ctx, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	s := &session{name: h.sessionName(), conn: c, client: cl, started: started, sampled: h.audit.Load().sample(), cancel: cancel}
	if cl.Life != nil {
		defer context.AfterFunc(cl.Life, func() { s.end(wire.ReasonRst, clientGone) })()
	}
	out := Outcome{Session: s.name}
	if v := h.admit(s, k); v != nil {
		ep.Close(v.reason)
		if v.reason == wire.ReasonDenied {
			h.auditDecision(s, &question{phase: phaseAccept, answer: s.decision})
		}
		out.Reason, out.Message = v.reason, v.message
	} else {
		res := func() tunnel.Result {
			defer h.dismiss(s) // even if a Decider panics
			return h.carry(ctx, s, ep)
		}()
		out.Reason, out.Message = res.Reason, res.Message
		out.BytesC2A, out.BytesA2C = res.Sent, res.Received
		h.count(s.conn, res)
	}
	out.Agent = s.server()
	out.Decision = s.decision
	out.Duration = time.Since(started)
	c.stats.Closed(out.Reason)
	c.stats.Duration(out.Duration)
	h.auditEnd(s, &out)
	return out
}

// elsewhere runs f in a goroutine of its own and waits for it. Stacks double and
// seldom shrink: what f needs of one once, for policy and its audit, would be
// kept for as long as the session lives. A panic goes on in the caller.
func elsewhere(f func()) {
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		f()
	}()
	if p := <-done; p != nil {
		panic(p)
	}
}

// admit registers the session if limits and source allow it.
func (h *Hub) admit(s *session, k *Connector) *verdict {
	addr := s.client.Addr.Addr().Unmap()
	key := addr.String()
	h.mu.Lock()
	defer h.mu.Unlock()
	// Since lookup the connector may have been forgotten and made anew; a
	// session on the old one would be in nobody's books.
	s.conn = h.connectorLocked(s.conn.name)
	c := s.conn
	switch {
	case h.drain != nil:
		return &verdict{wire.ReasonDraining, "hub is draining"}
	case !k.permits(addr):
		return refusal(s.outside())
	case h.live >= h.cfg.MaxSessions:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions %d of the hub", h.cfg.MaxSessions)}
	case k.MaxSessions > 0 && len(c.sessions) >= k.MaxSessions:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions %d of the connector", k.MaxSessions)}
	case k.MaxSessionsPerClient > 0 && c.clients[key] >= k.MaxSessionsPerClient:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions_per_client %d", k.MaxSessionsPerClient)}
	}
	s.meter = meter{Connector: c.stats, session: s}
	c.sessions[s] = struct{}{}
	c.clients[key]++
	h.live++
	return nil
}

// dismiss takes the session out of the books.
func (h *Hub) dismiss(s *session) {
	c, key := s.conn, s.client.Addr.Addr().Unmap().String()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(c.sessions, s)
	h.leases.remove(s)
	if c.clients[key]--; c.clients[key] <= 0 {
		delete(c.clients, key)
	}
	h.live--
	if h.drain != nil {
		h.drain.sessionEndedLocked(h.live)
	}
}

// carry decides, places and runs an admitted session, and closes ep.
func (h *Hub) carry(ctx context.Context, s *session, ep tunnel.Endpoint) tunnel.Result {
	var ts *tunnel.Session
	var fail *verdict
	elsewhere(func() { ts, fail = h.open(ctx, s) })
	s.cancel() // its timer need not wait for the session
	if fail != nil {
		if v := s.verdict.Load(); v != nil {
			fail = v
		}
		ep.Close(fail.reason)
		return tunnel.Result{Reason: fail.reason, Message: fail.message}
	}
	if v := s.verdict.Load(); v != nil {
		ts.Reset(v.reason, v.message) // ended between the decision and now
	}
	return ts.Run(ep)
}

// count records what went wrong with a carried session.
func (h *Hub) count(c *connector, r tunnel.Result) {
	switch r.Reason {
	case wire.ReasonOverflow:
		side := obs.SideHub
		if r.Remote {
			side = obs.SideAgent
		}
		c.stats.Overflow(side)
		c.stats.ListenerError(obs.ErrorSession)
	case wire.ReasonNoAgent, wire.ReasonConnectFailed, wire.ReasonConnectTimeout, wire.ReasonLinkLost:
		c.stats.ListenerError(obs.ErrorSession)
	case wire.ReasonPDPError:
		c.stats.ListenerError(obs.ErrorPDP)
	default:
		if r.WriteErr != nil {
			c.stats.ListenerError(obs.ErrorWrite)
		}
	}
}
