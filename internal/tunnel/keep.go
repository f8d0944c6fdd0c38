package tunnel

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// keep is the link's clock: it pings, and looks after sessions that are idle
// or stuck, which no event would wake.
func (l *Link) keep() {
	tick := min(l.cfg.PingInterval, l.cfg.PingTimeout) / 4
	tick = min(max(tick, 5*time.Millisecond), time.Second)
	t := time.NewTicker(tick)
	defer t.Stop()
	l.mu.Lock()
	l.lastPong = time.Now()
	l.mu.Unlock()
	l.ping(time.Now())
	lastProbe, seen := time.Now(), uint64(0)
	lastRate, rated := lastProbe, uint64(0)
	for {
		select {
		case <-l.stop:
			return
		case now := <-t.C:
			moved := l.recvd.Load() + l.out.activity()
			if d := now.Sub(lastRate); d > 0 {
				l.rate.Store((l.rate.Load() + int64(float64(moved-rated)/d.Seconds())) / 2)
				lastRate, rated = now, moved
			}
			busy := moved-seen > 64<<10 && now.Sub(lastProbe) >= time.Second
			switch overdue, due := l.pingState(now); {
			case overdue > 0:
				l.fail(&LinkError{Reason: wire.ReasonPingTimeout, Message: fmt.Sprintf("no PONG for %v", overdue.Round(time.Millisecond))})
				return
			case due || busy:
				l.ping(now)
				lastProbe, seen = now, l.recvd.Load()+l.out.activity()
			}
			if l.idlers.Load() > 0 {
				for _, s := range l.Sessions() {
					s.checkIdle(now)
				}
			}
			for _, s := range l.out.stalledSessions() {
				s.checkReset()
			}
		}
	}
}

// pingState tells by how much a PONG is overdue, or whether a PING is due.
func (l *Link) pingState(now time.Time) (overdue time.Duration, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pingSent.IsZero() {
		if d := now.Sub(l.pingSent); d >= l.cfg.PingTimeout {
			return d, false
		}
		return 0, false
	}
	return 0, now.Sub(l.lastPong) >= l.cfg.PingInterval
}

// ping sends a PING unless one is unanswered.
func (l *Link) ping(now time.Time) {
	l.mu.Lock()
	if !l.pingSent.IsZero() {
		l.mu.Unlock()
		return
	}
	l.pingSent, l.pingTok = now, rand.Uint64()
	token := l.pingTok
	l.mu.Unlock()
	_ = l.out.frame(soon, func(b []byte) []byte {
		return wire.AppendPing(b, wire.TypePing, token)
	}) // a link that is over needs no ping
}

// pong takes a PONG. One that we did not ask for is ignored.
func (l *Link) pong(token uint64) {
	now := time.Now()
	l.mu.Lock()
	if l.drainTok != 0 && token == l.drainTok {
		l.drainTok = 0
		close(l.drained)
		l.mu.Unlock()
		return
	}
	if l.pingSent.IsZero() || token != l.pingTok {
		l.mu.Unlock()
		return
	}
	rtt := now.Sub(l.pingSent)
	l.pingSent, l.lastPong = time.Time{}, now
	l.mu.Unlock()
	if old := l.rtt.Load(); old == 0 {
		l.rtt.Store(int64(rtt))
	} else {
		l.rtt.Store((7*old + int64(rtt)) / 8) // as RFC 6298 smooths
	}
	if l.cfg.OnRTT != nil {
		l.cfg.OnRTT(rtt)
	}
}

// checkReset ends a session whose local side went away while we could not read
// from it for want of credit.
func (s *Session) checkReset() {
	s.mu.Lock()
	raw := s.raw
	s.mu.Unlock()
	if raw != nil && raw.reset() {
		s.finishWithRst(Result{Reason: wire.ReasonRst, Message: "reset while stalled"})
	}
}
