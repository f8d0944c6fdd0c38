package ldapgroup

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// job is a prepared call that waits for its group's turn.
type job struct {
	ctx     context.Context
	op      string
	group   *group
	members []*member
	// alone, if set, is run by itself instead of the plain change; nothing is
	// merged with it.
	alone func(w *writer, j *job)
	done  chan struct{} // closed when the job's results are final

	batch *batch // guarded by Engine.mu; nil while it waits

	mu      sync.Mutex
	results []MemberResult // guarded by mu
	settled []bool         // guarded by mu
	sent    []bool         // guarded by mu; the member is, or will be, in a request
	stop    *Error         // guarded by mu; what ended the job early
	left    bool           // guarded by mu; its caller was told and is gone
}

func newJob(ctx context.Context, op string, g *group, ms []*member) *job {
	j := &job{
		ctx: ctx, op: op, group: g, members: ms, done: make(chan struct{}),
		results: make([]MemberResult, len(ms)), settled: make([]bool, len(ms)), sent: make([]bool, len(ms)),
	}
	for i, m := range ms {
		j.results[i] = MemberResult{Member: m.given, Canonical: m.canonical(), Action: m.action}
	}
	return j
}

// settle makes a member's result final and tells the observer. The first
// word counts.
func (j *job) settle(e *Engine, i int, change func(*MemberResult)) {
	j.mu.Lock()
	if j.settled[i] {
		j.mu.Unlock()
		return
	}
	j.settled[i] = true
	change(&j.results[i])
	r := j.results[i]
	j.mu.Unlock()
	e.noteMember(j.ctx, MemberEvent{Group: j.group.name.raw, Server: j.group.server.Vendor, MemberResult: r})
}

// refuse settles the members that go no further than their name.
func (j *job) refuse(e *Engine) {
	for i, m := range j.members {
		if m.err != nil {
			j.settle(e, i, func(r *MemberResult) {
				r.Outcome, r.Changed, r.Err, r.Answer = Failed, ChangedNo, m.err, m.err.Answer
			})
		}
	}
}

// claim reports whether the member may be sent. After its caller has been told
// that it was not, it must not be, whoever else is in the batch.
func (j *job) claim(i int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.left && !j.sent[i] {
		return false
	}
	j.sent[i] = true
	return true
}

func (j *job) noteSent(i int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.results[i].Attempts++
}

// halt records why the job ended early; the first reason counts.
func (j *job) halt(err *Error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stop == nil {
		j.stop = err.about(j.group.given, "")
	}
}

// outcome returns the job's results as they stand: what is not settled was
// sent and has no answer yet, or was not sent. The error is non-nil when
// nothing came of the job as a whole.
func (j *job) outcome(left *Error) ([]MemberResult, *Error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = left != nil
	rs := make([]MemberResult, len(j.results))
	copy(rs, j.results)
	stop, pending := j.stop, slices.Contains(j.settled, false)
	if stop == nil && (pending || len(rs) == 0) {
		stop = left
	}
	fruitless := stop != nil
	for i := range rs {
		r := &rs[i]
		if !j.settled[i] && left != nil {
			r.Err = left.about(j.group.given, r.Member)
			if j.sent[i] {
				r.Outcome = Unknown
			} else {
				r.Outcome, r.Changed = Skipped, ChangedNo
			}
		}
		if r.Outcome.Done() || r.Outcome == Unknown {
			fruitless = false
		}
	}
	if fruitless {
		return nil, stop
	}
	return rs, nil
}

// batch is the jobs that are sent together. It ends when all their callers
// have left.
type batch struct {
	jobs   []*job
	ctx    context.Context
	cancel context.CancelCauseFunc
	stay   int // guarded by Engine.mu; callers that wait
}

// queue is a group's. It exists while a worker serves it.
type queue struct {
	waiting []*job
}

var errQueueFull = errors.New("too many calls wait for this group")

