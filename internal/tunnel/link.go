package tunnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Defaults of Config.
const (
	DefaultPing      = 20 * time.Second
	DefaultWindow    = 64 << 10
	DefaultMaxWindow = 4 << 20
)

// ErrCongested is returned by Open when the link has not taken for a while what
// waits for it.
var ErrCongested = errors.New("link is congested")

// ErrDraining is returned by Open when either side takes no new sessions.
var ErrDraining = errors.New("link is draining")

// Config holds what all sessions of a link share. The zero value works.
type Config struct {
	// PingInterval is how long a link without traffic waits between PINGs; 0
	// means 20 s. While bytes move, a PING goes out every second to keep the
	// round trip time that windows grow by. PingTimeout is how long the PONG
	// may take, whatever else arrives; 0 means 20 s.
	PingInterval, PingTimeout time.Duration
	// Window is how many bytes of each session the peer may send before it is
	// granted more; 0 means 64 KiB. MaxWindow bounds its growth; 0 means 4 MiB.
	Window, MaxWindow uint32
	// Budget bounds the windows of all sessions together; nil means no bound.
	Budget *Budget
	// OnOpen, on the agent, receives every new session. It runs on the link's
	// reader and must not block: it hands the session to a goroutine that
	// calls Accept or Refuse.
	OnOpen func(*Session)
	// OnDrain is called when the peer wants no new sessions. It must not block.
	OnDrain func(message string)
	// OnRTT is called with each measured round trip time. It must not block.
	OnRTT func(time.Duration)
	// OnAuth, on the hub, receives a fresh credential for the link, which is
	// valid only during the call. It must not block; AnswerAuth answers. nil
	// ends the link for such a frame.
	OnAuth func(credential []byte)
	// OnAuthAck, on the agent, receives the answer to SendAuth. It must not
	// block. nil ignores it.
	OnAuthAck func(wire.AuthAck)
}

// Link is one connection between an agent and a hub. The goroutine that calls
// Serve reads; it starts the writer and the keeper (ping, idle and stalled
// sessions) and waits for both.
type Link struct {
	cfg        Config
	c          Carrier
	out        *sender
	hub        bool
	peerWindow int64 // what each session may send before credit; hub only

	stop   chan struct{} // closed once the link is over
	idlers atomic.Int64  // sessions with an idle timeout
	rtt    atomic.Int64  // nanoseconds, smoothed
	recvd  atomic.Uint64 // bytes read, to tell an idle link from a busy one
	rate   atomic.Int64  // bytes per second both ways, smoothed; owned by keep

	mu       sync.Mutex // guards all below; may be held while taking out.mu, never the other way
	sessions map[wire.CID]*Session
	lastCID  wire.CID      // newest cid that was ever opened
	wrapped  bool          // cids have passed their maximum once
	draining bool          // open nothing, accept nothing
	drained  chan struct{} // Drain was called; closed once the peer has read it
	drainTok uint64        // of the PING that follows DRAIN
	closing  *LinkError    // what Close was called with: the reason, whatever breaks first
	err      *LinkError    // why the link is over
	pingSent time.Time     // zero when no PONG is owed
	pingTok  uint64
	lastPong time.Time
}

// NewHubLink makes the hub's end of a link after [Welcome]. peerWindow is the
// Window of the agent's HELLO.
func NewHubLink(c Carrier, cfg Config, peerWindow uint32) *Link {
	l := newLink(c, cfg)
	l.hub, l.peerWindow = true, int64(peerWindow)
	return l
}

// NewAgentLink makes the agent's end of a link after [SayHello].
func NewAgentLink(c Carrier, cfg Config) *Link { return newLink(c, cfg) }

func newLink(c Carrier, cfg Config) *Link {
	if cfg.PingInterval <= 0 {
		cfg.PingInterval = DefaultPing
	}
	if cfg.PingTimeout <= 0 {
		cfg.PingTimeout = DefaultPing
	}
	if cfg.Window == 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.MaxWindow == 0 {
		cfg.MaxWindow = DefaultMaxWindow
	}
	l := &Link{
		cfg: cfg, c: c, out: newSender(c),
		stop: make(chan struct{}), sessions: make(map[wire.CID]*Session),
	}
	l.out.fail = func(err error) { l.writeFailed(err) }
	if p, ok := c.(poker); ok {
		p.onOwed(l.out.poke)
	}
	return l
}

// Hold keeps all that the hub's end would write until Welcome: sessions may be
// opened meanwhile, and their OPENs follow the HELLO_ACK. Call it before the link
// is known to anybody else.
func (l *Link) Hold() { l.out.hold() }

