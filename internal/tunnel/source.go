package tunnel

import (
	"errors"
	"io"
	"os"
	"runtime"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// What a session tries to read at once: more while reads fill the buffer, less
// when they leave most of it empty.
var quanta = [...]int{smallQuantum - wire.HeaderLen, wire.MaxData, maxQuantum - maxParts*wire.HeaderLen}

// source reads the local side and sends it until its end, an error, or the end
// of the session. It reports whether the local side ended in order.
func (s *Session) source(ep *Endpoint) (eof bool) {
	if !s.sendPrefix(ep) {
		return false
	}
	if s.raw == nil || !s.raw.readable() {
		s.link.out.flush(s) // OPEN or OPENED has no bytes to leave with
	}
	level, n := 0, 0
	for {
		credit := s.link.out.awaitCredit(s)
		if credit == 0 {
			return false
		}
		var err error
		want := min(quanta[level], credit)
		if level == len(quanta)-1 && s.raw != nil {
			if n == 0 {
				err = s.raw.awaitReadable()
			}
			if err == nil {
				n, want, err = s.link.out.pull(s)
			}
		} else {
			var f *frames
			if f, n, err = s.readLocal(ep, want); n > 0 && !s.send(f, n) {
				return false
			}
		}
		switch {
		case errors.Is(err, errSessionOver):
			return false
		case err == nil:
		case errors.Is(err, io.EOF):
			return s.sendFin()
		case errors.Is(err, os.ErrDeadlineExceeded):
			<-s.done // finish set the deadline
			return false
		default:
			s.finishWithRst(Result{Reason: wire.ReasonRst, Message: "read: " + err.Error()})
			return false
		}
		switch {
		case n == quanta[level] && level < len(quanta)-1:
			level++
		case n == 0: // a pull that came too early
		case level > 0 && n < want && n < quanta[level-1]/2:
			level--
		}
	}
}

// readLocal reads up to want bytes into a buffer of frames. f is nil unless
// n > 0.
func (s *Session) readLocal(ep *Endpoint, want int) (f *frames, n int, err error) {
	if s.raw != nil {
		return s.raw.read(want)
	}
	f = getFrames(min(want, wire.MaxData))
	n, err = ep.Conn.Read(f.slots(nil, min(want, wire.MaxData))[0])
	if n == 0 {
		f.free()
		f = nil
	}
	return f, n, err
}

// seal makes frames of n bytes that were read into f, and accounts for them.
func (s *Session) seal(f *frames, n int) {
	f.seal(s.cid, n)
	if s.ep.Watch != nil {
		for _, p := range f.slots(nil, n) {
			s.ep.Watch.FromLocal(p)
		}
	}
	for rest := n; rest > 0; rest -= wire.MaxData {
		s.obs().FrameSent(min(rest, wire.MaxData))
	}
	s.sent.Add(int64(n))
	s.touch()
}

// send passes n bytes in f to the link.
func (s *Session) send(f *frames, n int) bool {
	f.s = s
	s.seal(f, n)
	if err := s.link.out.data(f); err != nil {
		return false
	}
	if n > coalesceBytes {
		// A bulk transfer need never wait on its own; with the cores full it
		// would run until the scheduler takes it off, milliseconds later.
		runtime.Gosched()
	}
	return true
}

// sendPrefix sends what was read from the local side before the session began.
func (s *Session) sendPrefix(ep *Endpoint) bool {
	for p := ep.Prefix; len(p) > 0; {
		credit := s.link.out.awaitCredit(s)
		if credit == 0 {
			return false
		}
		f := getFrames(wire.MaxData)
		n := copy(f.slots(nil, min(credit, wire.MaxData))[0], p)
		if !s.send(f, n) {
			return false
		}
		p = p[n:]
	}
	ep.Prefix = nil
	return true
}

// sendFin tells the peer that the local side will send no more.
func (s *Session) sendFin() bool {
	s.link.out.awaitFlushed(s)
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return false
	}
	s.finSent = true
	both := s.finDone
	s.mu.Unlock()
	s.obs().FinSent()
	_ = s.link.out.frameOf(s, atOnce, func(b []byte) []byte {
		return wire.AppendHeader(b, wire.Header{Type: wire.TypeFin, CID: s.cid})
	}) // a dead link has ended the session already
	if both {
		s.finish(Result{Reason: wire.ReasonFin})
	}
	return true
}

// awaitEnd waits, after the local side's FIN, for the end of the session, and
// notices when the local side resets meanwhile.
func (s *Session) awaitEnd() {
	if s.raw == nil {
		<-s.done
		return
	}
	if err := s.raw.awaitHangup(); err == nil {
		s.finishWithRst(Result{Reason: wire.ReasonRst, Message: "reset after FIN"})
	}
	<-s.done
}
