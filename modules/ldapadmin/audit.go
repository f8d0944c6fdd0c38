package ldapadmin

import (
	"context"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// counts are members by outcome, from ldapgroup.Skipped on.
type counts [ldapgroup.Unknown + 1]int

// record is one member in an audit record.
type record struct{ *ldapgroup.MemberResult }

// maxRecorded bounds the members that one audit record names. Each has a line
// of its own besides, with the same request.
const maxRecorded = 100

// note takes a member's outcome down for the audit.
func (q *request) note(m *ldapgroup.MemberResult) {
	if int(m.Outcome) < len(q.counts) {
		q.counts[m.Outcome]++
	}
	if len(q.listed) < maxRecorded {
		q.listed = append(q.listed, record{m})
	}
}

// audit writes the record that joins caller, decision, operation and outcome.
func (h *Handler) audit(q *request, status int, p *problem) {
	level := zapcore.InfoLevel
	if p != nil {
		level = zapcore.WarnLevel
	}
	e := auditLogger(h.logger).Check(level, "group membership request")
	if e == nil {
		return
	}
	suppressed := zap.Skip()
	if p != nil && p.Code == codeUnauthenticated { // anybody can cause as many as they like
		var ok bool
		if suppressed, ok = h.unknown.Allow(); !ok {
			return
		}
	}
	f := []zap.Field{
		zap.String("request", q.id), zap.String("method", q.Method), zap.String("connector", h.name),
		zap.String("subject_type", q.subject.Type), zap.String("subject", q.subject.ID), zap.String("client", q.subject.ip),
		zap.String("group", q.target.group), zap.Int("status", status), zap.Duration("duration", time.Since(q.began)),
	}
	if q.group != "" {
		f = append(f, zap.String("canonical_group", q.group))
	}
	for _, option := range []struct {
		name string
		on   bool
	}{{"dry_run", q.asked.dryRun()}, {"force", q.asked.replace.Force}, {"replayed", q.replayed}} {
		if option.on {
			f = append(f, zap.Bool(option.name, true))
		}
	}
	f = append(f, decisionFields(q.verdicts)...)
	for o, n := range q.counts {
		if n > 0 {
			f = append(f, zap.Int(ldapgroup.Outcome(o).String(), n))
		}
	}
	if len(q.listed) > 0 {
		f = append(f, zap.Array("members", records(q.listed)))
	}
	if p != nil {
		f = append(f, zap.String("code", p.Code))
		if p.cause != nil {
			f = append(f, zap.NamedError("failure", p.cause))
		}
	}
	e.Write(append(f, suppressed)...)
}

// decisionFields tell what policy said, in the words of the hub's own records:
// the last answer, which is the one that counts, and the actions that it was
// asked about.
func decisionFields(verdicts []verdict) []zap.Field {
	if len(verdicts) == 0 {
		return nil
	}
	actions := make([]string, len(verdicts))
	for i, v := range verdicts {
		actions[i] = v.action
	}
	last := verdicts[len(verdicts)-1]
	f := []zap.Field{zap.Strings("actions", actions), zap.Stringer("outcome", last.Outcome)}
	for _, text := range [][2]string{
		{"decision_id", last.ID}, {"engine", last.Engine}, {"policy", last.Policy}, {"reason", last.Reason},
	} {
		if text[1] != "" {
			f = append(f, zap.String(text[0], text[1]))
		}
	}
	if last.Err != nil {
		f = append(f, zap.NamedError("error", last.Err), zap.String("error_kind", string(authz.KindOf(last.Decision))))
	}
	return f
}

type records []record

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (rs records) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	for _, r := range rs {
		if err := enc.AppendObject(r); err != nil {
			return err
		}
	}
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (r record) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("member", r.Member)
	enc.AddString("action", r.Action.String())
	enc.AddString("outcome", r.Outcome.String())
	enc.AddString("changed", r.Changed.String())
	if r.Answer != nil {
		enc.AddUint16("ldap_code", r.Answer.Code)
	}
	return nil
}

// observer turns what the engine tells into log lines and metrics.
func (h *Handler) observer(b *backend) ldapgroup.Observer {
	return ldapgroup.Observer{
		Modify: func(e ldapgroup.ModifyEvent) {
			if e.Lost {
				b.stats.BatchLost(e.Action == ldapgroup.Remove, e.Duration)
				return
			}
			b.stats.Batch(e.Action == ldapgroup.Remove, e.Code, e.Duration)
		},
		Member: func(ctx context.Context, e ldapgroup.MemberEvent) {
			b.stats.Value(e.Action == ldapgroup.Remove, e.Outcome.String())
			h.logMember(ctx, &e)
		},
		Conn: h.logConn,
	}
}

// logMember writes one line for each member of a write: no-ops and changes at
// info, so that a directory that answers the same for everybody is seen.
func (h *Handler) logMember(ctx context.Context, m *ldapgroup.MemberEvent) {
	level := zapcore.InfoLevel
	switch m.Outcome {
	case ldapgroup.Failed, ldapgroup.Skipped:
		level = zapcore.WarnLevel
	case ldapgroup.Unknown:
		level = zapcore.ErrorLevel
	}
	e := h.logger.Check(level, "group member "+m.Outcome.String())
	if e == nil {
		return
	}
	id, _ := ctx.Value(requestKey{}).(string)
	f := []zap.Field{
		zap.String("request", id), zap.String("connector", m.Directory), zap.Stringer("server", m.Server),
		zap.String("group", m.Group), zap.String("member", m.Member), zap.Stringer("action", m.Action),
		zap.Stringer("outcome", m.Outcome), zap.Stringer("changed", m.Changed), zap.Int("attempts", m.Attempts),
	}
	if m.Canonical != "" {
		f = append(f, zap.String("canonical", m.Canonical))
	}
	if m.Note != "" {
		f = append(f, zap.String("note", m.Note))
	}
	if a := m.Answer; a != nil {
		f = append(f, zap.Uint16("ldap_code", a.Code), zap.String("ldap_name", a.Name),
			zap.String("diagnostic", a.Diagnostic), zap.String("matched_dn", a.MatchedDN))
	}
	if m.Err != nil {
		f = append(f, zap.NamedError("error", m.Err))
		if m.Err.Referral != "" {
			f = append(f, zap.String("referral", m.Err.Referral))
		}
	}
	e.Write(f...)
}

func (h *Handler) logConn(c ldapgroup.ConnEvent) {
	level := zapcore.DebugLevel
	if c.What == "open_failed" || c.What == "closed_error" {
		level = zapcore.WarnLevel
	}
	if e := h.logger.Check(level, "connection to the directory: "+c.What); e != nil {
		f := []zap.Field{zap.String("connector", c.Directory), zap.Int("open", c.Open), zap.Duration("duration", c.Duration)}
		if c.Err != nil {
			f = append(f, zap.NamedError("error", c.Err))
		}
		e.Write(f...)
	}
}
