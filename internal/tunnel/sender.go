package tunnel

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Bounds on what waits in front of a link, in bytes.
const (
	// batchBytes is how much session data the writer sends before it looks
	// again for control frames and small frames: the most that an interactive
	// session waits behind bulk in this process.
	batchBytes = 128 << 10

	// coalesceBytes is the size up to which a buffer is copied beside others
	// into one write (one TLS record) instead of written by itself.
	coalesceBytes = 2 << 10

	// maxQueued stops sessions from reading more from their local sockets.
	maxQueued = 4 << 20

	// maxControl ends a link whose peer makes us owe it more than this many
	// bytes of answers without reading them. No new session begins at a
	// quarter of it, so that our own OPENs and RSTs cannot get there.
	maxControl = 4 << 20
)

var errControlFlood = errors.New("peer does not read the answers it asks for")

// sender owns the writing side of a link.
//
// A session that finds the carrier free writes its own frames in its own
// goroutine: no hand-over, no wake-up. While somebody writes, others append to
// the queue and go on; the link's writer goroutine then sends all of it, many
// sessions in one write. Each session has at most one buffer in the queue, and
// the queue is first in, first out, which is round robin. Buffers of a few
// bytes go before those of many, so that a request never waits for a bulk
// transfer's turn; within one session the order cannot change, because it has
// only the one.
//
// Sessions in bulk do not even read: whoever writes reads their sockets for
// them, in turn, each time just before it writes what it found (see pull).
type sender struct {
	c    Carrier
	fail func(error)   // ends the link; called without mu
	wake chan struct{} // to the writer goroutine; capacity 1
	ctl  []byte        // owned by whoever holds busy: control bytes being written
	join []byte        // owned by whoever holds busy: small buffers side by side
	out  []*frames     // owned by whoever holds busy: session data being written

	mu      sync.Mutex // guards all below, and Session.credit, .queued, .ended, .writing, .room
	busy    bool       // somebody is writing to the carrier
	control []byte     // frames that go before all session data
	small   []*frames  // buffers of at most coalesceBytes
	large   []*frames
	pulls   []*Session            // wait for their turn to be read and sent
	turn    *Session              // in the batch of whoever holds busy
	queued  int                   // bytes in small and large
	poked   bool                  // the carrier wants a flush
	waiting []*Session            // for queued to fall below maxQueued, first come first served
	stalled map[*Session]struct{} // sessions that wait for credit
	dead    error                 // why nothing can be written any more
	idle    sync.Cond             // busy became false, or dead was set
	written uint64                // bytes handed to the carrier; tells an idle link from a busy one
}

func newSender(c Carrier) *sender {
	w := &sender{c: c, wake: make(chan struct{}, 1)}
	w.idle.L = &w.mu
	return w
}

// run is the writer goroutine: it sends what others queued, until stop. Once
// nothing can be written any more, whoever found out, it ends the link.
func (w *sender) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-w.wake:
		}
		runtime.Gosched() // let others add to the batch
		w.mu.Lock()
		for w.sendLocked() {
		}
		w.busy = false
		w.idle.Broadcast()
		dead := w.dead
		w.mu.Unlock()
		if dead != nil {
			w.fail(dead)
			return
		}
	}
}

// sendLocked sends the next batch and reports whether there was one. The
// caller holds busy, and mu, which it does without meanwhile.
func (w *sender) sendLocked() bool {
	if w.dead != nil || !w.takeLocked() {
		return false
	}
	pulled := w.turn != nil
	w.mu.Unlock()
	err := w.write()
	if pulled {
		runtime.Gosched() // as source does after bulk
	}
	w.mu.Lock()
	w.endTurnLocked()
	if err != nil {
		w.dieLocked(err)
	}
	return true
}

// takeLocked moves the next batch from the queue to the fields that write
// owns. It reports whether there is one.
func (w *sender) takeLocked() bool {
	w.ctl, w.control = w.control, w.ctl[:0]
	w.out = w.out[:0]
	poked := w.poked
	w.poked = false
	n := 0
	for _, f := range w.small {
		n += w.takeOneLocked(f)
	}
	clear(w.small)
	w.small = w.small[:0]
	i := 0
	for ; i < len(w.large) && n < batchBytes; i++ {
		n += w.takeOneLocked(w.large[i])
	}
	if i > 0 {
		rest := copy(w.large, w.large[i:])
		clear(w.large[rest:])
		w.large = w.large[:rest]
	}
	if n < batchBytes {
		w.nextTurnLocked()
	}
	// As many as there is room for. With the queue empty all of them: some may
	// have nothing to send, and nobody would come back for the rest.
	for woken := 1; len(w.waiting) > 0 && (w.queued == 0 || w.queued+woken*maxQuantum <= maxQueued); woken++ {
		s := w.waiting[0]
		rest := copy(w.waiting, w.waiting[1:])
		w.waiting[rest] = nil
		w.waiting = w.waiting[:rest]
		s.waiting = false
		s.room.Signal()
	}
	return len(w.ctl) > 0 || len(w.out) > 0 || w.turn != nil || poked
}

