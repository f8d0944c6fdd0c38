package hub

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// covers reports whether the credential lets its agent serve the connector, as
// far as it goes: the configuration must name the agent for it too.
func (id *Identity) covers(connector string) bool {
	return id.Connectors == nil || slices.Contains(id.Connectors, connector)
}

func (id *Identity) expired(now time.Time) bool {
	return !id.Expires.IsZero() && !now.Before(id.Expires)
}

// expiresIn is the time left in milliseconds as the wire has it: 0 for never,
// at least 1 otherwise.
func (id *Identity) expiresIn() int64 {
	if id.Expires.IsZero() {
		return 0
	}
	return max(time.Until(id.Expires).Milliseconds(), 1)
}

// capabilities lists what the agent said it can do and this link has.
func (l *link) capabilities() []string {
	var out []string
	if l.reauth {
		out = append(out, wire.CapReauth)
	}
	if slices.Contains(l.hello.Capabilities, wire.CapHandover) {
		out = append(out, wire.CapHandover)
	}
	return out
}

const (
	// clockStep bounds how long the keeper trusts a timer: expiry is a matter
	// of the wall clock, which may be set while the timer runs.
	clockStep = time.Minute
	// leaveStep is how often a link that is to end with its last session looks
	// whether it has any. It happens once per certificate.
	leaveStep = 200 * time.Millisecond
)

// keeper looks after the credential of one link: it has fresh ones verified,
// and ends the link when none came in time.
type keeper struct {
	h    *Hub
	l    *link
	told bool // it was logged that the credential has expired
}

// keepCredential runs until ctx ends, which is when the link has.
func (h *Hub) keepCredential(ctx context.Context, l *link) {
	k := &keeper{h: h, l: l}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case token := <-l.auth:
			h.renew(ctx, l, token)
		case <-l.changed:
		case <-timer.C:
		}
		wait, over := k.judge(time.Now())
		if over != nil {
			l.Close(over.Reason, over.Message)
			return
		}
		timer.Reset(wait)
	}
}

// judge says when to look again, or why the link must end now.
func (k *keeper) judge(now time.Time) (wait time.Duration, over *tunnel.LinkError) {
	l, wait := k.l, clockStep
	if l.handed.Load() {
		l.Drain(handedOver)
		if l.NumSessions() == 0 {
			return 0, &tunnel.LinkError{Reason: wire.ReasonSuperseded, Message: handedOver}
		}
		wait = leaveStep
	}
	id := l.identity.Load()
	if id.Expires.IsZero() {
		k.told = false
		return wait, nil
	}
	if left := id.Expires.Sub(now); left > 0 {
		k.told = false
		return min(wait, left), nil
	}
	end := id.Expires.Add(k.h.config().AuthGrace)
	k.tellExpired(end.Sub(now))
	if !l.reauth {
		l.Drain("the credential has expired")
		wait = leaveStep // its agent cannot save this link: let it make another soon
	}
	if !now.Before(end) || !l.reauth && l.NumSessions() == 0 {
		return 0, k.tellOver()
	}
	return min(wait, end.Sub(now)), nil
}

func (k *keeper) fields(more ...zap.Field) []zap.Field {
	id := k.l.identity.Load()
	return append([]zap.Field{
		zap.String("agent", k.l.hello.AgentID), zap.Int("link", k.l.hello.Link), zap.String("method", id.Method),
		zap.Time("expired", id.Expires), zap.Int("sessions", k.l.NumSessions()),
	}, more...)
}

func (k *keeper) tellExpired(grace time.Duration) {
	if k.told {
		return
	}
	k.told = true
	k.h.logger().Warn("agent's credential has expired: no new sessions on its link", k.fields(zap.Duration("grace", grace))...)
}

func (k *keeper) tellOver() *tunnel.LinkError {
	k.h.logger().Warn("agent's credential has expired and was not renewed: closing its link", k.fields()...)
	return &tunnel.LinkError{
		Reason:  wire.ReasonRevoked,
		Message: "the credential expired at " + k.l.identity.Load().Expires.UTC().Format(time.RFC3339) + " and was not renewed",
	}
}

// adoptLocked makes id the link's identity. It returns the sessions that it
// does not cover, which the caller ends without the lock. One that is being
// opened meanwhile finds the policy changed and is placed again.
func (h *Hub) adoptLocked(l *link, id *Identity) (cut []*session) {
	before := l.identity.Swap(id)
	on := make(map[*tunnel.Session]bool)
	for _, ts := range l.Sessions() {
		on[ts] = true
	}
	for _, name := range l.hello.Connectors {
		if !before.covers(name) || id.covers(name) {
			continue
		}
		if c := h.connectors[name]; c != nil {
			h.policyChangedLocked(c)
			for s := range c.sessions {
				if on[s.tunnel.Load()] {
					cut = append(cut, s)
				}
			}
		}
	}
	return cut
}

func endUncovered(cut []*session) {
	for _, s := range cut {
		s.end(wire.ReasonRevoked, "the agent's new credential does not cover the connector")
	}
}

// maxHanded bounds the links of one slot that were handed over and still have
// sessions. With a certificate per day that is a week of them.
const maxHanded = 8

const handedOver = "another link took this one's place with a new credential"

// handover is what a login does to the links that it leaves to end by
// themselves: with Hello.Handover those that had its place, and in any case those
// that another one had taken it from like that. What proved the new link proves them too: only their own process knows
// the instance, and it asked for it.
type handover struct {
	old []*link // in the order of their logins
	cut []*session
}

func (v *handover) takeLocked(h *Hub, old, fresh *link) {
	old.retired = true
	old.handed.Store(true)
	v.cut = append(v.cut, h.adoptLocked(old, fresh.identity.Load())...)
	v.old = append(v.old, old)
}

// tooMany returns the links to close although they have sessions.
func (v *handover) tooMany() []*link {
	return v.old[:max(len(v.old)-maxHanded, 0)]
}

// finish does what needs no lock.
func (v *handover) finish(h *Hub, fresh *link) {
	if len(v.old) == 0 {
		return
	}
	endUncovered(v.cut)
	for _, o := range v.old {
		select {
		case o.changed <- struct{}{}:
		default:
		}
	}
	h.logger().Info("agent's links that were handed over go on with the credential of a new one", zap.String("agent", fresh.hello.AgentID), zap.Int("link", fresh.hello.Link),
		zap.Time("expires", fresh.identity.Load().Expires), zap.Int("links_before", len(v.old)), zap.Int("sessions_ended", len(v.cut)))
}
