package hub

import (
	"container/heap"
	"math/rand/v2"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// leases wakes the hub when something about a live session is due: its lease
// runs out, it is old enough, or policy is to be asked once more after an error.
// It is one heap and one timer for the whole hub, because 18 000 sessions with a
// timer each would cost more than all that they do. Guarded by Hub.mu.
type leases struct {
	born  time.Time   // what due times count from
	heap  []*session  // by permit.due
	timer *time.Timer // nil until something was due
	armed time.Duration
}

// permit is what a session lives by. Times count from leases.born; 0 is never.
type permit struct {
	lease time.Duration // when it is to be judged again
	life  time.Duration // when max_duration ends it
	grace time.Duration // when it ends unless policy can be asked before

	due   time.Duration // when leases wakes for it; 0: it is not in the heap
	index int32         // in the heap

	queued bool
	cause  cause
}

// cause is why a session is judged again.
type cause uint8

const (
	causeNone   cause = iota
	causeLease        // its permit ran out
	causePolicy       // policy or configuration changed
)

const (
	// shortestLease keeps an engine that gives permits for no time from
	// spinning the hub.
	shortestLease = 100 * time.Millisecond
	// maxJitter bounds how much before its end a lease is renewed: up to a
	// tenth of it, so that sessions that came together do not stay together.
	maxJitter = 30 * time.Second
	// provisional is the longest lease of a permit that was given because policy
	// could not be asked (on_error allow).
	provisional = DefaultGrace
)

func (l *leases) now() time.Duration { return max(1, time.Since(l.born)) }

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (l *leases) Len() int           { return len(l.heap) }
func (l *leases) Less(i, j int) bool { return l.heap[i].permit.due < l.heap[j].permit.due }
func (l *leases) Swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.heap[i].permit.index, l.heap[j].permit.index = int32(i), int32(j)
}

// Push implements heap.Interface.
func (l *leases) Push(x any) {
	s := x.(*session)
	s.permit.index = int32(len(l.heap))
	l.heap = append(l.heap, s)
}

// Pop implements heap.Interface.
func (l *leases) Pop() any {
	n := len(l.heap) - 1
	s := l.heap[n]
	l.heap[n] = nil
	l.heap = l.heap[:n]
	return s
}

// set makes the session due; 0 takes it out.
func (l *leases) set(s *session, due time.Duration) {
	was := s.permit.due
	s.permit.due = due
	switch {
	case due == 0 && was != 0:
		heap.Remove(l, int(s.permit.index))
	case due != 0 && was != 0:
		heap.Fix(l, int(s.permit.index))
	case due != 0:
		heap.Push(l, s)
	}
}

func (l *leases) remove(s *session) { l.set(s, 0) }

// next returns a session that is due, and takes it out; nil when none is.
func (l *leases) next(now time.Duration) *session {
	if len(l.heap) == 0 || l.heap[0].permit.due > now {
		return nil
	}
	s := l.heap[0]
	l.remove(s)
	return s
}

// armLocked sets the timer for the session that is due first.
func (h *Hub) armLocked() {
	l := &h.leases
	if h.closed || len(l.heap) == 0 || l.armed != 0 && l.armed <= l.heap[0].permit.due {
		return
	}
	l.armed = l.heap[0].permit.due
	wait := max(0, l.armed-l.now())
	if l.timer == nil {
		l.timer = time.AfterFunc(wait, h.wake)
		return
	}
	l.timer.Reset(wait)
}

// wakeAtOnce bounds how many due sessions are handled under one lock.
const wakeAtOnce = 1000

// wake handles what is due: it runs on the timer's goroutine and does not wait
// for policy.
func (h *Hub) wake() {
	for {
		over, more := h.due()
		for _, e := range over {
			e.session.end(wire.ReasonRevoked, e.message)
		}
		if !more {
			return
		}
	}
}

// ending is a session whose time is over.
type ending struct {
	session *session
	message string
}

func (h *Hub) due() (over []ending, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leases.armed = 0
	if h.closed {
		return nil, false
	}
	now := h.leases.now()
	for range wakeAtOnce {
		s := h.leases.next(now)
		if s == nil {
			h.armLocked()
			return over, false
		}
		if p := &s.permit; p.life != 0 && p.life <= now {
			over = append(over, ending{s, "max_duration " + s.decision.MaxDuration.String() + " is over"})
			continue
		}
		h.queueLocked(s, causeLease)
		h.leases.set(s, s.permit.life) // whatever policy is doing
	}
	return over, true
}

// grantLocked puts the session under the terms of a permit that policy was
// asked for at that time.
func (h *Hub) grantLocked(s *session, d authz.Decision, asked time.Time) {
	p := &s.permit
	p.lease, p.life, p.grace, p.cause = 0, 0, 0, causeNone
	if d.Err != nil && (d.Lease == 0 || d.Lease > provisional) {
		d.Lease = provisional
	}
	if d.Lease > 0 {
		lease := max(d.Lease, shortestLease)
		if lease >= time.Second {
			lease -= rand.N(min(lease/10, maxJitter))
		}
		p.lease = asked.Sub(h.leases.born) + lease
	}
	if d.MaxDuration > 0 {
		p.life = s.started.Sub(h.leases.born) + d.MaxDuration
	}
	s.decision = d
	s.meter.limit.Store(d.MaxBytes)
	h.scheduleLocked(s, p.lease)
}

// scheduleLocked wakes the hub for the session at the time given, or when its
// life is over, if that is sooner.
func (h *Hub) scheduleLocked(s *session, at time.Duration) {
	if life := s.permit.life; at == 0 || life != 0 && life < at {
		at = life
	}
	h.leases.set(s, at)
	h.armLocked()
}
