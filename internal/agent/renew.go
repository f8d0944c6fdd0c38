package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

const (
	// lookEvery and lookAtLeast bound how often the files with the credential
	// are read while a link is up: sixteen times in the life of the one in use.
	// Files are read and not watched, because what is mounted, renamed or
	// linked does not always say so.
	lookEvery   = 10 * time.Second
	lookAtLeast = 100 * time.Millisecond
	lookShare   = 16

	// renewFirst and renewLast bound the pause after a refusal.
	renewFirst = 2 * time.Second
	renewLast  = time.Minute

	// answerPatience is when a hub that does not answer AUTH is worth a line.
	answerPatience = 30 * time.Second

	// blindLeast is the least life of a credential for which a new link is made
	// without knowing whether there is a new one.
	blindLeast = time.Minute

	// leaveStep is how often a link that was handed over looks whether its last
	// session has ended.
	leaveStep = 200 * time.Millisecond
)

// tender keeps the credential of one link fresh. Owned by the link's loop.
type tender struct {
	a        *Agent
	s        *slot
	v        *liveLink
	reauth   bool // the hub takes a new token on this link
	handover bool // it lets a new link take this one's place gently

	inUse    digest
	expires  time.Time     // zero for never
	lifetime time.Duration // of the credential in use, when we learned of it
	warned   bool          // that it expires soon

	offered digest    // the newest that the hub was asked about
	asked   time.Time // when; zero once it has answered
	slow    bool      // it was logged that the hub does not answer
	delay   time.Duration
	next    time.Time // no try before
}

// tend looks after the link until it ends, or until another one has been made
// that takes its place, which it returns.
func (a *Agent) tend(ctx context.Context, s *slot, v *liveLink) *login {
	t := &tender{a: a, s: s, v: v,
		reauth:   slices.Contains(v.login.ack.Capabilities, wire.CapReauth) && a.cfg.TokenFile != "",
		handover: slices.Contains(v.login.ack.Capabilities, wire.CapHandover)}
	t.inUse = v.login.cert
	if t.reauth {
		t.inUse = v.login.secret
	}
	t.lasts(v.login.expires)
	timer := time.NewTimer(t.step())
	defer timer.Stop()
	for {
		select {
		case <-v.done:
			return nil
		case ack := <-v.acks:
			t.answered(ack)
		case <-timer.C:
			if next := t.look(ctx); next != nil {
				return next
			}
		}
		timer.Reset(t.step())
	}
}

func (t *tender) lasts(until time.Time) {
	t.expires, t.lifetime, t.warned = until, 0, false
	if !until.IsZero() {
		t.lifetime = time.Until(until)
	}
}

// step is how long to wait before the next look.
func (t *tender) step() time.Duration {
	if t.expires.IsZero() {
		return lookEvery
	}
	return min(max(time.Until(t.expires)/lookShare, lookAtLeast), lookEvery)
}

// look reads the files and does what they ask for.
func (t *tender) look(ctx context.Context) *login {
	now := time.Now()
	switch {
	case !t.asked.IsZero():
		if now.Sub(t.asked) > answerPatience && !t.slow {
			t.slow = true
			t.a.log.Warn("the hub does not answer to the renewed token", t.fields()...)
		}
	case t.reauth:
		t.lookAtToken(now)
	case t.handover && ctx.Err() == nil:
		return t.lookAtCert(ctx, now)
	}
	return nil
}

// lookAtToken offers the token to the hub if it is not the one in use.
func (t *tender) lookAtToken(now time.Time) {
	token, err := t.a.dialer.token.read()
	d := digestOf(token)
	if err != nil || d == t.inUse {
		t.warnIfLate(now, err)
		return
	}
	if now.Before(t.next) && d == t.offered {
		return
	}
	if t.offered != d {
		t.offered, t.delay = d, 0
	}
	if err := t.v.SendAuth(token); err != nil {
		t.pause(renewFirst, 0)
		t.a.log.Warn("the renewed token cannot be sent", t.fields(zap.Error(err))...)
		return
	}
	t.asked, t.slow = now, false
}

// answered takes the hub's word about the token that was offered.
func (t *tender) answered(ack wire.AuthAck) {
	if t.asked.IsZero() {
		return // nobody asked
	}
	asked := t.asked
	t.asked = time.Time{}
	if ack.Error == "" {
		t.inUse, t.delay = t.offered, 0
		t.lasts(expiry(asked, ack.ExpiresIn))
		t.a.metrics.Reauth(obs.ReauthAccepted)
		t.s.renewed(t.expires, ack)
		t.a.log.Info("the hub accepts the renewed token", t.fields(zap.Strings("accepted", ack.Accepted))...)
		t.a.noteRefused(ack.Refused, t.v.login.ack.Hub)
		return
	}
	t.a.metrics.Reauth(reauthResult(ack.Error))
	first := t.delay == 0
	t.pause(renewFirst, time.Duration(min(ack.RetryAfter, renewLast.Milliseconds()))*time.Millisecond)
	level := zap.DebugLevel
	if first {
		level = zap.WarnLevel
	}
	t.a.log.Log(level, "the hub does not accept the renewed token, the link goes on with the one before",
		t.fields(zap.String("why", oneLine(string(ack.Error))), zap.String("message", oneLine(ack.Message)),
			zap.Duration("retry_in", time.Until(t.next)))...)
}

