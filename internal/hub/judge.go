package hub

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Live sessions that are to be judged again wait in a queue of their connector,
// so that a policy engine which is slow for one connector holds up no other.
const (
	// judgesPerConnector bounds the goroutines at a queue, which are there only
	// while it is not empty.
	judgesPerConnector = 4
	// judgeAtOnce bounds how many sessions one of them asks about together.
	// With four of them 256 questions are on their way at most, which an engine
	// that takes 64 at a time answers in four round trips: those of new clients
	// do not wait long behind them.
	judgeAtOnce = 64
	// judgeTimeout bounds the questions of one batch, and those about one new
	// client. A Decider has its own timeout; this is for one that forgets it.
	judgeTimeout = 30 * time.Second
)

// PolicyChanged has the live sessions of connectors judged again, because what
// cfg's Deciders answer by has changed without a new configuration. Sessions
// that wait for a decision right now are asked about once more. It returns how
// many are live, and does nothing when cfg is no longer in force.
func (h *Hub) PolicyChanged(cfg *Config, connectors ...string) (live int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cfg != cfg {
		return 0
	}
	for _, name := range connectors {
		if c := h.connectors[name]; c != nil {
			live += h.policyChangedLocked(c)
		}
	}
	return live
}

func (h *Hub) policyChangedLocked(c *connector) (live int) {
	c.epoch++
	for s := range c.sessions {
		if s.verdict.Load() != nil {
			continue // it is ending already
		}
		live++
		if s.tunnel.Load() != nil { // else open asks again by itself
			h.queueLocked(s, causePolicy)
		}
	}
	return live
}

// queueLocked has a live session judged again, soon and by somebody else.
func (h *Hub) queueLocked(s *session, why cause) {
	s.permit.cause = max(s.permit.cause, why)
	if s.permit.queued || h.closed {
		return
	}
	s.permit.queued = true
	c := s.conn
	c.queue = append(c.queue, s)
	// Not for those whom somebody is about to take: a reload queues the sessions of
	// a thousand connectors, and four goroutines for each would find little to do.
	if c.judges < judgesPerConnector && c.coming*judgeAtOnce < len(c.queue) {
		c.judges++
		c.coming++
		h.judging.Go(func() { h.judgeQueue(c) })
	}
}

// judgeQueue judges until the queue is empty.
func (h *Hub) judgeQueue(c *connector) {
	for first := true; ; first = false {
		l, batch := h.takeQueued(c, first)
		if len(batch) == 0 {
			return
		}
		h.judge(l, c, batch)
	}
}

// takeQueued takes sessions off the queue, and the law to judge them by. When
// there are none the caller is no longer at it.
func (h *Hub) takeQueued(c *connector, first bool) (law, []*session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if first {
		c.coming--
	}
	n := min(len(c.queue), judgeAtOnce)
	if n == 0 || h.closed {
		c.judges--
		c.queue = nil
		return law{}, nil
	}
	batch := slices.Clone(c.queue[:n])
	clear(c.queue[:n])
	c.queue = c.queue[n:]
	for _, s := range batch {
		s.permit.queued = false
	}
	return h.lawLocked(c), batch
}

