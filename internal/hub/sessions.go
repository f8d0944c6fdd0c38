package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
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
	name     string
	conn     *connector // set for good by admit
	client   *Client
	started  time.Time
	cancel   context.CancelFunc // stops the decision and placement
	verdict  atomic.Pointer[verdict]
	tunnel   atomic.Pointer[tunnel.Session] // nil until policy in force has said yes; agent is set before
	agent    atomic.Pointer[string]
	decision authz.Decision // owned by ServeClient
}

// verdict is why a session was ended before or while it was carried.
type verdict struct {
	reason  wire.Reason
	message string
}

// end ends the session from any goroutine.
func (s *session) end(r wire.Reason, message string) {
	if !s.verdict.CompareAndSwap(nil, &verdict{r, message}) {
		return
	}
	s.cancel()
	if t := s.tunnel.Load(); t != nil {
		t.Reset(r, message)
	}
}

// ServeClient judges a connection, places it with an agent, and moves its
// bytes until it is over. It closes cl.Conn in the way that the outcome calls
// for. ctx bounds the decision and the placement, not the session.
func (h *Hub) ServeClient(ctx context.Context, cl *Client) Outcome {
	started := time.Now()
	c, k := h.lookup(ctx, cl.Connector)
	ep := tunnel.Endpoint{Conn: cl.Conn, TCP: cl.TCP, Prefix: cl.Prefix}
	if c == nil {
		ep.Close(wire.ReasonNoAgent)
		return Outcome{Reason: wire.ReasonNoAgent, Message: fmt.Sprintf("no connector %q is configured", cl.Connector), Duration: time.Since(started)}
	}
	if k.LDAP {
		w := newLDAPWatch(cl.Prefix)
		ep.Watch, ep.Farewell = w, w.farewell
	}
	c.stats.Accepted()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{name: h.sessionName(), conn: c, client: cl, started: started, cancel: cancel}
	if cl.Life != nil {
		defer context.AfterFunc(cl.Life, func() { s.end(wire.ReasonRst, "client is gone") })()
	}
	out := Outcome{Session: s.name}
	if v := h.admit(s, k); v != nil {
		ep.Close(v.reason)
		out.Reason, out.Message = v.reason, v.message
	} else {
		res := func() tunnel.Result {
			defer h.dismiss(s) // even if a Decider panics
			return h.carry(ctx, s, ep)
		}()
		out.Reason, out.Message = res.Reason, res.Message
		out.BytesC2A, out.BytesA2C = res.Sent, res.Received
		h.count(c, res)
	}
	if a := s.agent.Load(); a != nil {
		out.Agent = *a
	}
	out.Decision = s.decision
	out.Duration = time.Since(started)
	c.stats.Closed(out.Reason)
	c.stats.Duration(out.Duration)
	return out
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
		return &verdict{wire.ReasonDenied, "source address is not in allow_cidrs"}
	case h.live >= h.cfg.MaxSessions:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions %d of the hub", h.cfg.MaxSessions)}
	case k.MaxSessions > 0 && len(c.sessions) >= k.MaxSessions:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions %d of the connector", k.MaxSessions)}
	case k.MaxSessionsPerClient > 0 && c.clients[key] >= k.MaxSessionsPerClient:
		return &verdict{wire.ReasonLimit, fmt.Sprintf("max_sessions_per_client %d", k.MaxSessionsPerClient)}
	}
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
	ts, fail := h.open(ctx, s)
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

// open asks policy and opens the session with an agent. When the configuration
// changed meanwhile, neither a yes nor a no of the old one counts and policy is
// asked again: the answer must be the one in force when the first byte flows.
// Only then is s.tunnel set, under the lock that Apply takes.
func (h *Hub) open(ctx context.Context, s *session) (*tunnel.Session, *verdict) {
	for {
		h.mu.Lock()
		k, generation := h.cfg.Connectors[s.conn.name], h.generation
		h.mu.Unlock()
		if k == nil {
			return nil, &verdict{wire.ReasonRevoked, "connector was removed"}
		}
		v := h.decide(ctx, s, k)
		var ts *tunnel.Session
		if v == nil && h.current(generation) { // else the agent would dial for nothing
			ts, v = h.place(s, k)
		}
		h.mu.Lock()
		same := h.generation == generation
		if same {
			s.tunnel.Store(ts)
		}
		h.mu.Unlock()
		if same || ctx.Err() != nil && v != nil {
			return ts, v
		}
		if ts != nil {
			ts.Reset(wire.ReasonRevoked, "configuration changed")
			s.agent.Store(nil)
		}
	}
}

