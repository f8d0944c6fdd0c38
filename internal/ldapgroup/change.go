package ldapgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Change makes adds members of the group and removes not.
//
// The error, an [*Error], is non-nil only when nothing was written: the
// request or the group is at fault or out of reach. Otherwise each member has
// its own result, also those that failed, and the Result says it all. The
// same member in both lists is [ClassInvalid]; a malformed name is that
// member's failure alone.
//
// Calls for one group take turns, and those that wait are sent as one request
// where they do not contradict each other. When ctx ends, Change returns: with
// its error if nothing was sent, else with the members in flight Unknown.
func (e *Engine) Change(ctx context.Context, group string, adds, removes []string, o ChangeOptions) (*Result, error) {
	const op = "change members"
	ctx, end, err := e.begin(ctx, op, group)
	if err != nil {
		return nil, err
	}
	defer end()
	j, err := e.prepare(ctx, op, group, adds, removes)
	if err != nil {
		return nil, err
	}
	if err := o.Approve.of(ctx, j.members); err != nil {
		return nil, err
	}
	if o.DryRun {
		return e.dryRun(j, o.IfMatch)
	}
	if o.IfMatch != "" {
		j.alone = func(w *writer, j *job) { w.conditional(j, o.IfMatch) }
	}
	rs, err := e.submit(j)
	if err != nil {
		return nil, err
	}
	return j.result(rs), nil
}

// of asks about members by the directory's names.
func (a Approve) of(ctx context.Context, ms []*member) error {
	if a == nil {
		return nil
	}
	var adds, removes []string
	for _, m := range ms {
		if m.action == Add {
			adds = append(adds, m.called())
		} else {
			removes = append(removes, m.called())
		}
	}
	return a(ctx, adds, removes)
}

func (j *job) result(rs []MemberResult) *Result {
	return &Result{Group: j.group.given, Canonical: j.group.name.raw, Kind: j.group.kind, Members: rs}
}

// prepare resolves the group and the members of a call that wants to write.
func (e *Engine) prepare(ctx context.Context, op, group string, adds, removes []string) (*job, error) {
	if err := e.fewEnough(op, group, len(adds)+len(removes)); err != nil {
		return nil, err
	}
	s := e.session(ctx)
	defer s.close()
	g, ahead, err := s.resolve(op, group, slices.Concat(adds, removes)...)
	if err != nil {
		return nil, err
	}
	if err := g.writable(e, op); err != nil {
		return nil, err
	}
	ms, err := s.prepare(op, g, ahead, adds, removes)
	if err != nil {
		return nil, err
	}
	return newJob(ctx, op, g, ms), nil
}

func (e *Engine) fewEnough(op, group string, members int) *Error {
	if members <= e.cfg.MaxMembers {
		return nil
	}
	return e.groupError(op, group, ClassTooLarge, fmt.Errorf("%d members, %d are allowed", members, e.cfg.MaxMembers))
}

// dryRun says what a change would do.
func (e *Engine) dryRun(j *job, ifMatch string) (*Result, error) {
	s := e.session(j.ctx)
	defer s.close()
	if ifMatch != "" {
		c, err := s.read(j.op, j.group)
		if err != nil {
			return nil, err
		}
		if err := e.matches(j.op, j.group, c, ifMatch); err != nil {
			return nil, err
		}
	}
	var (
		names []name
		at    []int
	)
	rs := make([]MemberResult, len(j.members))
	for i, m := range j.members {
		rs[i] = j.results[i]
		if m.err != nil {
			rs[i].Outcome, rs[i].Changed, rs[i].Err, rs[i].Answer = Failed, ChangedNo, m.err, m.err.Answer
			continue
		}
		names, at = append(names, m.name), append(at, i)
	}
	listed, err := s.lists(j.op, j.group, names)
	if err != nil {
		return nil, err
	}
	for k, i := range at {
		e.wouldBe(j.group, j.members[i], listed[k], &rs[i])
	}
	out := j.result(rs)
	out.DryRun = true
	return out, nil
}

func (e *Engine) wouldBe(g *group, m *member, listed bool, r *MemberResult) {
	switch {
	case m.primary && m.action == Add:
		r.Outcome, r.Changed, r.Note = AlreadyMember, ChangedNo, NotePrimaryGroup
	case m.primary:
		r.Outcome, r.Changed, r.Note = Failed, ChangedNo, NotePrimaryGroup
		r.Err = e.groupError(m.action.String(), g.given, ClassPrimaryGroup, errPrimary).about("", m.given)
	case listed && m.action == Add, !listed && m.action == Remove:
		r.Outcome, r.Changed = noOp(m.action), ChangedNo
	case m.action == Add:
		r.Outcome, r.Changed = Added, ChangedYes
	default:
		r.Outcome, r.Changed = Removed, ChangedYes
	}
}

// IsMember reports whether member is in the group.
func (e *Engine) IsMember(ctx context.Context, group, member string) (*Membership, error) {
	const op = "test membership"
	ctx, end, err := e.begin(ctx, op, group)
	if err != nil {
		return nil, err
	}
	defer end()
	s := e.session(ctx)
	defer s.close()
	g, ahead, err := s.resolve(op, group, member)
	if err != nil {
		return nil, err
	}
	// As for a removal: one without an entry may be listed all the same.
	ms, err := s.prepare(op, g, ahead, nil, []string{member})
	if err != nil {
		return nil, err
	}
	m := ms[0]
	if m.err != nil {
		m.err.Op = op
		return nil, m.err
	}
	listed, err := s.lists(op, g, []name{m.name})
	if err != nil {
		return nil, err
	}
	return &Membership{
		Group: group, Member: member, CanonicalGroup: g.name.raw, CanonicalMember: m.canonical(),
		Called: m.called(), IsMember: listed[0] || m.primary, Primary: m.primary,
	}, nil
}

var errChanged = errors.New("the group is not what it was")

// matches holds the group against a caller's ETag.
func (e *Engine) matches(op string, g *group, c *contents, ifMatch string) *Error {
	if ifMatch == "*" || ifMatch == c.etag() {
		return nil
	}
	return e.groupError(op, g.given, ClassPrecondition, errChanged)
}