// judge ends those of the sessions that the law does not allow.
func (h *Hub) judge(l law, c *connector, batch []*session) {
	ask := batch[:0]
	for _, s := range batch {
		v := standing(l.k, s)
		if v == nil {
			ask = append(ask, s)
			continue
		}
		if v.reason == wire.ReasonDenied {
			d := s.number(authz.Decision{Outcome: authz.Deny, Engine: engineCIDRs, Reason: v.message})
			h.auditDecision(s, &question{phase: phaseReeval, agent: s.server(), answer: d})
		}
		s.end(v.reason, v.message)
	}
	if len(ask) == 0 {
		return
	}
	requests := make([]*authz.Request, len(ask))
	for i, s := range ask {
		requests[i] = s.request(l.cfg, s.server())
	}
	ctx, cancel := context.WithTimeout(l.judgment, judgeTimeout)
	defer cancel()
	asked := time.Now()
	answers := authz.DecideAll(ctx, l.k.Decider, requests)
	took := time.Since(asked)
	for i, d := range answers {
		c.stats.PDP(d.Outcome, d.Cached, took)
		answers[i] = ask[i].number(d)
	}
	if l.judgment.Err() != nil {
		return // the hub is closing
	}
	outcomes, ok := h.apply(l, c, ask, answers, asked)
	if !ok {
		return
	}
	for i, s := range ask {
		if !outcomes[i].known {
			h.auditDecision(s, &question{l, phaseReeval, s.server(), answers[i], asked, took})
			// After a reload there is a judge for each of maybe a thousand connectors.
			// Whoever carries bytes is not to wait until all of them have written theirs.
			runtime.Gosched()
		}
		if v := outcomes[i].verdict; v != nil {
			s.end(v.reason, v.message)
		}
	}
}

// outcome is what an answer means for a live session.
type outcome struct {
	verdict *verdict // nil: it goes on
	known   bool     // one more error in a grace: the audit has the first and the last
}

// standing finds what ends a session whatever policy says.
func standing(k *Connector, s *session) *verdict {
	switch {
	case k == nil:
		return &verdict{wire.ReasonRevoked, "connector was removed"}
	case !slices.Contains(k.Agents, s.server()):
		return &verdict{wire.ReasonRevoked, "agent may no longer serve the connector"}
	case !k.permits(s.client.Addr.Addr()):
		return &verdict{wire.ReasonDenied, "source address is no longer in allow_cidrs"}
	}
	return nil
}

// apply renews or ends permits by their answers. When the law has changed since
// it does nothing: whoever changed it has queued all sessions again.
func (h *Hub) apply(l law, c *connector, ask []*session, answers []authz.Decision, asked time.Time) (outcomes []outcome, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.epoch != l.epoch {
		return nil, false
	}
	outcomes = make([]outcome, len(ask))
	for i, s := range ask {
		if _, live := c.sessions[s]; live {
			inGrace := s.permit.grace != 0
			v := h.renewLocked(l.k, s, answers[i], asked)
			outcomes[i] = outcome{v, inGrace && s.permit.grace != 0 && v == nil}
		}
	}
	return outcomes, true
}

// renewLocked renews a permit, or says why it ends: a denial after a change of
// policy is denied, one at the end of a lease takes the permit back.
func (h *Hub) renewLocked(k *Connector, s *session, d authz.Decision, asked time.Time) *verdict {
	switch d.Outcome {
	case authz.Allow:
		h.grantLocked(s, d, asked)
		return s.meter.over()
	case authz.Deny:
		s.decision = d
		if s.permit.cause == causeLease {
			return &verdict{wire.ReasonRevoked, "the permit was not renewed: " + d.Reason}
		}
		return refusal(d)
	}
	now, p := h.leases.now(), &s.permit
	if end := now + max(0, k.Grace); p.grace == 0 || end < p.grace { // the latter after a reload
		p.grace = end
	}
	if now >= p.grace {
		s.decision = d
		return refusal(d)
	}
	h.scheduleLocked(s, min(p.grace, now+retryAfter(k.Grace)))
	return nil
}

// retryAfter is how long to wait before policy is asked again during a grace:
// about a second, which is also how long a failing engine is left alone.
func retryAfter(grace time.Duration) time.Duration {
	d := min(time.Second, grace/8)
	return d*4/5 + rand.N(max(1, d*2/5))
}

// stopJudging ends all judging and waits for it, within reason: a Decider that
// forgets its context holds up nobody's exit.
func (h *Hub) stopJudging() {
	h.mu.Lock()
	h.closed = true
	if h.leases.timer != nil {
		h.leases.timer.Stop()
	}
	silence, judging := h.silence, h.judging
	h.mu.Unlock()
	silence()
	done := make(chan struct{})
	go func() { judging.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(cutTime):
	}
}
