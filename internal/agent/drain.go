package agent

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// leave keeps new links from coming up: a drain is to see every link.
func (r *sessions) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = true
}

// beginDrain stops new sessions and returns the live ones, and a channel that
// is closed when they are gone.
func (r *sessions) beginDrain() (live int, idle <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
	r.idle = make(chan struct{})
	r.ended = make(map[wire.Reason]int)
	if len(r.live) == 0 {
		close(r.idle)
	}
	return len(r.live), r.idle
}

// maxNamed bounds how many sessions a drain report names.
const maxNamed = 100

// remaining names the sessions that are still live, oldest first, and counts
// by reason those that ended since the drain began.
func (r *sessions) remaining() (names []string, ended map[wire.Reason]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	live := make([]*tunnel.Session, 0, len(r.live))
	for s := range r.live {
		live = append(live, s)
	}
	slices.SortFunc(live, func(x, y *tunnel.Session) int { return r.live[x].Compare(r.live[y]) })
	for _, s := range live {
		names = append(names, s.Open().Connector+"/"+s.Open().Session)
	}
	ended = make(map[wire.Reason]int, len(r.ended))
	for reason, n := range r.ended {
		ended[reason] = n
	}
	return names, ended
}

// drain leaves in order: no new sessions on any link, then the live ones end
// by themselves, or are cut after DrainTimeout or by Cut; then the links.
func (a *Agent) drain() {
	start := time.Now()
	a.sessions.leave()
	told := make(chan struct{})
	go func() { // ends with the links at the latest, which are closed below
		defer close(told)
		a.eachLink(func(l *tunnel.Link) { l.Drain("agent is stopping") })
	}()
	// What the hub opens until it has read this is still served.
	select {
	case <-told:
	case <-a.cut:
	}
	live, idle := a.sessions.beginDrain()
	a.log.Info("draining: no new sessions", zap.Int("sessions", live), zap.Duration("drain_timeout", a.cfg.DrainTimeout))

	timer := time.NewTimer(a.cfg.DrainTimeout)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	case <-a.cut:
	}
	cut, ended := a.sessions.remaining()
	a.eachLink(func(l *tunnel.Link) { l.Close(wire.ReasonShutdown, "agent stopped") })
	<-told
	a.reportDrain(cut, ended, time.Since(start))
}

// reportDrain tells what became of the sessions that were live at the start.
func (a *Agent) reportDrain(cut []string, ended map[wire.Reason]int, took time.Duration) {
	lost, finished := ended[wire.ReasonLinkLost], 0
	for _, n := range ended {
		finished += n
	}
	fields := []zap.Field{zap.Int("finished", finished-lost), zap.Int("lost", lost), zap.Int("cut", len(cut)), zap.Duration("took", took)}
	if len(cut) == 0 {
		a.log.Info("drained", fields...)
		return
	}
	a.log.Warn("drained, and cut sessions that were still live", append(fields,
		zap.Strings("cut_sessions", cut[:min(len(cut), maxNamed)]))...)
}

// eachLink runs f for every link that is up, at the same time: one that is
// stuck must not hold up the others.
func (a *Agent) eachLink(f func(*tunnel.Link)) {
	var wg sync.WaitGroup
	for _, s := range a.links {
		if l := s.currentLink(); l != nil {
			wg.Go(func() { f(l) })
		}
	}
	wg.Wait()
}
