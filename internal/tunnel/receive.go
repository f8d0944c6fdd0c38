package tunnel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// minRTT is the least round trip that window growth assumes. Below it the
// window is not what limits a session.
const minRTT = 200 * time.Microsecond

// sockets returns what the endpoint offers beyond net.Conn.
func sockets(ep *Endpoint) (raw, below *rawSocket) {
	if t, ok := ep.Conn.(*net.TCPConn); ok {
		return newRawSocket(t), nil
	}
	if ep.TCP != nil {
		below = newRawSocket(ep.TCP)
	}
	return nil, below
}

// maxParts is how many frames deliver takes at once.
const maxParts = 8

// deliver takes the payloads of at most maxParts frames from the link's reader.
// They are valid only during the call, and so is parts, which it changes.
// arrived is when they were read from the link. It never blocks.
func (s *Session) deliver(parts [][]byte, arrived time.Time) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return
	}
	if s.finGot {
		s.mu.Unlock()
		s.Reset(wire.ReasonRst, "peer sent data after FIN")
		return
	}
	if s.avail -= int64(size); s.avail < 0 {
		over := -s.avail
		s.mu.Unlock()
		s.Reset(wire.ReasonOverflow, fmt.Sprintf("%d bytes beyond the credit", over))
		return
	}
	s.touch()
	var grant uint32
	if s.ep != nil && s.raw != nil && !s.draining {
		n, err := s.raw.writeMany(parts)
		s.obs().WriteTime(time.Since(arrived))
		if err != nil {
			s.mu.Unlock()
			s.localWriteFailed(err)
			return
		}
		size -= n
		for i, p := range parts {
			m := min(n, len(p))
			grant += s.wroteLocked(p[:m])
			parts[i] = p[m:]
			n -= m
		}
	}
	if size > 0 {
		for _, p := range parts {
			s.q.push(p)
		}
		s.backlog.Add(int64(size))
		if s.ep != nil && !s.draining {
			s.startDrainLocked()
		}
	}
	s.mu.Unlock()
	s.grant(grant)
}

// passAheadLocked writes what fits at once of the bytes that came before the
// session had its local side: mostly a request that came with OPEN, into a
// socket that is empty. A goroutine for it would be a waste.
func (s *Session) passAheadLocked() uint32 {
	if s.raw == nil || s.q.bytes == 0 {
		return 0
	}
	c := s.q.head
	n, err := s.raw.writeSome(c.b[c.r:c.w])
	if err != nil {
		return 0 // drain meets it again and ends the session
	}
	s.backlog.Add(-int64(n))
	grant := s.wroteLocked(c.b[c.r : c.r+n])
	s.q.consume(n)
	return grant
}

// fromFin handles the peer's FIN: the local side gets it after the last byte.
func (s *Session) fromFin() {
	s.obs().FinReceived()
	s.mu.Lock()
	switch {
	case s.over:
		s.mu.Unlock()
	case s.finGot:
		s.mu.Unlock()
		s.Reset(wire.ReasonRst, "peer sent a second FIN")
	default:
		s.finGot = true
		direct := s.ep != nil && s.raw != nil && !s.draining
		if s.ep != nil && !direct && !s.draining {
			s.startDrainLocked() // a TLS close_notify may block: not on the link's reader
		}
		s.mu.Unlock()
		if direct {
			s.passFin()
		}
	}
}

// startDrainLocked starts the goroutine that empties the queue.
func (s *Session) startDrainLocked() {
	s.draining = true
	s.drains.Add(1)
	go s.drain()
}

// drain writes the queue to the local side, waiting for it, until the queue is
// empty. Run waits for it.
func (s *Session) drain() {
	defer s.drains.Done()
	for {
		s.mu.Lock()
		if s.over {
			s.q.clear()
			s.backlog.Store(0)
			s.draining = false
			s.mu.Unlock()
			return
		}
		batch := s.q.popSome()
		if batch == nil {
			s.draining = false
			fin := s.finGot
			s.mu.Unlock()
			if fin {
				s.passFin()
			}
			return
		}
		s.mu.Unlock()
		err := s.drainBatch(batch)
		for batch != nil {
			c := batch
			batch = c.next
			chunks.Put(c)
		}
		if err != nil {
			s.localWriteFailed(err)
		}
	}
}

// drainBatch writes a few chunks of the queue.
func (s *Session) drainBatch(c *chunk) error {
	var parts [drainChunks][]byte
	for {
		for c != nil && c.r == c.w {
			c = c.next
		}
		if c == nil {
			return nil
		}
		bufs := parts[:0]
		for k := c; k != nil; k = k.next {
			bufs = append(bufs, k.b[k.r:k.w])
		}
		n, err := s.drainSome(bufs)
		if err != nil {
			return err
		}
		s.backlog.Add(-int64(n))
		var grant uint32
		s.mu.Lock()
		for k := c; n > 0; k = k.next {
			m := min(n, k.w-k.r)
			grant += s.wroteLocked(k.b[k.r : k.r+m])
			k.r += m
			n -= m
		}
		s.mu.Unlock()
		s.grant(grant)
	}
}

