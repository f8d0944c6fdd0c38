package ldapgroup

import (
	"errors"
	"slices"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// writer sends the requests of one batch and finds out what became of each
// value. One goroutine uses it.
type writer struct {
	s    *session
	e    *Engine
	g    *group
	jobs []*job

	stop *Error // why nothing more is sent

	// The patience for requests, apart from the session's for the searches
	// between them.
	failures int
	odd      bool
	losses   int // requests without an answer
	// assert, if set, is the entryCSN that the group must have for the next
	// request to be carried out.
	assert string
}

// change carries out adds, then removes.
func (w *writer) change(adds, removes []*op) {
	for _, ops := range [][]*op{adds, removes} {
		for _, chunk := range split(ops) {
			w.apply(chunk)
		}
	}
}

// apply sends ops, which have one action, in one request, and whatever further
// requests their answers call for.
func (w *writer) apply(ops []*op) {
	if len(ops) == 0 || w.skip(ops) {
		return
	}
	// The wait for a connection may be long, and callers may leave meanwhile.
	if _, err := w.s.conn(); err != nil {
		w.unreachable(ops, w.fail(ops, err))
		return
	}
	if ops = claimed(ops); len(ops) == 0 {
		return
	}
	err := w.modify(ops)
	if err == nil {
		w.success(ops)
		return
	}
	var u *unsent
	if errors.As(err, &u) {
		w.unreachable(ops, w.fail(ops, u.error))
		return
	}
	a := answerOf(err)
	switch {
	case a == nil:
		w.lost(ops, err)
	case passing(a.Code):
		w.passing(ops, err, a)
	case w.groupLevel(ops[0].action, a):
		failed := w.fail(ops, err)
		if a.Code == ldap.LDAPResultNoSuchObject {
			failed.Class = ClassGroupNotFound
		}
		w.halt(ops, failed)
	case a.Code == ldap.LDAPResultObjectClassViolation && ops[0].action == Remove:
		w.lastMember(ops, err)
	case len(ops) == 1:
		w.judge(ops[0], err, a)
	case w.maybeNoOp(ops[0].action, a):
		w.sift(ops, a)
	default:
		w.halve(ops)
	}
}

// claimed leaves out what nobody waits for any more and has not been sent.
func claimed(ops []*op) []*op {
	kept := make([]*op, 0, len(ops))
	for _, o := range ops {
		o.refs = slices.DeleteFunc(o.refs, func(r ref) bool { return !r.job.claim(r.index) })
		if len(o.refs) > 0 {
			kept = append(kept, o)
		}
	}
	return kept
}

func (w *writer) halve(ops []*op) {
	w.apply(ops[:len(ops)/2])
	w.apply(ops[len(ops)/2:])
}

// modify sends one request. The error is the directory's answer or the lack of
// one; a connection that cannot be had is an *Error.
func (w *writer) modify(ops []*op) error {
	action := ops[0].action
	values := make([]string, len(ops))
	for i, o := range ops {
		values[i] = o.name.raw
	}
	request := ldap.NewModifyRequest(w.g.name.raw, nil)
	if action == Add {
		request.Add(w.g.kind.Attribute(), values)
	} else {
		request.Delete(w.g.kind.Attribute(), values)
	}
	return w.send(ops, request)
}

// send sends a request that carries ops.
func (w *writer) send(ops []*op, request *ldap.ModifyRequest) error {
	c, err := w.s.conn()
	if err != nil {
		return &unsent{err}
	}
	if w.assert != "" && c.server.has(assertionOID) {
		request.Controls = append(request.Controls, assertion{csn: w.assert})
	}
	for _, o := range ops {
		o.attempts++
		for _, r := range o.refs {
			r.job.noteSent(r.index)
		}
	}
	begin := time.Now()
	err = w.s.on(c, func(l *ldap.Conn) error { return l.Modify(request) })
	w.noteModify(ops, time.Since(begin), err)
	if err == nil {
		w.failures, w.odd, w.assert = 0, false, ""
	}
	return err
}

// unsent is the failure to get a connection: nothing was sent.
type unsent struct{ error }

func (u *unsent) Unwrap() error { return u.error }

func (w *writer) noteModify(ops []*op, took time.Duration, err error) {
	ev := ModifyEvent{
		Group: w.g.name.raw, Action: ops[0].action, Values: len(ops), Calls: len(w.jobs),
		Attempt: ops[0].attempts, Duration: took,
	}
	if err != nil {
		ev.Err = w.fail(ops, err)
		if ev.Err.Answer != nil {
			ev.Code = ev.Err.Answer.Code
		} else {
			ev.Lost = true
		}
	}
	w.e.noteModify(ev)
}

// fail makes err an *Error about the group.
func (w *writer) fail(ops []*op, err error) *Error {
	return w.s.fail(ops[0].action.String(), err).about(w.g.given, "")
}

// lost deals with a request that was not answered: it may have been carried
// out, or may be yet. What the group lists now decides what is sent again.
func (w *writer) lost(ops []*op, err error) {
	for _, o := range ops {
		o.lost = true
	}
	w.losses++
	failed := w.fail(ops, err)
	w.s.spoil()
	// The pause also gives a server that is still at it the time to finish.
	if !w.again(err) && w.s.ctx.Err() != nil {
		w.unknown(ops, failed)
		return
	}
	rest, ok := w.compare(ops, nil)
	switch {
	case !ok || len(rest) == 0:
	case w.losses >= w.e.cfg.Attempts || !w.s.worth(err):
		w.unknown(rest, failed)
	default:
		w.apply(rest)
	}
}

// again is the session's, with the patience for requests.
func (w *writer) again(err error) bool {
	failures, odd := w.s.failures, w.s.odd
	w.s.failures, w.s.odd = w.failures, w.odd
	w.s.proven = true // a request has gone out: never at once
	ok := w.s.again(err)
	w.failures, w.odd = w.s.failures, w.s.odd
	w.s.failures, w.s.odd = failures, odd
	return ok
}

// passing deals with answers about the server's moment: try again, a limited
// number of times.
func (w *writer) passing(ops []*op, err error, a *Answer) {
	// These two are refused at the door; the others may have been carried out.
	certain := a.Code == ldap.LDAPResultBusy || a.Code == ldap.LDAPResultOperationsError
	for _, o := range ops {
		o.lost = o.lost || !certain
	}
	more := w.again(err)
	if w.s.ctx.Err() != nil && !certain {
		w.unknown(ops, w.fail(ops, err))
		return
	}
	failed, rest := w.fail(ops, err), ops
	if !certain {
		var ok bool
		if rest, ok = w.compare(ops, a); !ok {
			return
		}
	}
	if more {
		w.apply(rest)
	} else {
		w.halt(rest, failed)
	}
}

// sift deals with a refusal that means that some of the values are there, or
// not, already. Nothing was written; those that are not in the wanted state
// go out again.
func (w *writer) sift(ops []*op, a *Answer) {
	rest, ok := w.compare(ops, a)
	switch {
	case !ok:
	case len(rest) == len(ops):
		// The directory sees a difference that we do not.
		w.halve(ops)
	default:
		w.apply(rest)
	}
}

// compare settles the ops that are in the wanted state and returns the others;
// ok is false when the group could not be read, and then all are settled.
func (w *writer) compare(ops []*op, a *Answer) (rest []*op, ok bool) {
	names := make([]name, len(ops))
	for i, o := range ops {
		names[i] = o.name
	}
	listed, err := w.s.lists(ops[0].action.String(), w.g, names)
	if err != nil {
		w.unreachable(ops, w.fail(ops, err))
		return nil, false
	}
	for i, o := range ops {
		switch {
		case listed[i] != (o.action == Add):
			rest = append(rest, o)
		case o.primary && o.action == Remove:
			w.primary(o, a)
		default:
			w.noop(o, a, "")
		}
	}
	return rest, true
}

// lastMember deals with the refusal to leave a group empty.
func (w *writer) lastMember(ops []*op, err error) {
	if byJob := perJob(ops); len(byJob) > 1 {
		// Together they emptied it; one by one the first ones need not.
		for _, ops := range byJob {
			w.apply(ops)
		}
		return
	}
	failed := w.fail(ops, err)
	failed.Class = ClassLastMember
	if keep := w.g.rule.placeholder; keep.key != "" {
		request := ldap.NewModifyRequest(w.g.name.raw, nil)
		request.Add(w.g.kind.Attribute(), []string{keep.raw})
		values := make([]string, len(ops))
		for i, o := range ops {
			values[i] = o.name.raw
		}
		request.Delete(w.g.kind.Attribute(), values)
		again := w.send(ops, request)
		var u *unsent
		switch {
		case again == nil:
			for _, o := range ops {
				w.settle(o, outcome{is: Removed, changed: ChangedYes, note: NotePlaceholder})
			}
			return
		case errors.As(again, &u):
			w.unreachable(ops, w.fail(ops, u.error))
			return
		case answerOf(again) == nil:
			w.lost(ops, again)
			return
		default:
			failed = w.fail(ops, again)
			failed.Class = ClassLastMember
		}
	}
	for _, o := range ops {
		w.settle(o, outcome{is: Failed, changed: ChangedNo, answer: failed.Answer, err: failed})
	}
}

// perJob groups ops by the first call that asked for them.
func perJob(ops []*op) [][]*op {
	var out [][]*op
	at := make(map[*job]int)
	for _, o := range ops {
		j := o.refs[0].job
		i, ok := at[j]
		if !ok {
			i = len(out)
			at[j] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], o)
	}
	return out
}
