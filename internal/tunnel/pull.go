package tunnel

import "slices"

// pull is a session's request to be read and sent by whoever holds the link.
//
// With a buffer for each session that reads ahead, what was read waits in the
// queue for its turn, and has left the core's cache by the time it is
// encrypted. So sessions in bulk wait for their turn first. The one that writes
// reads a quantum from a session's socket, into a buffer that it uses again and
// again, encrypts it and hands it to the kernel, and turns to the next session.
// None of their goroutines wakes for that.
type pull struct {
	active bool // wanted, or under way
	max    int  // of this turn, in bytes
	n      int  // what the last turn found, in bytes
	err    error
}

// done ends the request.
func (p *pull) done(n int, err error) { p.active, p.n, p.err = false, n, err }

// pull has the session's local socket read and sent, until a turn finds less
// than it may take. It returns how much the last turn found and how much it
// might have taken, and the error of reading, without anything to read not
// being one. It holds the link itself while nobody else does.
//
// The session's local side must be a plain socket.
func (w *sender) pull(s *Session) (n, want int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &s.pull
	for s.queued && !s.ended && w.dead == nil {
		s.room.Wait() // bytes read before must go first
	}
	if s.ended || w.dead != nil {
		return 0, 0, errSessionOver
	}
	p.active = true
	w.pulls = append(w.pulls, s)
	if !w.busy {
		w.busy = true
		s.writing++
		for p.active && !s.ended && w.sendLocked() {
		}
		s.writing--
		w.releaseLocked()
	}
	for p.active {
		if s.ended && w.turn != s {
			w.pulls = slices.DeleteFunc(w.pulls, func(o *Session) bool { return o == s })
			p.done(0, errSessionOver)
			break
		}
		s.room.Wait()
	}
	return p.n, p.max, p.err
}

// nextTurnLocked puts the next session that wants to be read into the batch.
func (w *sender) nextTurnLocked() {
	for w.turn == nil && len(w.pulls) > 0 {
		s := w.pulls[0]
		rest := copy(w.pulls, w.pulls[1:])
		w.pulls[rest] = nil
		w.pulls = w.pulls[:rest]
		if s.ended {
			s.pull.done(0, errSessionOver)
			s.room.Broadcast()
			continue
		}
		w.turn = s
		s.writing++
		s.pull.max = min(quanta[len(quanta)-1], int(s.credit))
	}
}

// writeTurn reads and writes what the session whose turn it is may send. The
// caller holds busy and not mu.
func (w *sender) writeTurn() (err error) {
	s := w.turn
	p := &s.pull
	f := getFrames(p.max)
	p.n, p.err = s.raw.readNow(f, p.max)
	if p.n > 0 {
		s.seal(f, p.n)
		select {
		case <-s.done: // by what seal counted, say: nothing of it may pass
			p.n = 0
		default:
			_, err = w.c.Write(f.bytes())
		}
	}
	f.free()
	return err
}

// endTurnLocked accounts for the turn of the batch that was sent, if it had
// one, and lets the session queue again if there may be more to read.
func (w *sender) endTurnLocked() {
	s := w.turn
	if s == nil {
		return
	}
	w.turn = nil
	s.writing--
	p := &s.pull
	s.credit -= int64(p.n)
	w.written += uint64(p.n)
	if p.err == nil && p.n == p.max && s.credit > 0 && !s.ended && w.dead == nil {
		w.pulls = append(w.pulls, s)
		return
	}
	p.done(p.n, p.err)
	s.room.Broadcast()
}
