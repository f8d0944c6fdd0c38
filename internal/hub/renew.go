package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/wire"
)

const (
	// authBurst and authEvery bound the AUTH frames of a link that are looked
	// at: enough for an agent whose operator tries things out, too few to make
	// signatures worth flooding.
	authBurst = 5
	authEvery = 2 * time.Second
	// authTimeout bounds one verification, which may fetch keys.
	authTimeout = 10 * time.Second
	// floodReminder is how often a flood is told while it lasts.
	floodReminder = time.Minute
)

var (
	errOtherAgent  = errors.New("the credential is another agent's")
	errJustExpired = errors.New("the credential has expired")
	errNotInForce  = errors.New("the credential is not valid under the configuration in force")
)

// allowance is a token bucket.
type allowance struct {
	spent float64
	last  time.Time
}

func (a *allowance) take(now time.Time) bool {
	a.spent = max(0, a.spent-now.Sub(a.last).Seconds()/authEvery.Seconds())
	a.last = now
	if a.spent > authBurst-1 {
		return false
	}
	a.spent++
	return true
}

// takeAuth returns what receives the link's AUTH frames. It runs on the link's
// reader, which owns what it remembers, and never blocks: one frame waits for
// the keeper, and what comes faster is answered without being looked at.
func (h *Hub) takeAuth(l *link) func(token []byte) {
	var allow allowance
	var told time.Time
	return func(token []byte) {
		now := time.Now()
		if allow.take(now) {
			select {
			case l.auth <- bytes.Clone(token):
				return
			default:
			}
		}
		l.agent.stats.Reauth(obs.ReauthLimited)
		if now.Sub(told) >= floodReminder {
			told = now
			h.logger().Warn("agent sends new credentials faster than they are looked at",
				zap.String("agent", l.hello.AgentID), zap.Int("link", l.hello.Link))
		}
		_ = l.AnswerAuth(wire.AuthAck{ // a link that is over needs no answer
			Error: wire.AuthLimit, Message: "too many credentials", RetryAfter: authEvery.Milliseconds(),
		})
	}
}

// renew judges a fresh credential and answers. Whatever comes of it, the link
// goes on.
func (h *Hub) renew(ctx context.Context, l *link, token []byte) {
	log := h.logger().With(zap.String("agent", l.hello.AgentID), zap.Int("link", l.hello.Link))
	id, err := h.verifyToken(ctx, l, token)
	clear(token)
	if err == nil && !h.lockIfValid(id) {
		err = errNotInForce
	}
	if err != nil {
		log.Warn("agent's new credential is not accepted, the link goes on with the one before",
			zap.Time("expires", l.identity.Load().Expires), zap.Error(err))
		_ = l.AnswerAuth(h.refusedAuth(l, err)) // a link that is over needs no answer
		return
	}
	cut := h.adoptLocked(l, id)
	cfg := h.cfg
	h.mu.Unlock()
	endUncovered(cut)
	accepted, refused := h.split(cfg, l)
	l.agent.stats.Reauth(obs.ReauthAccepted)
	log.Info("agent renewed its credential", zap.String("method", id.Method), zap.Time("expires", id.Expires),
		zap.Strings("connectors", accepted), zap.Strings("refused", refused), zap.Int("sessions_ended", len(cut)))
	_ = l.AnswerAuth(wire.AuthAck{ExpiresIn: id.expiresIn(), Accepted: accepted, Refused: refused})
}

// verifyToken asks the agent_auth of the configuration in force. It takes no
// longer than the link has left.
func (h *Hub) verifyToken(ctx context.Context, l *link, token []byte) (*Identity, error) {
	cfg, patience := h.config(), authTimeout
	if cfg.Reauthenticate == nil {
		return nil, ErrUnavailable
	}
	if e := l.identity.Load().Expires; !e.IsZero() {
		patience = min(patience, time.Until(e.Add(cfg.AuthGrace)))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, err := cfg.Reauthenticate(ctx, l.hello.AgentID, string(token))
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: not within %v", ErrUnavailable, patience.Round(time.Millisecond))
	case err != nil:
		return nil, err
	case id.AgentID != l.hello.AgentID:
		return nil, errOtherAgent
	case id.expired(time.Now()):
		return nil, errJustExpired
	}
	return &id, nil
}

// refusedAuth words an error for the agent, which has proved who it is and may
// know what is wrong with what it sent.
func (h *Hub) refusedAuth(l *link, err error) wire.AuthAck {
	if errors.Is(err, ErrUnavailable) {
		l.agent.stats.Reauth(obs.ReauthError)
		return wire.AuthAck{Error: wire.AuthUnavailable, Message: err.Error(), RetryAfter: authEvery.Milliseconds()}
	}
	l.agent.stats.Reauth(obs.ReauthRefused)
	return wire.AuthAck{Error: wire.AuthRefused, Message: err.Error()}
}
