package ldapgroup

import (
	"context"
	"time"
)

// Observer is told what the engine does, for metrics and logs. Nil funcs are
// skipped. They are called on the engine's goroutines, concurrently, and must
// return at once.
type Observer struct {
	// Modify is called after each modify request.
	Modify func(ModifyEvent)
	// Member is called once for each member of a call that was not a dry run,
	// when its outcome is settled, which may be after the caller left. ctx is
	// the caller's. A call refused before its members were looked at has none. No-ops are the events
	// whose Outcome is AlreadyMember or NotMember: log them at info with the
	// code, its name, the matched DN and the attempts.
	Member func(ctx context.Context, e MemberEvent)
	// Conn is called when a connection is opened, fails to, or is closed.
	Conn func(ConnEvent)
}

// ModifyEvent is one modify request and its answer.
type ModifyEvent struct {
	Directory string
	Group     string // as the directory has it
	Action    Action
	Values    int
	Calls     int // how many Change calls it serves
	Attempt   int // counted from 1 for the same values
	Duration  time.Duration
	// Code is the answer's; 0 is success. Without an answer Lost is set.
	Code uint16
	Lost bool
	Err  *Error // nil on success
}

// MemberEvent is one member's outcome.
type MemberEvent struct {
	Directory string
	Group     string // as the directory has it
	Server    Vendor
	MemberResult
}

// ConnEvent is one change of the pool.
type ConnEvent struct {
	Directory string
	// What is "open", "open_failed", "closed_idle", "closed_unhealthy",
	// "closed_error" (also after a cancelled operation) or "closed_shutdown".
	What string
	// Open is the number of connections after it.
	Open int
	// Duration is how long opening took, or how long it was open.
	Duration time.Duration
	Err      *Error
}

func (e *Engine) noteConn(ev ConnEvent) {
	if e.cfg.Observer.Conn != nil {
		ev.Directory = e.cfg.Name
		e.cfg.Observer.Conn(ev)
	}
}

func (e *Engine) noteModify(ev ModifyEvent) {
	if e.cfg.Observer.Modify != nil {
		ev.Directory = e.cfg.Name
		e.cfg.Observer.Modify(ev)
	}
}

func (e *Engine) noteMember(ctx context.Context, ev MemberEvent) {
	if e.cfg.Observer.Member != nil {
		ev.Directory = e.cfg.Name
		e.cfg.Observer.Member(ctx, ev)
	}
}
