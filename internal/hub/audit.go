package hub

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// audit is where decisions and ends are written down.
type audit struct {
	log    *zap.Logger
	allows float64 // which part of the sessions has its allows written
}

// SetAudit makes the hub write one line for each decision and for each end of a
// session to log; nil writes none. Denials, errors and ends are always written,
// the allows of the given part of all sessions, from 0 to 1.
func (h *Hub) SetAudit(log *zap.Logger, allows float64) {
	if log == nil {
		log = zap.NewNop()
	}
	h.audit.Store(&audit{log, allows})
}

// sample draws whether a new session's allows are written.
func (a *audit) sample() bool { return a.allows >= 1 || rand.Float64() < a.allows }

// Engines of the hub's own.
const (
	engineCIDRs    = "allow_cidrs"
	engineOperator = "operator"
)

// number gives a decision a name if its engine has given it none.
func (s *session) number(d authz.Decision) authz.Decision {
	n := s.asked.Add(1)
	if d.ID == "" {
		d.ID = s.name + "." + strconv.Itoa(int(n))
	}
	return d
}

// phase is when a decision was made.
type phase string

const (
	phaseAccept phase = "accept" // before the first byte
	phaseReeval phase = "reeval" // about a live session
	phaseRevoke phase = "revoke" // by an operator
)

// auditDecision writes the line of one decision.
func (h *Hub) auditDecision(s *session, q *question) {
	d := q.answer
	level := zapcore.WarnLevel
	if d.Outcome == authz.Allow && d.Err == nil {
		if !s.sampled {
			return
		}
		level = zapcore.InfoLevel
	}
	e := h.audit.Load().log.Check(level, "decision")
	if e == nil {
		return
	}
	f := make([]zap.Field, 0, 28)
	f = append(f, zap.String("phase", string(q.phase)))
	f = who(f, s, q.agent)
	f = append(f, zap.String("action", authz.ActionConnect), zap.String("resource_type", "connector"), zap.String("resource", s.client.Connector))
	f = what(f, d)
	f = append(f, zap.Bool("cached", d.Cached), zap.Duration("latency", q.took))
	if d.Lease > 0 {
		f = append(f, zap.Duration("lease", d.Lease))
	}
	if d.MaxDuration > 0 {
		f = append(f, zap.Duration("max_duration", d.MaxDuration))
	}
	if d.MaxBytes > 0 {
		f = append(f, zap.Int64("max_bytes", d.MaxBytes))
	}
	e.Write(f...)
}

// auditRevoked writes the line of an operator's decision.
func (h *Hub) auditRevoked(s *session, why string) {
	d := s.number(authz.Decision{Outcome: authz.Deny, Engine: engineOperator, Reason: why})
	h.auditDecision(s, &question{phase: phaseRevoke, agent: s.server(), answer: d})
}

// auditEnd writes the line of a session's end. What ends before it is a session
// is a refusal; of those only some are written when there are many, because
// every stranger can cause them. What policy had to say about them is in the
// line of the decision, which is always written.
func (h *Hub) auditEnd(s *session, o *Outcome) {
	level, message, suppressed := zapcore.InfoLevel, "session ended", zap.Skip()
	if refused(o) {
		level, message = zapcore.WarnLevel, "connection refused"
		var ok bool
		if suppressed, ok = s.conn.refused.Allow(); !ok {
			return
		}
	}
	e := h.audit.Load().log.Check(level, message)
	if e == nil {
		return
	}
	f := who(make([]zap.Field, 0, 24), s, o.Agent)
	f = append(f, zap.Stringer("close_reason", o.Reason))
	f = words(f, "message", o.Message)
	f = append(f, zap.Int64("bytes_c2a", o.BytesC2A), zap.Int64("bytes_a2c", o.BytesA2C), zap.Duration("duration", o.Duration))
	if o.Decision.ID != "" { // there was one
		f = what(f, o.Decision)
	}
	e.Write(append(f, suppressed)...)
}

// refused reports whether a connection ended before it was a session.
func refused(o *Outcome) bool {
	switch o.Reason {
	case wire.ReasonNoAgent, wire.ReasonConnectFailed, wire.ReasonConnectTimeout, wire.ReasonLimit, wire.ReasonDraining:
		return true
	case wire.ReasonDenied, wire.ReasonPDPError:
		return o.Agent == ""
	}
	return false
}

// who tells of the client.
func who(f []zap.Field, s *session, agent string) []zap.Field {
	cl := s.client
	f = append(f, zap.String("cid", s.name), zap.String("connector", cl.Connector),
		zap.Stringer("client", cl.Addr), zap.String("listener", cl.Listener))
	if cl.SNI != "" {
		f = words(f, "sni", cl.SNI)
	}
	if cl.Subject != nil {
		f = words(append(f, zap.String("subject_type", cl.Subject.Type)), "subject", cl.Subject.ID)
	} else {
		f = append(f, zap.String("subject_type", subjectIP), zap.String("subject", cl.Addr.Addr().Unmap().String()))
	}
	return words(f, "agent", agent)
}

// what tells of a decision.
func what(f []zap.Field, d authz.Decision) []zap.Field {
	f = words(append(f, zap.Stringer("outcome", d.Outcome)), "decision_id", d.ID)
	f = words(f, "engine", d.Engine)
	f = words(f, "policy", d.Policy)
	f = words(f, "reason", d.Reason)
	if d.Err != nil {
		f = words(f, "error", d.Err.Error())
		if k := authz.KindOf(d); k != "" {
			f = append(f, zap.String("error_kind", string(k)))
		}
	}
	return f
}

// maxWords bounds what a client, an agent or a policy engine can put into one
// field.
const maxWords = 256

// words adds a text that others wrote, within its bound; nothing when it is
// empty.
func words(f []zap.Field, key, text string) []zap.Field {
	if text == "" {
		return f
	}
	return append(f, zap.String(key, truncate(text)))
}

func truncate(text string) string {
	if len(text) <= maxWords {
		return text
	}
	n := maxWords
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return strings.ToValidUTF8(text[:n], "\uFFFD") + "…"
}
