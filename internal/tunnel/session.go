package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

var errSessionOver = errors.New("session is over")

// Observer is told about one session's traffic. Its methods are called
// concurrently and for every frame: they must be cheap and not allocate.
type Observer interface {
	FrameSent(n int)           // a DATA frame with n payload bytes went to the peer
	FrameReceived(n int)       // one came from the peer
	Written(n int)             // the local socket took n bytes
	WriteTime(d time.Duration) // from having bytes to write until the socket took what it could at once
	DrainTime(d time.Duration) // waiting for a full socket; a wait longer than a second is told once per second
	FinSent()
	FinReceived()
	RstSent()
	RstReceived()
}

type noObserver struct{}

var silent Observer = noObserver{}

func (noObserver) FrameSent(int)           {}
func (noObserver) FrameReceived(int)       {}
func (noObserver) Written(int)             {}
func (noObserver) WriteTime(time.Duration) {}
func (noObserver) DrainTime(time.Duration) {}
func (noObserver) FinSent()                {}
func (noObserver) FinReceived()            {}
func (noObserver) RstSent()                {}
func (noObserver) RstReceived()            {}

// SessionConfig holds what differs from session to session.
type SessionConfig struct {
	// Observer may be nil.
	Observer Observer
	// MaxWindow bounds this session's receive queue in bytes; 0 means the
	// link's. At least one frame is always granted.
	MaxWindow uint32
	// ConnectTimeout, at the hub, is the time from OPEN to OPENED after which
	// the session ends with connect_timeout. 0 means none.
	ConnectTimeout time.Duration
	// IdleTimeout ends a session with idle after so long without a byte either
	// way. 0 means none.
	IdleTimeout time.Duration
	// OnOpened, at the hub, is called once when the target has accepted. It
	// runs on the link's reader and must not block.
	OnOpened func()
}

// Result tells how a session ended.
type Result struct {
	Reason   wire.Reason
	Message  string // more words for the log; may come from the peer
	Remote   bool   // the peer ended it
	WriteErr error  // the local socket failed while we wrote
	Sent     int64  // payload bytes read from the local side and sent
	Received int64  // payload bytes written to the local side
	Opened   bool   // the target had accepted the connection
}

// Session is one client connection carried over a link. The goroutine that
// calls Run or Accept reads the local socket; the link's reader writes to it
// directly while it keeps up, and a goroutine of its own drains the queue when
// it does not.
type Session struct {
	link *Link
	cid  wire.CID
	open wire.Open
	cfg  SessionConfig
	done chan struct{} // closed when the session is over

	observer    atomic.Pointer[Observer] // never nil; the agent sets it late, in Accept
	idleTimeout atomic.Int64             // nanoseconds; likewise

	small bool // the last frame received was small; owned by the link's reader

	// Guarded by link.out.mu.
	credit  int64     // bytes we may still send
	queued  bool      // a buffer of ours waits in the sender
	waiting bool      // in sender.waiting
	ended   bool      // stop sending
	writing int       // our goroutine is writing to the carrier, or another that writes our bytes, or both
	pull    pull      // the holder of the link reads our local socket
	room    sync.Cond // one of the above changed

	sent       atomic.Int64
	received   atomic.Int64
	backlog    atomic.Int64 // bytes received and not yet taken by the local socket
	lastActive atomic.Int64 // nanoseconds since began; kept only with an idle timeout

	mu        sync.Mutex // guards all below
	ep        *Endpoint  // nil until attached
	raw       *rawSocket // not nil when ep.Conn is a plain socket
	below     *rawSocket // the socket below a wrapped Conn; nil when unknown
	timer     *time.Timer
	q         queue
	draining  bool           // the drain goroutine owns writing to the local side
	drains    sync.WaitGroup // the drain goroutine
	concluded sync.Once      // the local side is closed
	opened    bool
	finSent   bool // we sent FIN
	finGot    bool // the peer sent FIN
	finDone   bool // and the local side has it
	over      bool
	result    Result

	window     int64 // credit outstanding plus bytes queued plus unacked: the bound of the queue
	maxWindow  int64
	reserved   int64 // taken from the budget for the first window
	grown      int64 // taken from the budget beyond it
	avail      int64 // credit the peer has left
	unacked    int64 // bytes consumed and not yet granted again
	lastGrant  time.Time
	epochStart time.Time
	epochBytes int64
}