// current reports whether no configuration was applied since.
func (h *Hub) current(generation uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.generation == generation
}

// decide asks the connector's Decider.
func (h *Hub) decide(ctx context.Context, s *session, k *Connector) *verdict {
	if !k.permits(s.client.Addr.Addr()) {
		return &verdict{wire.ReasonDenied, "source address is not in allow_cidrs"}
	}
	asked := time.Now()
	d := k.Decider.Decide(ctx, h.request(s))
	s.conn.stats.PDP(d.Outcome, d.Cached, time.Since(asked))
	s.decision = d
	return refusal(d)
}

// refusal returns the verdict that follows from a decision; nil for Allow.
func refusal(d authz.Decision) *verdict {
	switch d.Outcome {
	case authz.Allow:
		return nil
	case authz.Deny:
		return &verdict{wire.ReasonDenied, d.Reason}
	default:
		message := d.Reason
		if d.Err != nil {
			message = d.Err.Error()
		}
		return &verdict{wire.ReasonPDPError, message}
	}
}

// request puts the question in AuthZEN form.
func (h *Hub) request(s *session) *authz.Request {
	cl := s.client
	ip := cl.Addr.Addr().Unmap().String()
	r := &authz.Request{
		Subject:  authz.Entity{Type: "ip", ID: ip},
		Action:   authz.Action{Name: authz.ActionConnect},
		Resource: authz.Entity{Type: "connector", ID: s.conn.name},
		Context: map[string]any{
			"time": time.Now().UTC().Format(time.RFC3339), "cid": s.name,
			"source_ip": ip, "source_port": int(cl.Addr.Port()), "listener": cl.Listener,
		},
	}
	if cfg := h.config(); cfg != nil && cfg.ID != "" {
		r.Context["hub"] = cfg.ID
	}
	if cl.Subject != nil {
		r.Subject = *cl.Subject
	}
	if cl.SNI != "" {
		r.Context["sni"] = cl.SNI
	}
	return r
}

// place opens the session on the best link that takes it.
func (h *Hub) place(s *session, k *Connector) (*tunnel.Session, *verdict) {
	v := &verdict{wire.ReasonNoAgent, "no agent that may serve the connector is connected"}
	for _, l := range h.candidates(s.conn, k) {
		ts, err := l.Open(wire.Open{
			Connector: s.conn.name, Session: s.name, Client: s.client.Addr.String(),
			ConnectTimeout: k.ConnectTimeout.Milliseconds(),
		}, tunnel.SessionConfig{
			Observer:       s.conn.stats,
			MaxWindow:      uint32(min(int64(k.QueueDepth)*wire.MaxFrame, wire.MaxWindow)),
			ConnectTimeout: k.ConnectTimeout,
			IdleTimeout:    k.IdleTimeout,
			OnOpened:       func() { s.conn.stats.OpenTime(time.Since(s.started)) },
		})
		if err == nil {
			s.agent.Store(&l.agent.id)
			return ts, nil
		}
		switch {
		case errors.Is(err, tunnel.ErrBudget):
			v = &verdict{wire.ReasonLimit, "agent_memory of agent " + l.agent.id}
		case errors.Is(err, tunnel.ErrCongested):
			v = &verdict{wire.ReasonLimit, "the link to agent " + l.agent.id + " is congested"}
		}
	}
	return nil, v
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

// judge ends a live session that cfg does not allow.
func (h *Hub) judge(cfg *Config, s *session) {
	k := cfg.Connectors[s.conn.name]
	switch {
	case k == nil:
		s.end(wire.ReasonRevoked, "connector was removed")
		return
	case s.tunnel.Load() == nil:
		return // not placed yet: open asks again by itself
	case !slices.Contains(k.Agents, *s.agent.Load()):
		s.end(wire.ReasonRevoked, "agent may no longer serve the connector")
		return
	case !k.permits(s.client.Addr.Addr()):
		s.end(wire.ReasonDenied, "source address is no longer in allow_cidrs")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), judgeTimeout)
	defer cancel()
	asked := time.Now()
	d := k.Decider.Decide(ctx, h.request(s))
	s.conn.stats.PDP(d.Outcome, d.Cached, time.Since(asked))
	if h.config() != cfg {
		return // the newer configuration judges, and its Decider is the one to ask
	}
	if v := refusal(d); v != nil {
		s.end(v.reason, v.message)
	}
}

// judgeTimeout bounds one decision about a live session; a Decider has its own
// timeout, this is for one that forgets it.
const judgeTimeout = 30 * time.Second
