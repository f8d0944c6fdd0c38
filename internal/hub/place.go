package hub

import (
	"context"
	"errors"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// law is what a session is judged by: the policy of one moment.
type law struct {
	cfg   *Config
	k     *Connector // nil when the connector was removed
	epoch uint64     // of the connector
	// judgment is the context of questions about live sessions.
	judgment context.Context
}

func (h *Hub) lawLocked(c *connector) law {
	return law{h.cfg, h.cfg.Connectors[c.name], c.epoch, h.judgment}
}

// current reports whether the law is still in force.
func (h *Hub) current(c *connector, l law) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.epoch == l.epoch
}

// open asks policy and opens the session with an agent. When policy changed
// meanwhile, neither a yes nor a no of the old one counts and it is asked again:
// the answer must be the one in force when the first byte flows. Only then is
// s.tunnel set, under the lock that a change of policy takes, so that whoever
// judges live sessions again finds this one.
func (h *Hub) open(ctx context.Context, s *session) (*tunnel.Session, *verdict) {
	for {
		h.mu.Lock()
		l := h.lawLocked(s.conn)
		h.mu.Unlock()
		if l.k == nil {
			return nil, &verdict{wire.ReasonRevoked, "connector was removed"}
		}
		q := question{law: l, phase: phaseAccept}
		ts, v := h.decideAndPlace(ctx, s, &q)
		h.mu.Lock()
		same := s.conn.epoch == l.epoch
		if same && ts != nil {
			s.tunnel.Store(ts)
			h.grantLocked(s, q.answer, q.asked)
		}
		h.mu.Unlock()
		if same || ctx.Err() != nil && v != nil {
			if s.verdict.Load() == nil || q.answer.Err == nil { // else it was cut short, and whoever did that tells
				h.auditDecision(s, &q)
			}
			if over := s.meter.over(); over != nil {
				s.end(over.reason, over.message) // by what the target sent while we made sure
			}
			return ts, v
		}
		if ts != nil {
			ts.Reset(wire.ReasonRevoked, "policy changed")
			s.agent.Store(nil)
		}
	}
}

// question is one that was put to policy about a session, and its answer.
type question struct {
	law
	phase  phase
	agent  string
	answer authz.Decision
	asked  time.Time
	took   time.Duration
}

// decideAndPlace asks policy about the session with the agent that would serve
// it, and opens it there. When that agent cannot take it after all, the next
// one's turn begins with a question about that one: a permit for one agent is
// none for another. While no agent is connected the question is about the first
// one that could be.
func (h *Hub) decideAndPlace(ctx context.Context, s *session, q *question) (*tunnel.Session, *verdict) {
	if !q.k.permits(s.client.Addr.Addr()) {
		q.answer = s.outside()
		return nil, refusal(q.answer)
	}
	none := &verdict{wire.ReasonNoAgent, "no agent that may serve the connector is connected"}
	links := h.choose(s.conn, q.k)
	if len(links) == 0 && len(q.k.Agents) == 0 {
		return nil, none // nobody could ever serve it
	}
	if len(links) == 0 {
		if v := h.decide(ctx, s, q, q.k.Agents[0]); v != nil {
			return nil, v
		}
		if links = h.choose(s.conn, q.k); len(links) == 0 { // one may have come meanwhile
			return nil, none
		}
	}
	defer h.chosen(links[0])
	for _, l := range links {
		if v := h.decide(ctx, s, q, l.agent.id); v != nil {
			return nil, v
		}
		if !h.current(s.conn, q.law) {
			return nil, none // the agent would dial for nothing
		}
		if l = h.best(l.agent, s.conn); l == nil {
			continue
		}
		ts, err := h.place(s, q.k, l)
		switch {
		case err == nil:
			s.agent.Store(&l.agent.id)
			return ts, nil
		case errors.Is(err, tunnel.ErrBudget):
			none = &verdict{wire.ReasonLimit, "agent_memory of agent " + l.agent.id}
		case errors.Is(err, tunnel.ErrCongested):
			none = &verdict{wire.ReasonLimit, "the link to agent " + l.agent.id + " is congested"}
		}
	}
	return nil, none
}

// choose returns the links to try, best first. The first one's agent counts the
// session as coming until chosen is called: policy may take its time, and
// meanwhile the sessions that wait for it would all choose the same agent.
func (h *Hub) choose(c *connector, k *Connector) []*link {
	h.mu.Lock()
	defer h.mu.Unlock()
	links := h.candidatesLocked(c, k)
	if len(links) > 0 {
		links[0].agent.coming++
	}
	return links
}

func (h *Hub) chosen(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.agent.coming--
}

// best returns the agent's best link now: while policy was thinking, the one
// that was best may have ended, or many sessions may have gone to it.
func (h *Hub) best(a *agent, c *connector) *link {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, _ := a.bestLink(c.name)
	return l
}

// place opens the session on a link.
func (h *Hub) place(s *session, k *Connector, l *link) (*tunnel.Session, error) {
	return l.Open(wire.Open{
		Connector: s.conn.name, Session: s.name, Client: s.client.Addr.String(),
		ConnectTimeout: k.ConnectTimeout.Milliseconds(),
	}, tunnel.SessionConfig{
		Observer:       &s.meter,
		MaxWindow:      uint32(min(int64(k.QueueDepth)*wire.MaxFrame, wire.MaxWindow)),
		ConnectTimeout: k.ConnectTimeout,
		IdleTimeout:    k.IdleTimeout,
		OnOpened:       func() { s.conn.stats.OpenTime(time.Since(s.started)) },
	})
}

// decide asks the connector's Decider about an agent, unless that is what q was
// about already.
func (h *Hub) decide(ctx context.Context, s *session, q *question, agent string) *verdict {
	if q.agent == agent {
		return refusal(q.answer)
	}
	if q.agent != "" {
		h.auditDecision(s, q)
	}
	q.agent = agent
	s.asking.Store(&agent)
	r := s.request(q.cfg, agent)
	q.asked = time.Now()
	q.answer = s.number(q.k.Decider.Decide(ctx, r))
	q.took = time.Since(q.asked)
	if life := s.client.Life; life != nil && life.Err() != nil {
		s.end(wire.ReasonRst, clientGone) // its watcher may not have run yet, and policy is not to blame
	}
	s.conn.stats.PDP(q.answer.Outcome, q.answer.Cached, q.took)
	s.decision = q.answer
	return refusal(q.answer)
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

// outside is the denial of a client whose address allow_cidrs does not name.
// No engine is asked for it.
func (s *session) outside() authz.Decision {
	s.decision = s.number(authz.Decision{Outcome: authz.Deny, Engine: engineCIDRs, Reason: "source address is not in allow_cidrs"})
	return s.decision
}