func newSession(l *Link, cid wire.CID, cfg SessionConfig) *Session {
	s := &Session{link: l, cid: cid, cfg: cfg, done: make(chan struct{})}
	s.idleTimeout.Store(int64(cfg.IdleTimeout))
	s.observer.Store(&silent)
	if cfg.Observer != nil {
		s.observer.Store(&s.cfg.Observer)
	}
	s.room.L = &l.out.mu
	return s
}

func (s *Session) obs() Observer { return *s.observer.Load() }

// Open returns the request that began the session.
func (s *Session) Open() wire.Open { return s.open }

// Done is closed when the session is over: a dial in progress should stop.
func (s *Session) Done() <-chan struct{} { return s.done }

// Queued returns the bytes received from the peer that the local socket has
// not taken yet.
func (s *Session) Queued() int { return int(s.backlog.Load()) }

// QueueFrames returns Queued in frames of 16 KiB, rounded up: small frames are
// packed.
func (s *Session) QueueFrames() int { return (s.Queued() + chunkSize - 1) / chunkSize }

// Transferred returns the payload bytes sent to the peer and written to the
// local side so far.
func (s *Session) Transferred() (sent, received int64) { return s.sent.Load(), s.received.Load() }

// Run moves bytes between ep and the session until the session is over, closes
// ep in the way that fits the end, and tells how it ended. For the hub; call
// it once.
func (s *Session) Run(ep Endpoint) Result {
	s.grant(s.attach(&ep))
	if s.source(&ep) {
		s.awaitEnd()
	}
	<-s.done
	s.conclude(&ep)
	s.mu.Lock()
	defer s.mu.Unlock()
	res := s.result
	res.Sent, res.Received, res.Opened = s.sent.Load(), s.received.Load(), s.opened
	return res
}

// conclude closes the local side, once; later calls wait for it. The session is
// over. Run does it, unless its goroutine is stuck in a write to the link that
// may last until the link dies: the local side need not wait for that.
func (s *Session) conclude(ep *Endpoint) {
	s.concluded.Do(func() {
		s.drains.Wait()
		_ = ep.Conn.SetDeadline(time.Time{})
		ep.Close(s.result.Reason)
	})
}

// Accept tells the hub that the target has accepted and then does what Run
// does. For the agent; after OnOpen call either Accept or Refuse, once.
func (s *Session) Accept(ep Endpoint, cfg SessionConfig) Result {
	if cfg.Observer != nil {
		s.observer.Store(&cfg.Observer)
	}
	s.mu.Lock()
	if !s.over && cfg.IdleTimeout > 0 {
		s.idleTimeout.Store(int64(cfg.IdleTimeout))
		s.link.idlers.Add(1) // finish takes it back
	}
	s.opened = true
	s.mu.Unlock()
	s.touch()
	_ = s.link.out.frame(lazily, func(b []byte) []byte { // source flushes it
		return wire.AppendHeader(b, wire.Header{Type: wire.TypeOpened, CID: s.cid})
	}) // a dead link has ended the session already
	return s.Run(ep)
}

// Refuse ends a session that never reached its target.
func (s *Session) Refuse(r wire.Reason, message string) { s.Reset(r, message) }

// Reset ends the session from any goroutine; the peer is told by RST. It does
// nothing to a session that is over.
func (s *Session) Reset(r wire.Reason, message string) {
	if !s.finish(Result{Reason: r, Message: message}) {
		return
	}
	s.obs().RstSent()
	_ = s.link.out.frame(soon, func(b []byte) []byte {
		return wire.AppendReason(b, s.cid, r, message)
	}) // on a dead link nobody is left to tell
}

