package tunnel

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Sizes of a link's read buffer in bytes. An idle link has two TLS records,
// because crypto/tls returns at most one per call and the rest of a frame may
// be in the next. One in bulk has what deliver takes at once, from a
// pool.
const (
	readSize  = 2 * wire.MaxFrame
	burstSize = maxParts * wire.MaxFrame
)

var bursts = sync.Pool{New: func() any { return new([burstSize]byte) }}

// input is the reading side of a link, owned by the goroutine that serves it.
type input struct {
	c       Carrier
	ahead   aheader          // nil when the carrier is none
	base    []byte           // of readSize
	burst   *[burstSize]byte // from bursts, while bulk flows
	buf     []byte           // base or burst
	r, w    int              // unread bytes are buf[r:w]
	last    int              // bytes that the last fill found
	parts   [maxParts][]byte // of deliver
	arrived time.Time        // when the newest bytes were read

	backlog *backlog // nil when it is the kernel's alone
	small   int      // frames of interactive sessions among bulk since looked
	looked  time.Time
	mixed   time.Time // when there were last many of them
}

func newInput(c Carrier) *input {
	in := &input{c: c, base: make([]byte, readSize)}
	in.ahead, _ = c.(aheader)
	in.backlog = newBacklog(c)
	in.buf = in.base
	return in
}

// makeRoom moves what is unread to the front of the buffer that fits what
// flows.
func (in *input) makeRoom() {
	from := in.buf[in.r:in.w]
	spent := in.burst
	switch {
	case in.bulk() && in.burst == nil:
		in.burst = bursts.Get().(*[burstSize]byte)
		in.buf = in.burst[:]
	case !in.bulk() && in.burst != nil && len(from) < readSize:
		in.burst, in.buf = nil, in.base
	default:
		spent = nil
		if in.r == 0 {
			return
		}
	}
	in.r, in.w = 0, copy(in.buf, from)
	if spent != nil {
		bursts.Put(spent)
	}
}

// bulk reports whether what arrives is worth a large buffer, and a look for
// more of it, which costs a system call when there is none.
func (in *input) bulk() bool { return in.last >= wire.MaxFrame/2 }