// drainSome writes as much of bufs as the local side takes, at least one byte.
func (s *Session) drainSome(bufs [][]byte) (int, error) {
	start := time.Now()
	if s.raw != nil {
		n, err := s.raw.writeMany(bufs)
		if err != nil || n > 0 {
			s.obs().WriteTime(time.Since(start))
			return n, err
		}
		if err := s.awaitDrained(s.raw, start); err != nil {
			return 0, err
		}
		return s.raw.writeMany(bufs)
	}
	if s.below != nil {
		if err := s.awaitDrained(s.below, start); err != nil {
			return 0, err
		}
		start = time.Now()
	}
	n, err := s.ep.Conn.Write(bufs[0])
	s.obs().WriteTime(time.Since(start))
	return n, err
}

// awaitDrained waits until the local socket takes bytes again. While it waits
// it tells the observer once per second, so that a client that has stopped
// reading for good is seen while it lasts.
func (s *Session) awaitDrained(r *rawSocket, start time.Time) error {
	waited := false
	for {
		err := r.awaitWritable(s.ep.socket(), time.Second)
		if waited = waited || err != nil || time.Since(start) > 50*time.Microsecond; waited {
			s.obs().DrainTime(time.Since(start))
		}
		// awaitWritable has cleared the deadline by which finish wakes us;
		// finish closes done before it sets that.
		select {
		case <-s.done:
			return errSessionOver
		default:
		}
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		start = time.Now()
	}
}

// wroteLocked accounts bytes that the local side took and returns the credit
// to grant, if it is time to.
func (s *Session) wroteLocked(p []byte) uint32 {
	n := int64(len(p))
	if n == 0 {
		return 0
	}
	if s.ep.Watch != nil {
		s.ep.Watch.ToLocal(p)
	}
	s.obs().Written(len(p))
	s.received.Add(n)
	if s.over {
		return 0 // what was reserved is given back already
	}
	s.unacked += n
	s.epochBytes += n
	if s.unacked < s.window/4 {
		return 0
	}
	grant := s.unacked + s.resizeLocked()
	s.unacked = 0
	s.avail += grant
	return uint32(grant)
}

// slowUse is how long a session may take for a quarter of its window before a
// grown window is taken back: it no longer needs it, others may.
const slowUse = time.Second

// resizeLocked returns by how much the window changes, and changes it.
func (s *Session) resizeLocked() int64 {
	now := time.Now()
	if s.grown > 0 && now.Sub(s.lastGrant) > slowUse+16*s.link.RTT() {
		back := min(s.grown, s.unacked) // credit that is out cannot be called back, only not renewed
		s.grown -= back
		s.window -= back
		s.link.cfg.Budget.shrink(back)
		s.lastGrant, s.epochStart, s.epochBytes = now, now, 0
		return -back
	}
	s.lastGrant = now
	return s.growLocked(now)
}

// growLocked doubles the window when half of it was used within two round
// trips, so that the window and not the local side limits the session. A local
// side that lets the queue grow gets no more. The budget has the last word.
func (s *Session) growLocked(now time.Time) int64 {
	if s.window >= s.maxWindow || s.epochBytes < s.window/2 {
		return 0
	}
	quick := now.Sub(s.epochStart) < 2*max(s.link.RTT(), minRTT)
	s.epochStart, s.epochBytes = now, 0
	if !quick || s.backlog.Load() > s.window/4 {
		return 0
	}
	more := min(s.window, s.maxWindow-s.window)
	if !s.link.cfg.Budget.grow(more, s.grown) {
		return 0
	}
	s.window += more
	s.grown += more
	return more
}

func (s *Session) grant(n uint32) {
	if n == 0 {
		return
	}
	_ = s.link.out.frame(soon, func(b []byte) []byte {
		return wire.AppendCredit(b, s.cid, n)
	}) // a dead link needs no credit
}

// passFin ends the direction towards the local side.
func (s *Session) passFin() {
	err := s.ep.CloseWrite()
	if err != nil && !errors.Is(err, errNoHalfClose) && !errors.Is(err, net.ErrClosed) && !isNotConnected(err) {
		s.localWriteFailed(err)
		return
	}
	// Without a half-close the local side learns it when the other direction
	// ends too and the connection is closed.
	s.mu.Lock()
	s.finDone = true
	both := s.finSent
	s.mu.Unlock()
	if both {
		s.finish(Result{Reason: wire.ReasonFin})
	}
}

// localWriteFailed ends the session because the local side is gone.
func (s *Session) localWriteFailed(err error) {
	s.finishWithRst(Result{Reason: wire.ReasonRst, Message: "write: " + err.Error(), WriteErr: err})
}

// finishWithRst ends the session and tells the peer.
func (s *Session) finishWithRst(r Result) {
	if !s.finish(r) {
		return
	}
	s.obs().RstSent()
	_ = s.link.out.frame(soon, func(b []byte) []byte {
		return wire.AppendReason(b, s.cid, r.Reason, r.Message)
	})
}
