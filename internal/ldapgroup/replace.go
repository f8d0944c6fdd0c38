package ldapgroup

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-ldap/ldap/v3"
)

var (
	errReplaceNotAllowed = errors.New("the group's rule does not allow replacing")
	errNoIfMatch         = errors.New("neither an ETag nor force was given")
	errEmptied           = errors.New("the list is empty")
	errEquality          = errors.New("the group was changed by somebody else, or the directory compares names in a way of its own")
	errAddFailed         = errors.New("not every member could be added, so none was removed")
)

// Replace makes members the group's members and nobody else: it reads, adds
// what is missing and then removes what is too much. It stops before removing
// when the directory refuses as present what the reading said is missing, when
// an add failed, when one of the members has no entry (it may be another name
// of one that would go), or when the group was changed in between. The error
// is as for [Engine.Change].
func (e *Engine) Replace(ctx context.Context, group string, members []string, o ReplaceOptions) (*Result, error) {
	const op = "replace members"
	ctx, end, err := e.begin(ctx, op, group)
	if err != nil {
		return nil, err
	}
	defer end()
	wanted, err := e.wanted(ctx, op, group, members)
	if err != nil {
		return nil, err
	}
	switch {
	case !wanted.group.rule.AllowReplace:
		return nil, e.groupError(op, group, ClassForbidden, errReplaceNotAllowed)
	case o.IfMatch == "" && !o.Force:
		return nil, e.groupError(op, group, ClassNoPrecondition, errNoIfMatch)
	case len(members) == 0 && !o.Force:
		return nil, e.groupError(op, group, ClassTooManyRemoved, errEmptied)
	}
	r := &replacement{e: e, o: o, wanted: wanted}
	if o.DryRun {
		return r.dryRun()
	}
	// The job's members are known only after the reading, in its turn.
	j := newJob(ctx, op, wanted.group, nil)
	j.alone = func(w *writer, j *job) { r.run(w, j) }
	rs, err := e.submit(j)
	if err != nil {
		return nil, err
	}
	return r.result(rs), nil
}

// wanted resolves the group of a Replace and parses its members. Their entries
// are looked for when it is known which of them the group does not list.
func (e *Engine) wanted(ctx context.Context, op, group string, members []string) (*job, error) {
	if err := e.fewEnough(op, group, len(members)); err != nil {
		return nil, err
	}
	s := e.session(ctx)
	defer s.close()
	g, _, err := s.resolve(op, group)
	if err != nil {
		return nil, err
	}
	if err := g.writable(e, op); err != nil {
		return nil, err
	}
	return newJob(ctx, op, g, s.parseAll(g, Add, members)), nil
}

// replacement is one Replace. The worker that runs it has it to itself until
// the job is done.
type replacement struct {
	e      *Engine
	o      ReplaceOptions
	wanted *job // its members are those wanted; it is never submitted

	right int    // of those wanted, how many were there
	etag  string // after complete success
}

func (r *replacement) result(rs []MemberResult) *Result {
	out := r.wanted.result(rs)
	out.AlreadyRight, out.ETag = r.right, r.etag
	return out
}

func (r *replacement) dryRun() (*Result, error) {
	s := r.e.session(r.wanted.ctx)
	defer s.close()
	c, err := s.read(r.wanted.op, r.wanted.group)
	if err != nil {
		return nil, err
	}
	ms, err := r.plan(s, c)
	if err != nil {
		return nil, err
	}
	j := newJob(r.wanted.ctx, r.wanted.op, r.wanted.group, ms)
	for i, m := range ms {
		if m.err != nil {
			j.results[i].Outcome, j.results[i].Changed, j.results[i].Err = Failed, ChangedNo, m.err
			continue
		}
		r.e.wouldBe(j.group, m, m.action == Remove, &j.results[i])
	}
	out := r.result(j.results)
	out.DryRun = true
	return out, nil
}