// fill reads more bytes, making room first.
func (in *input) fill(l *Link) error {
	in.makeRoom()
	if in.last > coalesceBytes {
		// As source does after bulk, and no sooner: what was read should be
		// passed on while it is in this core's cache.
		runtime.Gosched()
	}
	n, err := in.c.Read(in.buf[in.w:])
	in.w += n
	in.last = n
	for in.bulk() && in.burst != nil && in.ahead != nil && in.w < len(in.buf) {
		more := in.ahead.readAhead(in.buf[in.w:])
		if more == 0 {
			break
		}
		in.w += more
		in.last += more
	}
	if in.last > 0 {
		in.arrived = time.Now()
		in.boundBacklog()
		l.recvd.Add(uint64(in.last))
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// How a link is found to carry small frames among bulk: so many of them in so
// long, and none for how long before it counts as bulk alone again.
const (
	mixedFrames = 8
	mixedLook   = 50 * time.Millisecond
	mixedHold   = 2 * time.Second
)

// noteSize counts small frames of sessions that have no others. The rest of what
// a bulk transfer had at hand is small now and then, too.
func (in *input) noteSize(s *Session, n int) {
	small := n <= coalesceBytes
	if small && s.small && in.burst != nil {
		in.small++
	}
	s.small = small
}

// boundBacklog keeps what waits in front of the link short while small frames
// would wait behind bulk there.
func (in *input) boundBacklog() {
	if in.backlog == nil || in.burst == nil || in.arrived.Sub(in.looked) < mixedLook {
		return
	}
	if in.small >= mixedFrames {
		in.mixed = in.arrived
	}
	in.looked, in.small = in.arrived, 0
	in.backlog.resize(in.arrived.Sub(in.mixed) < mixedHold)
}

// need makes at least n unread bytes available. n is at most readSize.
func (in *input) need(l *Link, n int) error {
	for in.w-in.r < n {
		if err := in.fill(l); err != nil {
			if errors.Is(err, io.EOF) && in.w > in.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// read takes frames from the carrier until the link ends.
func (l *Link) read() *LinkError {
	in := newInput(l.c)
	for {
		if err := in.need(l, wire.HeaderLen); err != nil {
			return lost(err)
		}
		h := wire.ParseHeader(in.buf[in.r:])
		if err := h.Check(); err != nil {
			return l.protocol(err)
		}
		in.r += wire.HeaderLen
		var err *LinkError
		if h.Type == wire.TypeData {
			err = l.readData(in, h)
		} else {
			err = l.readControl(in, h)
		}
		if err != nil {
			return err
		}
	}
}

// readData passes a DATA frame's payload on as it arrives: a frame need not be
// complete to be useful.
func (l *Link) readData(in *input, h wire.Header) *LinkError {
	s, known := l.session(h.CID)
	if !known {
		return l.protocol(fmt.Errorf("%v cid %d: %w", h.Type, h.CID, wire.ErrUnknownCID))
	}
	if s != nil {
		s.obs().FrameReceived(int(h.Length))
		in.noteSize(s, int(h.Length))
	}
	for left := int(h.Length); left > 0; {
		if in.r == in.w {
			if err := in.fill(l); err != nil {
				return lost(err)
			}
		}
		p := in.buf[in.r:min(in.w, in.r+left)]
		in.r += len(p)
		left -= len(p)
		if s == nil {
			continue
		}
		parts := append(in.parts[:0], p)
		for left == 0 && len(parts) < maxParts {
			if p = in.next(h.CID); p == nil {
				break
			}
			s.obs().FrameReceived(len(p))
			in.noteSize(s, len(p))
			parts = append(parts, p)
		}
		s.deliver(parts, in.arrived)
	}
	return nil
}

// next returns the payload of the next frame if that is one of DATA for cid
// and all there.
func (in *input) next(cid wire.CID) []byte {
	if in.w-in.r < wire.HeaderLen {
		return nil
	}
	h := wire.ParseHeader(in.buf[in.r:])
	start := in.r + wire.HeaderLen
	if h.Type != wire.TypeData || h.CID != cid || h.Check() != nil || int(h.Length) > in.w-start {
		return nil // whatever it is, read meets it next
	}
	in.r = start + int(h.Length)
	return in.buf[start:in.r]
}

// readControl reads a whole frame and acts on it.
func (l *Link) readControl(in *input, h wire.Header) *LinkError {
	if err := in.need(l, int(h.Length)); err != nil {
		return lost(err)
	}
	p := in.buf[in.r : in.r+int(h.Length)]
	in.r += int(h.Length)
	if !h.Type.Known() {
		return nil // optional, says Check
	}
	if h.CID == 0 {
		return l.linkFrame(h.Type, p)
	}
	if h.Type == wire.TypeOpen {
		return l.openFrame(h.CID, p)
	}
	s, known := l.session(h.CID)
	if !known {
		return l.protocol(fmt.Errorf("%v cid %d: %w", h.Type, h.CID, wire.ErrUnknownCID))
	}
	if s == nil {
		return nil // under way when the session ended
	}
	switch h.Type {
	case wire.TypeOpened:
		if !l.hub || !s.fromOpened() {
			return l.protocol(fmt.Errorf("%v: %w", h.Type, wire.ErrUnexpected))
		}
	case wire.TypeFin:
		s.fromFin()
	case wire.TypeRst:
		s.fromReset(wire.ParseReason(p))
	case wire.TypeCredit:
		if !l.out.credit(s, wire.ParseCredit(p)) {
			return l.protocol(fmt.Errorf("%v cid %d: more than %d bytes outstanding: %w", h.Type, h.CID, wire.MaxWindow, wire.ErrBadFrame))
		}
	}
	return nil
}

// linkFrame acts on a frame of cid 0.
func (l *Link) linkFrame(t wire.Type, p []byte) *LinkError {
	switch t {
	case wire.TypePing:
		token := wire.ParsePing(p)
		if err := l.out.frame(soon, func(b []byte) []byte { return wire.AppendPing(b, wire.TypePong, token) }); err != nil {
			return lost(err)
		}
	case wire.TypePong:
		l.pong(wire.ParsePing(p))
	case wire.TypeDrain:
		l.mu.Lock()
		l.draining = true
		l.mu.Unlock()
		if l.cfg.OnDrain != nil {
			l.cfg.OnDrain(string(p))
		}
	case wire.TypeClose:
		r, msg := wire.ParseReason(p)
		return &LinkError{Reason: r, Message: msg, Remote: true}
	case wire.TypeAuth:
		if !l.hub || l.cfg.OnAuth == nil {
			return l.protocol(fmt.Errorf("%v: %w", t, wire.ErrUnexpected))
		}
		l.cfg.OnAuth(p)
	case wire.TypeAuthAck:
		if l.hub {
			return l.protocol(fmt.Errorf("%v: %w", t, wire.ErrUnexpected))
		}
		var a wire.AuthAck
		if err := wire.Decode(p, &a); err != nil {
			return l.protocol(err)
		}
		if l.cfg.OnAuthAck != nil {
			l.cfg.OnAuthAck(a)
		}
	}
	return nil
}

// openFrame begins a session on the agent.
func (l *Link) openFrame(cid wire.CID, p []byte) *LinkError {
	if l.hub || l.cfg.OnOpen == nil {
		return l.protocol(fmt.Errorf("OPEN cid %d: %w", cid, wire.ErrUnexpected))
	}
	var o wire.Open
	if err := wire.Decode(p, &o); err != nil {
		return l.protocol(err)
	}
	window := int64(l.cfg.Window)
	enough := l.cfg.Budget.reserve(window)
	l.mu.Lock()
	if l.err != nil || l.closing != nil { // others may have ended the link while we still read
		err := l.err
		l.mu.Unlock()
		if enough {
			l.cfg.Budget.release(window)
		}
		return err
	}
	if _, twice := l.sessions[cid]; twice {
		l.mu.Unlock()
		if enough {
			l.cfg.Budget.release(window)
		}
		return l.protocol(fmt.Errorf("OPEN cid %d: already open: %w", cid, wire.ErrUnexpected))
	}
	if cid < l.lastCID {
		l.wrapped = true
	}
	l.lastCID = cid
	s := newSession(l, cid, SessionConfig{})
	s.open, s.credit = o, int64(o.Window)
	s.window, s.avail, s.maxWindow = window, window, max(int64(l.cfg.MaxWindow), window)
	if enough {
		s.reserved = window
	}
	l.sessions[cid] = s
	draining := l.draining
	l.mu.Unlock()
	switch {
	case !enough:
		s.Reset(wire.ReasonLimit, "agent: "+ErrBudget.Error())
	case draining:
		s.Reset(wire.ReasonDraining, "agent is draining")
	default:
		l.cfg.OnOpen(s)
	}
	return nil
}

// protocol ends the link because of what the peer sent, and tells it so, if
// the carrier takes the frame within a second.
func (l *Link) protocol(err error) *LinkError {
	_ = l.out.frame(soon, func(b []byte) []byte {
		return wire.AppendReason(b, 0, wire.ReasonProtocol, err.Error())
	})
	l.out.awaitIdle(closeTime)
	return &LinkError{Reason: wire.ReasonProtocol, Err: err}
}