// finish ends the session once and reports whether this call did.
func (s *Session) finish(r Result) bool {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return false
	}
	s.over = true
	s.result = r
	ep, timer, reserved, grown := s.ep, s.timer, s.reserved, s.grown
	if s.idleTimeout.Load() > 0 {
		s.link.idlers.Add(-1)
	}
	s.reserved, s.grown = 0, 0
	if !s.draining {
		s.q.clear()
		s.backlog.Store(0)
	}
	s.mu.Unlock()

	if timer != nil {
		timer.Stop()
	}
	s.link.forget(s)
	writing := s.link.out.end(s)
	s.link.cfg.Budget.release(reserved)
	s.link.cfg.Budget.shrink(grown)
	close(s.done)
	if ep != nil {
		// Wakes the reading goroutine and a drain that waits.
		_ = ep.Conn.SetDeadline(aLongTimeAgo)
		if writing {
			go s.conclude(ep) // Run waits for it
		}
	}
	return true
}

// linkEnded ends the session because its link is over. One whose FINs have both
// crossed needs the link no longer, however that ended: for the peer it is
// finished, and all that remains is to hand the queue to the local side.
func (s *Session) linkEnded(r Result) {
	s.mu.Lock()
	complete := s.finGot && s.finSent
	s.mu.Unlock()
	if !complete || r.Reason == wire.ReasonRevoked {
		s.finish(r)
	}
}

var aLongTimeAgo = time.Unix(1, 0)

// attach gives the session its local end; what was received meanwhile starts
// to flow. It returns credit to grant.
func (s *Session) attach(ep *Endpoint) uint32 {
	raw, below := sockets(ep)
	_ = ep.Conn.SetDeadline(time.Time{}) // from now on a deadline means: the session is over
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ep, s.raw, s.below = ep, raw, below
	if s.over {
		_ = ep.Conn.SetDeadline(aLongTimeAgo)
		return 0
	}
	grant := s.passAheadLocked()
	if s.q.bytes > 0 || s.finGot {
		s.startDrainLocked()
	}
	return grant
}

// fromReset handles the peer's RST.
func (s *Session) fromReset(r wire.Reason, message string) {
	s.obs().RstReceived()
	switch {
	case r == wire.ReasonUnknown || r == wire.ReasonFin || r >= wire.ReasonProtocol:
		r = wire.ReasonRst
	case s.link.hub && r == wire.ReasonDenied:
		r = wire.ReasonConnectFailed // the agent has no such target; policy is the hub's
	case s.link.hub && (r == wire.ReasonPDPError || r == wire.ReasonRevoked || r == wire.ReasonNoAgent || r == wire.ReasonLinkLost):
		r = wire.ReasonRst // not an agent's to say
	}
	s.finish(Result{Reason: r, Message: message, Remote: true})
}

// fromOpened handles OPENED at the hub. It reports whether that was in order.
func (s *Session) fromOpened() bool {
	s.mu.Lock()
	again := s.opened
	s.opened = true
	timer, over := s.timer, s.over
	s.mu.Unlock()
	if again {
		return false
	}
	if timer != nil {
		timer.Stop()
	}
	if s.cfg.OnOpened != nil && !over {
		s.cfg.OnOpened()
	}
	return true
}

// startTimer bounds the time until the target has accepted.
func (s *Session) startTimer(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.opened {
		return
	}
	s.timer = time.AfterFunc(d, func() {
		s.Reset(wire.ReasonConnectTimeout, fmt.Sprintf("no answer from the agent's target within %v", d))
	})
}

// began anchors lastActive in monotonic time: a step of the wall clock must not
// make sessions look idle.
var began = time.Now()

func (s *Session) touch() {
	if s.idleTimeout.Load() > 0 {
		s.lastActive.Store(int64(time.Since(began)))
	}
}

// checkIdle ends the session if it was idle for too long.
func (s *Session) checkIdle(now time.Time) {
	d := time.Duration(s.idleTimeout.Load())
	if last := s.lastActive.Load(); d > 0 && last > 0 && now.Sub(began) > time.Duration(last)+d {
		s.Reset(wire.ReasonIdle, fmt.Sprintf("no byte for %v", d))
	}
}