// takeOneLocked moves f to the batch, or drops it when its session is over.
func (w *sender) takeOneLocked(f *frames) int {
	w.queued -= f.n
	f.s.queued = false
	f.s.room.Signal()
	if f.s.ended {
		f.free()
		return 0
	}
	w.out = append(w.out, f)
	return f.n
}

// write sends the batch. The caller holds busy and not mu.
func (w *sender) write() error {
	w.join = append(w.join[:0], w.ctl...)
	var err error
	for _, f := range w.out {
		if err == nil && f.n <= coalesceBytes && len(w.join)+f.n <= wire.MaxFrame {
			w.join = append(w.join, f.bytes()...)
			f.free()
			continue
		}
		if err == nil && len(w.join) > 0 {
			_, err = w.c.Write(w.join)
			w.join = w.join[:0]
		}
		if err == nil && f.n <= coalesceBytes {
			w.join = append(w.join, f.bytes()...)
		} else if err == nil {
			_, err = w.c.Write(f.bytes())
		}
		f.free()
	}
	if err == nil && len(w.join) > 0 {
		_, err = w.c.Write(w.join)
	}
	if err == nil && w.turn != nil {
		err = w.writeTurn()
	}
	if err == nil {
		err = w.c.Flush()
	}
	if cap(w.ctl) > 64<<10 {
		w.ctl = nil // after a burst; an idle link holds no large buffers
	}
	return err
}

// combineLocked makes the caller the one who writes: it sends one batch of
// what is queued, its own frames among it, and leaves the rest to the writer
// goroutine. The caller has found busy false. mu is held on entry and on
// return, and not between.
//
// With gather it first lets every other goroutine that could run add what it
// has: many small frames then leave in one write instead of one each. On an
// idle machine that costs some 100 ns.
//
// s, when not nil, is the session whose goroutine this is: while it writes it
// cannot see that its session has ended.
func (w *sender) combineLocked(s *Session, gather bool) error {
	w.busy = true
	if s != nil {
		s.writing++
		defer func() { s.writing-- }()
	}
	if gather {
		w.mu.Unlock()
		runtime.Gosched()
		w.mu.Lock()
	}
	w.sendLocked()
	w.releaseLocked()
	return w.dead
}

// hold keeps everybody from writing; release ends it.
func (w *sender) hold() {
	w.mu.Lock()
	w.busy = true
	w.mu.Unlock()
}

func (w *sender) release() {
	w.mu.Lock()
	w.releaseLocked()
	w.mu.Unlock()
}

// releaseLocked ends the caller's turn, which others may have added to.
func (w *sender) releaseLocked() {
	if w.pendingLocked() && w.dead == nil {
		w.kick() // busy stays set: it is the writer's now
		return
	}
	w.busy = false
	w.idle.Broadcast()
}

func (w *sender) pendingLocked() bool {
	return len(w.control)+len(w.small)+len(w.large)+len(w.pulls) > 0 || w.poked
}

// poke makes the writer flush the carrier, which has something to say of its
// own. The link's reader may call it.
func (w *sender) poke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.poked = true
	if !w.busy && w.dead == nil {
		w.busy = true
		w.kick()
	}
}

// congested reports whether so many control frames wait that new sessions
// would only add to them.
func (w *sender) congested() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.control) > maxControl/4
}

func (w *sender) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// data sends one buffer of a session, in this goroutine if the carrier is
// free. It returns when the buffer is written or queued; it waits only while
// the session's previous buffer is still queued. It takes f over and spends
// the session's credit.
func (w *sender) data(f *frames) error {
	s := f.s
	w.mu.Lock()
	defer w.mu.Unlock()
	for !s.ended && w.dead == nil {
		if !s.queued && (w.queued == 0 || w.queued+f.n <= maxQueued) {
			break
		}
		if !s.queued {
			w.awaitRoomLocked(s)
		}
		s.room.Wait()
	}
	switch {
	case w.dead != nil:
		f.free()
		return w.dead
	case s.ended:
		f.free()
		return errSessionOver
	}
	w.written += uint64(f.n)
	s.credit -= int64(f.p)
	s.queued = true
	w.queued += f.n
	small := f.n <= coalesceBytes
	if small {
		w.small = append(w.small, f)
	} else {
		w.large = append(w.large, f)
	}
	if w.busy {
		return nil
	}
	return w.combineLocked(s, small)
}