func reauthResult(e wire.AuthError) obs.ReauthResult {
	switch e {
	case wire.AuthUnavailable:
		return obs.ReauthError
	case wire.AuthLimit:
		return obs.ReauthLimited
	}
	return obs.ReauthRefused
}

// pause sets the time of the next try: after delays that double, but several
// times before the credential in use expires; not before the hub wants it.
func (t *tender) pause(first, least time.Duration) {
	t.delay = min(max(2*t.delay, first), renewLast)
	d := t.delay
	if left := time.Until(t.expires); !t.expires.IsZero() {
		d = min(d, max(left/4, time.Second))
	}
	t.next = time.Now().Add(max(d/2+rand.N(d/2+1), least))
}

// lookAtCert makes a new link when there is a new certificate. Without one of
// our own somebody on the way has it, and only trying tells whether it is new.
func (t *tender) lookAtCert(ctx context.Context, now time.Time) *login {
	cert, err := readCert(t.a.cfg.ClientCert, t.a.cfg.ClientKey)
	c := credential{cert: cert}
	late := t.lifetime > blindLeast && time.Until(t.expires) < t.lifetime/3
	fresh := err == nil && c.digest() != t.inUse
	blind := t.a.cfg.ClientCert == "" && late
	if !fresh && !blind {
		t.warnIfLate(now, err)
		return nil
	}
	if d := c.digest(); d != t.offered {
		t.offered, t.delay, t.next = d, 0, time.Time{}
	}
	if now.Before(t.next) {
		return nil
	}
	h := t.a.hello(t.s.n)
	h.Handover = true
	t.v.handing = true
	next, err := t.a.dialer.connect(ctx, h)
	if err == nil {
		return next
	}
	first := t.delay == 0
	t.pause(renewFirst, 0)
	if first && ctx.Err() == nil {
		t.a.log.Warn("no link can be made with the renewed certificate, the one before goes on",
			t.fields(zap.Duration("retry_in", time.Until(t.next)), zap.Error(err))...)
	}
	return nil
}

// warnIfLate speaks up when nobody has renewed the files and it is high time.
func (t *tender) warnIfLate(now time.Time, err error) {
	if t.warned || t.expires.IsZero() || t.expires.Sub(now) > t.lifetime/4 {
		return
	}
	t.warned = true
	file := t.a.cfg.TokenFile
	if !t.reauth {
		file = t.a.cfg.ClientCert
	}
	t.a.log.Warn("the credential expires soon and its file has not been renewed: the hub will end the link",
		t.fields(zap.String("file", file), zap.Error(err))...)
}

func (t *tender) fields(more ...zap.Field) []zap.Field {
	f := []zap.Field{zap.Int("link", t.s.n)}
	if !t.expires.IsZero() {
		f = append(f, zap.Duration("expires_in", time.Until(t.expires).Round(time.Millisecond)))
	}
	return append(f, more...)
}

// leave ends a link that was handed over, once its sessions are over. The hub
// does the same; but the new link may lead to another hub.
func (a *Agent) leave(v *liveLink) {
	v.Drain("this link was handed over")
	tick := time.NewTicker(leaveStep)
	defer tick.Stop()
	for v.NumSessions() > 0 {
		select {
		case <-v.done:
			return
		case <-tick.C:
		}
	}
	v.Close(wire.ReasonSuperseded, "this link was handed over")
}

// liveLink is one link from its login to its end.
type liveLink struct {
	*tunnel.Link
	login *login
	start time.Time
	acks  chan wire.AuthAck // one place: there is one AUTH at a time
	done  chan struct{}     // closed when the link is over
	err   error             // why; set before done is closed

	handing bool // a handover was tried; owned by the link's loop
}

// whyEnded returns err, unless the hub gave the link's place to one that did
// not come up here: no other process is to blame for that.
func (v *liveLink) whyEnded() error {
	if v.handing && linkReason(v.err) == wire.ReasonSuperseded {
		return &tunnel.LinkError{Reason: wire.ReasonLinkLost, Message: "it was handed over to a link that did not come up"}
	}
	return v.err
}

// startLink puts a login to work as the slot's link. It returns nil, and ends
// the link, when the agent is on its way out. Run waits for what it starts.
func (a *Agent) startLink(linkCtx context.Context, s *slot, l *login) *liveLink {
	v := &liveLink{login: l, start: time.Now(), acks: make(chan wire.AuthAck, 1), done: make(chan struct{})}
	v.Link = tunnel.NewAgentLink(l.carrier, tunnel.Config{
		PingInterval: a.cfg.PingInterval, PingTimeout: a.cfg.PingTimeout,
		Window: firstWindow, Budget: a.budget,
		OnOpen: a.openSession,
		OnDrain: func(message string) {
			a.log.Info("the hub drains this link: it opens no new sessions here", zap.Int("link", s.n), zap.String("message", oneLine(message)))
		},
		OnRTT: a.metrics.RTT,
		OnAuthAck: func(ack wire.AuthAck) {
			select {
			case v.acks <- ack:
			default: // more answers than questions
			}
		},
	})
	if !a.sessions.unlessLeaving(func() { s.up(v) }) {
		v.Close(wire.ReasonShutdown, "agent is stopping")
		return nil
	}
	a.serving.Go(func() {
		v.err = v.Serve(linkCtx)
		close(v.done)
	})
	return v
}