// plan compares what the group has with what is wanted.
func (r *replacement) plan(s *session, c *contents) ([]*member, error) {
	op, g := r.wanted.op, r.wanted.group
	if r.o.IfMatch != "" {
		if err := r.e.matches(op, g, c, r.o.IfMatch); err != nil {
			return nil, err
		}
	}
	have := c.index()
	if err := r.lookup(s, have); err != nil {
		return nil, err
	}
	if r.o.Approve != nil {
		s.close() // asking may take its time
		if err := r.o.Approve.of(r.wanted.ctx, r.wanted.members); err != nil {
			return nil, err
		}
	}
	wanted := make(map[string]*member, len(r.wanted.members))
	var failed, adds, removes []*member
	for _, m := range r.wanted.members {
		if m.err != nil {
			failed = append(failed, m)
			continue
		}
		if wanted[m.name.key] != nil {
			continue
		}
		wanted[m.name.key] = m
		if _, ok := have[m.name.key]; ok {
			r.right++
		} else {
			adds = append(adds, m)
		}
	}
	for i, key := range c.keys {
		if wanted[key] == nil {
			removes = append(removes, &member{given: c.values[i], action: Remove, name: g.value(c.values[i])})
		}
	}
	adds, removes, err := r.reconcile(s, wanted, adds, removes)
	if err != nil {
		return nil, err
	}
	if err := r.tooMany(len(removes), len(c.keys)); err != nil {
		return nil, err
	}
	return append(append(failed, adds...), removes...), nil
}

// lookup looks for the entries of those that the group does not list under
// the name given.
func (r *replacement) lookup(s *session, have map[string]int) error {
	var ms []*member
	for _, m := range r.wanted.members {
		if _, ok := have[m.name.key]; !ok && m.err == nil {
			ms = append(ms, m)
		}
	}
	return s.lookup(r.wanted.op, r.wanted.group, nil, ms)
}

// reconcile asks the directory what those are called that would go: a value
// may be another spelling of a wanted member, which the plan would add in one
// and remove in the other.
func (r *replacement) reconcile(s *session, wanted map[string]*member, adds, removes []*member) (a, rm []*member, err error) {
	if len(removes) == 0 || r.wanted.group.kind == PosixGroup || r.e.cfg.Lookup == LookupNever {
		return adds, removes, r.unasked(s, removes)
	}
	there := make(map[string]bool)
	spelled := make(map[*member]bool) // a wanted one's, in another spelling
	take := func(m *member, a found) {
		m.found = true
		if key := storedName(a.result.Entries[0].DN).key; wanted[key] != nil {
			there[key], spelled[m] = true, true
		}
	}
	s.lookupTogether(r.wanted.op, r.wanted.group, removes, take)
	if err := r.lookupValues(s, removes, take); err != nil {
		return nil, nil, err
	}
	for _, m := range removes {
		if !spelled[m] {
			r.forbid(m)
			rm = append(rm, m)
		}
	}
	for _, m := range adds {
		if there[m.name.key] {
			r.right++
			continue
		}
		a = append(a, m)
	}
	return a, rm, nil
}

// lookupValues asks for the entry of each that has none yet, by the name that
// the group lists.
func (r *replacement) lookupValues(s *session, removes []*member, take func(*member, found)) error {
	var (
		requests []*ldap.SearchRequest
		owners   []*member
	)
	for _, m := range removes {
		if !m.found {
			requests, owners = append(requests, baseSearch(m.given, "(objectClass=*)", noAttributes)), append(owners, m)
		}
	}
	if len(requests) == 0 {
		return nil
	}
	answers, err := s.searchAll(r.wanted.op, requests)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if a.err == nil && len(a.result.Entries) > 0 {
			take(owners[i], a)
		}
	}
	return nil
}

// forbid refuses to remove who is outside of the member bases.
func (r *replacement) forbid(m *member) {
	if !r.e.memberAllowed(m.name) {
		m.err = r.e.groupError(Remove.String(), r.wanted.group.given, ClassForbidden, errMemberNotAllowed).about("", m.given)
	}
}