// awaitFlushed waits until the session's queued buffer has been taken, so that
// a control frame sent next cannot overtake it.
func (w *sender) awaitFlushed(s *Session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s.queued && !s.ended && w.dead == nil {
		s.room.Wait()
	}
}

// urgency tells how a control frame leaves.
type urgency int

const (
	// lazily: with what is sent next; the caller sees to it that something is,
	// or calls flush.
	lazily urgency = iota
	// soon: by the writer goroutine. The link's reader asks for this: it must
	// not write itself, because a write can block.
	soon
	// atOnce: in the caller's goroutine, if the carrier is free.
	atOnce
)

// frame queues control bytes appended by add.
func (w *sender) frame(u urgency, add func([]byte) []byte) error { return w.frameOf(nil, u, add) }

// frameOf does it in the goroutine of session s, if s is not nil.
func (w *sender) frameOf(s *Session, u urgency, add func([]byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead != nil {
		return w.dead
	}
	w.control = add(w.control)
	if len(w.control) > maxControl {
		w.dieLocked(errControlFlood)
		go w.fail(errControlFlood) // the writer may be stuck, and we may be the reader
		return errControlFlood
	}
	switch {
	case w.busy || u == lazily:
	case u == atOnce:
		return w.combineLocked(s, true)
	default:
		w.busy = true
		w.kick()
	}
	return nil
}

// flush sends what was queued lazily, in the goroutine of session s.
func (w *sender) flush(s *Session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.busy && w.dead == nil && w.pendingLocked() {
		_ = w.combineLocked(s, true) // the link ends by it
	}
}

// die makes every further send fail with err.
func (w *sender) die(err error) {
	w.mu.Lock()
	w.dieLocked(err)
	w.mu.Unlock()
}

func (w *sender) dieLocked(err error) {
	if w.dead != nil {
		return
	}
	w.dead = err
	w.idle.Broadcast()
	w.kick()
	for _, q := range [][]*frames{w.small, w.large} {
		for _, f := range q {
			f.s.queued = false
			f.s.room.Broadcast()
			f.free()
		}
	}
	for _, s := range w.waiting {
		s.waiting = false
		s.room.Broadcast()
	}
	for _, s := range w.pulls {
		s.pull.done(0, errSessionOver)
		s.room.Broadcast()
	}
	w.small, w.large, w.pulls, w.waiting, w.control, w.queued = nil, nil, nil, nil, nil, 0
}

// credit adds n to what the session may send.
func (w *sender) credit(s *Session, n uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.credit += int64(n)
	s.room.Signal()
	return s.credit <= wire.MaxWindow
}

// awaitCredit waits until the session may send at least one byte and the link
// has room for it. It returns how many bytes, or 0 when session or link are
// over.
func (w *sender) awaitCredit(s *Session) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer delete(w.stalled, s)
	for {
		switch {
		case s.ended || w.dead != nil:
			return 0
		case s.credit <= 0:
			if w.stalled == nil {
				w.stalled = make(map[*Session]struct{})
			}
			w.stalled[s] = struct{}{}
		case w.queued >= maxQueued/4 && s.queued:
			// Under pressure no second buffer beside the one that waits.
		case w.queued >= maxQueued:
			w.awaitRoomLocked(s)
		default:
			return int(s.credit)
		}
		s.room.Wait()
	}
}

// end makes the session's sending calls return, except one that is writing to
// the carrier, which nothing can call back: it reports whether there is one.
func (w *sender) end(s *Session) (writing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.ended = true
	s.room.Broadcast()
	return s.writing > 0
}

// activity returns how many bytes of session data were sent so far.
func (w *sender) activity() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written
}

// awaitIdle waits until nothing is queued and nobody writes, until the link is
// over, or for d. It reports whether all was handed to the carrier.
func (w *sender) awaitIdle(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := time.Now().Add(d)
	t := time.AfterFunc(d, func() {
		w.mu.Lock()
		w.idle.Broadcast()
		w.mu.Unlock()
	})
	defer t.Stop()
	for w.dead == nil && (w.busy || len(w.control) > 0) && time.Now().Before(deadline) {
		w.idle.Wait()
	}
	return !w.busy
}

// awaitRoomLocked has the session woken when the queue has room.
func (w *sender) awaitRoomLocked(s *Session) {
	if !s.waiting {
		s.waiting = true
		w.waiting = append(w.waiting, s)
	}
}

// stalledSessions returns the sessions that wait for credit; nil for none.
func (w *sender) stalledSessions() []*Session {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*Session
	for s := range w.stalled {
		out = append(out, s)
	}
	return out
}
