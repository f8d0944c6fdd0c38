package ldapgroup

// outcome is what settle makes of an op.
type outcome struct {
	is      Outcome
	changed Changed
	note    string
	answer  *Answer
	err     *Error
}

// settle makes an op's outcome final for every member that asked for it. Of
// several calls the first one did it and the others found it done.
func (w *writer) settle(o *op, out outcome) {
	if o.settled {
		return
	}
	o.settled = true
	first := o.refs[0].job
	for _, r := range o.refs {
		r.job.settle(w.e, r.index, func(m *MemberResult) {
			m.Outcome, m.Changed, m.Note, m.Answer, m.Attempts = out.is, out.changed, out.note, out.answer, o.attempts
			if out.err != nil {
				m.Err = out.err.about(w.g.given, m.Member)
			}
			if r.job != first && out.changed == ChangedYes {
				m.Outcome, m.Changed = noOp(o.action), ChangedNo
			}
		})
	}
}

func noOp(a Action) Outcome {
	if a == Add {
		return AlreadyMember
	}
	return NotMember
}

func (w *writer) success(ops []*op) {
	is := Added
	if ops[0].action == Remove {
		is = Removed
	}
	for _, o := range ops {
		w.settle(o, outcome{is: is, changed: ChangedYes})
	}
}

// noop settles an op whose member was in the wanted state.
func (w *writer) noop(o *op, a *Answer, note string) {
	changed := ChangedNo
	if o.lost {
		changed = ChangedUnknown
	}
	w.settle(o, outcome{is: noOp(o.action), changed: changed, answer: a, note: note})
}

// unreachable ends the batch for want of a connection. Values that were sent
// before are unknown, others were not attempted.
func (w *writer) unreachable(ops []*op, err *Error) {
	var sent, not []*op
	for _, o := range ops {
		if o.lost {
			sent = append(sent, o)
		} else {
			not = append(not, o)
		}
	}
	w.unknown(sent, err)
	w.halt(not, err)
}

func (w *writer) unknown(ops []*op, err *Error) {
	if len(ops) == 0 {
		return
	}
	w.stopWith(err)
	for _, o := range ops {
		w.settle(o, outcome{is: Unknown, err: err})
	}
}

// skip settles ops as not attempted when the writer has stopped.
func (w *writer) skip(ops []*op) bool {
	if w.stop == nil && w.s.ctx.Err() != nil {
		w.stopWith(w.s.fail(ops[0].action.String(), w.s.ctx.Err()))
	}
	if w.stop == nil {
		return false
	}
	for _, o := range ops {
		w.settle(o, outcome{is: Skipped, changed: ChangedNo, err: w.stop})
	}
	return true
}

// stopWith ends the batch: nothing more is sent.
func (w *writer) stopWith(err *Error) {
	if w.stop != nil {
		return
	}
	w.stop = err
	for _, j := range w.jobs {
		j.halt(err)
	}
}

// halt stops because of an answer that would be the same for every value.
func (w *writer) halt(ops []*op, err *Error) {
	if len(ops) == 0 {
		return
	}
	w.stopWith(err)
	for _, o := range ops {
		w.settle(o, outcome{is: Failed, changed: ChangedNo, answer: err.Answer, err: err})
	}
}

// finish settles what nobody got to.
func (w *writer) finish() {
	stop := w.stop
	if stop == nil {
		stop = &Error{Op: "change", Directory: w.e.cfg.Name, Class: ClassDirectory}
	}
	for _, j := range w.jobs {
		for i := range j.members {
			j.settle(w.e, i, func(r *MemberResult) {
				r.Outcome, r.Changed, r.Err = Skipped, ChangedNo, stop.about(j.group.given, r.Member)
			})
		}
	}
}