// Welcome answers the agent's HELLO on a link that is held. When that fails the
// link is over, with whatever was opened on it. Call it before Serve.
func (l *Link) Welcome(a wire.HelloAck) error {
	if err := Welcome(l.c, a); err != nil {
		le := lost(err)
		l.fail(le)
		return le
	}
	l.out.release()
	return nil
}

// Serve runs the link until it ends and returns why, always as a *[LinkError].
// When ctx ends the link is closed with reason shutdown.
func (l *Link) Serve(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.out.run(l.stop) })
	wg.Go(l.keep)
	cancel := context.AfterFunc(ctx, func() { l.Close(wire.ReasonShutdown, "") })
	err := l.read()
	l.fail(err)
	cancel()
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func lost(err error) *LinkError { return &LinkError{Reason: wire.ReasonLinkLost, Err: err} }

// fail ends the link once: every session ends, the carrier closes.
func (l *Link) fail(err *LinkError) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	if l.closing != nil {
		err = l.closing
	}
	l.err = err
	l.mu.Unlock()

	l.out.die(err)
	close(l.stop)
	l.endSessions(err)
	_ = l.c.Close() // last: it may take its time
}

// lastWords is how long the reader has, once nothing can be written any more, to
// find the peer's CLOSE among what had arrived: a socket that the peer has
// closed fails to write first, and only the reader knows why.
const lastWords = 100 * time.Millisecond

func (l *Link) writeFailed(err error) {
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-l.stop: // the reader has ended the link
	case <-t.C:
		l.fail(lost(err))
	}
}

// endSessions ends what the link carries, for the reason that ends the link.
func (l *Link) endSessions(err *LinkError) {
	r := Result{Reason: wire.ReasonLinkLost, Message: err.Error(), Remote: err.Remote}
	if err.Reason == wire.ReasonShutdown || err.Reason == wire.ReasonRevoked {
		r.Reason = err.Reason
	}
	for _, s := range l.Sessions() {
		s.linkEnded(r)
	}
}

// closeTime bounds how long CLOSE may take to reach the socket, and again how
// long the peer may take to read it.
const closeTime = time.Second

// Close ends the link and all its sessions. The peer is told why if the
// carrier takes the frame within a second. It may be called from any goroutine
// and more than once; it returns when the link is over.
func (l *Link) Close(r wire.Reason, message string) {
	l.mu.Lock()
	if l.err != nil || l.closing != nil {
		l.mu.Unlock()
		<-l.stop
		return
	}
	l.closing = &LinkError{Reason: r, Message: message}
	l.mu.Unlock()
	_ = l.out.frame(soon, func(b []byte) []byte { return wire.AppendReason(b, 0, r, message) })
	if l.out.awaitIdle(closeTime) {
		l.linger()
	}
	l.fail(l.closing)
}

// linger ends the sessions and our direction of the link, and lets the reader
// take what the peer still sends until it has read our CLOSE and closes its
// end. Closing a socket with unread bytes sends RST, and RST would overtake the
// CLOSE that tells the peer why.
func (l *Link) linger() {
	l.endSessions(l.closing)
	c, ok := l.c.(closeWriter)
	if !ok || c.CloseWrite() != nil {
		return
	}
	t := time.NewTimer(closeTime)
	defer t.Stop()
	select {
	case <-l.stop:
	case <-t.C:
	}
}

// Ended reports whether the link is over.
func (l *Link) Ended() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// Done is closed when the link is over.
func (l *Link) Done() <-chan struct{} { return l.stop }

// drainTime bounds how long Drain waits for the peer to confirm.
const drainTime = 2 * time.Second

// Drain tells the peer to open no more sessions here; running ones go on. On
// the agent it returns once no OPEN can be under way any more, so that none is
// lost between DRAIN and the moment the hub reads it: a PING follows the
// DRAIN, and whatever the hub opened before its PONG is still served. After
// two seconds, or when the link ends, it returns all the same.
func (l *Link) Drain(message string) {
	if len(message) > wire.MaxMessage {
		message = message[:wire.MaxMessage]
	}
	l.mu.Lock()
	first := l.drained == nil
	if first {
		l.drained, l.drainTok = make(chan struct{}), rand.Uint64()|1
	}
	l.draining = l.draining || l.hub
	drained, token := l.drained, l.drainTok
	l.mu.Unlock()
	if first {
		_ = l.out.frame(atOnce, func(b []byte) []byte {
			b = wire.AppendFrame(b, wire.TypeDrain, 0, []byte(message))
			return wire.AppendPing(b, wire.TypePing, token)
		}) // a link that is over drains no more
	}
	if l.hub {
		return
	}
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
	case <-l.stop:
	}
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
}