// unasked checks removals whose names the directory is not asked about: user
// names, which are values as they stand, and everybody's without a lookup.
func (r *replacement) unasked(s *session, removes []*member) error {
	g := r.wanted.group
	if g.kind != PosixGroup || r.e.cfg.AnyMember || r.e.cfg.Lookup == LookupNever {
		for _, m := range removes {
			r.forbid(m)
		}
		return nil
	}
	users := make([]*member, len(removes))
	for i, m := range removes {
		u := *m
		users[i] = &u
	}
	if err := s.lookup(r.wanted.op, g, nil, users); err != nil {
		return err
	}
	for i, u := range users {
		removes[i].err = u.err
	}
	return nil
}

// tooMany refuses to empty a group by mistake.
func (r *replacement) tooMany(removals, of int) *Error {
	limit := r.wanted.group.rule.MaxRemovals
	if r.o.Force || float64(removals) <= limit*float64(of) {
		return nil
	}
	return r.e.groupError(r.wanted.op, r.wanted.group.given, ClassTooManyRemoved,
		fmt.Errorf("%d of %d members would go, %g %% are allowed", removals, of, 100*limit))
}

// run reads, plans and carries out, in the group's turn.
func (r *replacement) run(w *writer, j *job) {
	c, err := w.s.read(j.op, w.g)
	if err != nil {
		w.stopWith(w.s.fail(j.op, err))
		return
	}
	ms, err := r.plan(w.s, c)
	if err != nil {
		w.stopWith(w.s.fail(j.op, err))
		return
	}
	j.replan(ms)
	j.refuse(w.e)
	adds, removes := merge([]*job{j})
	w.assert = c.csn
	if r.o.IfMatch == "" {
		w.assert = ""
	}
	w.phases(j, c, adds, removes, func() *Error { return r.mayRemove(j, adds) })
	if j.complete() {
		r.etag = c.after(adds, removes).etag()
	}
}

// replan gives a job its members; nobody else looks at them yet.
func (j *job) replan(ms []*member) {
	fresh := newJob(j.ctx, j.op, j.group, ms)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.members, j.results, j.settled, j.sent = fresh.members, fresh.results, fresh.settled, fresh.sent
}

func (j *job) complete() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.results {
		if !j.results[i].Outcome.Done() {
			return false
		}
	}
	return true
}

// mayRemove says why nothing must be removed, nil when it may.
func (r *replacement) mayRemove(j *job, adds []*op) *Error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, m := range j.members {
		if m.action == Add && j.settled[i] && !j.results[i].Outcome.Done() {
			return r.e.groupError(j.op, j.group.given, ClassDirectory, errAddFailed)
		}
	}
	for _, o := range adds {
		res := j.results[o.refs[0].index]
		if res.Outcome == AlreadyMember && res.Changed == ChangedNo && res.Note == "" {
			return r.e.groupError(j.op, j.group.given, ClassPrecondition, errEquality)
		}
	}
	return nil
}

// conditional is a Change with IfMatch, in the group's turn.
func (w *writer) conditional(j *job, ifMatch string) {
	c, err := w.s.read(j.op, w.g)
	if err != nil {
		w.stopWith(w.s.fail(j.op, err))
		return
	}
	if err := w.e.matches(j.op, w.g, c, ifMatch); err != nil {
		w.stopWith(err)
		return
	}
	adds, removes := merge([]*job{j})
	w.assert = c.csn
	w.phases(j, c, adds, removes, func() *Error { return nil })
}

// phases adds, makes sure that nobody else wrote in between, and removes.
func (w *writer) phases(j *job, before *contents, adds, removes []*op, may func() *Error) {
	w.change(adds, nil)
	if len(removes) == 0 || w.stop != nil {
		return
	}
	if err := may(); err != nil {
		// Not the job's end as a whole: its members say what was wrong.
		w.stop = err
		return
	}
	if len(adds) > 0 {
		now, err := w.s.read(j.op, w.g)
		if err != nil {
			w.stopWith(w.s.fail(j.op, err))
			return
		}
		if now.etag() != before.after(adds, nil).etag() {
			w.stopWith(w.e.groupError(j.op, w.g.given, ClassPrecondition, errChanged))
			return
		}
		w.assert = now.csn
	}
	w.change(nil, removes)
}