// submit runs the job in its group's turn and returns when its results are
// final, or when its context ends.
func (e *Engine) submit(j *job) ([]MemberResult, error) {
	j.refuse(e)
	if j.alone == nil && !slices.ContainsFunc(j.members, func(m *member) bool { return m.err == nil }) {
		rs, _ := j.outcome(nil)
		return rs, nil // nothing to send
	}
	if err := e.enqueue(j); err != nil {
		return nil, err
	}
	var left *Error
	select {
	case <-j.done:
	case <-j.ctx.Done():
		left = e.leave(j)
	}
	rs, err := j.outcome(left)
	if err != nil {
		return nil, err
	}
	return rs, nil
}

func (e *Engine) enqueue(j *job) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return e.toError(j.op, errClosed).about(j.group.given, "")
	}
	key := j.group.name.key
	q := e.queues[key]
	if q == nil {
		q = &queue{}
		e.queues[key] = q
		e.wait.Add(1)
		go e.serve(key, q)
	}
	if len(q.waiting) >= e.cfg.MaxQueue {
		return e.toError(j.op, errQueueFull).about(j.group.given, "")
	}
	q.waiting = append(q.waiting, j)
	e.queued++
	return nil
}

// leave takes the caller out. A job that waits is withdrawn. One under way
// ends at once when it was the last of its batch, and then its results are
// waited for; otherwise it goes on for the others' sake.
func (e *Engine) leave(j *job) *Error {
	err := e.toError(j.op, context.Cause(j.ctx)).about(j.group.given, "")
	e.mu.Lock()
	b := j.batch
	last := false
	if b != nil {
		b.stay--
		last = b.stay == 0
	} else if q := e.queues[j.group.name.key]; q != nil {
		waiting := len(q.waiting)
		q.waiting = slices.DeleteFunc(q.waiting, func(o *job) bool { return o == j })
		e.queued -= waiting - len(q.waiting)
	}
	e.mu.Unlock()
	if last {
		b.cancel(context.Cause(j.ctx))
		<-j.done
	}
	return err
}

// serve works a queue off and ends with it.
func (e *Engine) serve(key string, q *queue) {
	defer e.wait.Done()
	for {
		b := e.next(key, q)
		if b == nil {
			return
		}
		e.runBatch(b)
		b.cancel(nil)
		for _, j := range b.jobs {
			close(j.done)
		}
	}
}

// next takes the jobs that go together off the queue, nil when it is empty.
func (e *Engine) next(key string, q *queue) *batch {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := &batch{}
	actions := make(map[string]Action)
	taken := 0
	for _, j := range q.waiting {
		if j.ctx.Err() == nil {
			if len(b.jobs) > 0 && !fits(b, j, actions) {
				break
			}
			for _, m := range j.members {
				actions[m.name.key] = m.action
			}
			b.jobs = append(b.jobs, j)
		}
		taken++
	}
	clear(q.waiting[:taken])
	q.waiting = q.waiting[taken:]
	e.queued -= taken
	if len(b.jobs) == 0 {
		delete(e.queues, key)
		return nil
	}
	b.ctx, b.cancel = context.WithCancelCause(e.ctx)
	b.stay = len(b.jobs)
	for _, j := range b.jobs {
		j.batch = b
	}
	return b
}

// fits reports whether j can join the batch: both are plain, they fill one
// request at most, and no member is to come and to go.
func fits(b *batch, j *job, actions map[string]Action) bool {
	if b.jobs[0].alone != nil || j.alone != nil || len(actions)+len(j.members) > MaxChunkValues {
		return false
	}
	for _, m := range j.members {
		if a, ok := actions[m.name.key]; ok && a != m.action && m.err == nil {
			return false
		}
	}
	return true
}

// runBatch does what the jobs ask for.
func (e *Engine) runBatch(b *batch) {
	s := e.session(b.ctx)
	defer s.close()
	w := &writer{s: s, e: e, g: b.jobs[0].group, jobs: b.jobs}
	if alone := b.jobs[0].alone; alone != nil {
		alone(w, b.jobs[0])
	} else {
		w.change(merge(b.jobs))
	}
	w.finish()
}