// Draining reports whether either side wants no new sessions.
func (l *Link) Draining() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

// NumSessions returns the number of live sessions.
func (l *Link) NumSessions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sessions)
}

// RTT returns the smoothed round trip time; 0 before the first PONG.
func (l *Link) RTT() time.Duration { return time.Duration(l.rtt.Load()) }

// Rate returns how many bytes per second the link moved lately, both ways
// together. It lags a second or two.
func (l *Link) Rate() int64 { return l.rate.Load() }

// Open begins a session towards the agent's connector o.Connector. The request
// leaves when Run is called, or with whatever the link sends before that;
// client bytes go with it, without waiting for the agent's answer. It fails with
// [ErrBudget], [ErrDraining], [ErrCongested] or, when the link is over, a *[LinkError].
func (l *Link) Open(o wire.Open, cfg SessionConfig) (*Session, error) {
	maxWindow := int64(cfg.MaxWindow)
	if maxWindow == 0 {
		maxWindow = int64(l.cfg.MaxWindow)
	}
	maxWindow = min(max(maxWindow, wire.MaxFrame), wire.MaxWindow)
	window, ok := l.reserve(min(int64(l.cfg.Window), maxWindow))
	if !ok {
		return nil, ErrBudget
	}
	o.Window = uint32(window)
	request, err := wire.AppendMessage(nil, wire.TypeOpen, 0, &o, wire.MaxData)
	if err != nil {
		l.cfg.Budget.release(window)
		return nil, err
	}
	s := newSession(l, 0, cfg)
	s.open, s.credit = o, l.peerWindow
	s.window, s.avail, s.reserved, s.maxWindow = window, window, window, maxWindow
	if err := l.begin(s, request); err != nil {
		l.cfg.Budget.release(window)
		return nil, err
	}
	if cfg.ConnectTimeout > 0 {
		s.startTimer(cfg.ConnectTimeout)
	}
	return s, nil
}

// begin gives the session its cid and queues the request. Both happen under
// mu, so that a DRAIN is answered either before the session can begin or after
// its OPEN has been queued.
func (l *Link) begin(s *Session, request []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.openableLocked(); err != nil {
		return err
	}
	if l.out.congested() {
		return ErrCongested
	}
	s.cid = l.nextCIDLocked()
	h := wire.ParseHeader(request)
	h.CID = s.cid
	h.Put(request)
	err := l.out.frame(lazily, func(b []byte) []byte { // Run sends it, with the client's first bytes if there are any
		return append(b, request...)
	})
	if err != nil {
		return err
	}
	l.sessions[s.cid] = s
	if s.cfg.IdleTimeout > 0 {
		s.touch()
		l.idlers.Add(1) // finish takes it back
	}
	return nil
}

// reserve takes window bytes from the budget, or the least that works when
// memory is short: one frame.
func (l *Link) reserve(window int64) (int64, bool) {
	if l.cfg.Budget.reserve(window) {
		return window, true
	}
	if window > wire.MaxFrame && l.cfg.Budget.reserve(wire.MaxFrame) {
		return wire.MaxFrame, true
	}
	return 0, false
}

func (l *Link) openableLocked() error {
	switch {
	case l.err != nil:
		return l.err
	case l.closing != nil:
		return l.closing
	case l.draining:
		return ErrDraining
	}
	return nil
}

func (l *Link) nextCIDLocked() wire.CID {
	for {
		if l.lastCID++; l.lastCID == 0 {
			l.lastCID, l.wrapped = 1, true
		}
		if _, taken := l.sessions[l.lastCID]; !taken {
			return l.lastCID
		}
	}
}

// forget removes a session that is over.
func (l *Link) forget(s *Session) {
	l.mu.Lock()
	delete(l.sessions, s.cid)
	l.mu.Unlock()
}

// session returns the live session cid. known is false when no such session
// was ever opened on this link: then the peer is at fault; else its frame was
// under way when the session ended.
func (l *Link) session(cid wire.CID) (s *Session, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = l.sessions[cid]
	return s, s != nil || l.wrapped || cid <= l.lastCID
}

// Sessions returns the live sessions.
func (l *Link) Sessions() []*Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*Session, 0, len(l.sessions))
	for _, s := range l.sessions {
		out = append(out, s)
	}
	return out
}
