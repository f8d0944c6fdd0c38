package hub

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// DrainReport tells how a drain went.
type DrainReport struct {
	Finished int           // sessions that ended by themselves
	Cut      []string      // names of those that had to be ended
	Links    int           // links that were closed
	Took     time.Duration // from the start until all was over
}

// drain is a drain in progress or done. Its fields are guarded by Hub.mu
// until done is closed, and constant after.
type drain struct {
	started int           // sessions live when it began
	empty   chan struct{} // closed when no session is left
	done    chan struct{} // closed when report is final
	report  DrainReport
}

func (d *drain) sessionEndedLocked(left int) {
	if left > 0 {
		return
	}
	select {
	case <-d.empty:
	default:
		close(d.empty)
	}
}

func (h *Hub) isDraining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drain != nil
}

// Draining reports whether Drain has been called.
func (h *Hub) Draining() bool { return h.isDraining() }

// cutTime is how long sessions that were cut may take to say farewell.
const cutTime = 3 * time.Second

// Drain takes the hub out of service: no new sessions, agents are told, and
// running sessions go on until they end or ctx does; what is left then is cut
// with reason shutdown. It returns when every session and link is gone; Undrain
// is the way back. Calls while it goes on, and after it, wait for its report;
// their ctx does not shorten it. Clients in this process that hold sessions for
// later are told (Client.OnDrain).
func (h *Hub) Drain(ctx context.Context) DrainReport {
	h.mu.Lock()
	if d := h.drain; d != nil {
		h.mu.Unlock()
		<-d.done
		return d.report
	}
	began := time.Now()
	d := &drain{started: h.live, empty: make(chan struct{}), done: make(chan struct{})}
	h.drain = d
	d.sessionEndedLocked(h.live)
	links := h.linksLocked()
	h.mu.Unlock()
	defer close(d.done)

	for _, l := range links {
		go l.Drain("hub is draining") // a stuck link must not hold up the others
	}
	for _, s := range h.sessionsNow() {
		if tell := s.client.OnDrain; tell != nil {
			go tell()
		}
	}
	select {
	case <-d.empty:
	case <-ctx.Done():
	}
	for _, s := range h.sessionsNow() {
		d.report.Cut = append(d.report.Cut, s.name)
		s.end(wire.ReasonShutdown, "hub is shutting down")
	}
	slices.Sort(d.report.Cut)
	select {
	case <-d.empty:
	case <-time.After(cutTime):
	}
	d.report.Finished = d.started - len(d.report.Cut)
	d.report.Links = h.closeLinks()
	h.stopJudging()
	d.report.Took = time.Since(began)
	h.logger().Info("hub drained", zap.Int("finished", d.report.Finished), zap.Int("cut", len(d.report.Cut)),
		zap.Strings("cut_sessions", d.report.Cut), zap.Int("links", d.report.Links), zap.Duration("took", d.report.Took))
	return d.report
}

// ErrDraining is why Undrain must wait.
var ErrDraining = errors.New("the drain is not over yet")

// Undrain puts a drained hub back into service; one that is in service stays
// so. Agents come back by themselves, half a minute later at the latest.
func (h *Hub) Undrain() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.drain == nil {
		return nil
	}
	select {
	case <-h.drain.done:
	default:
		return ErrDraining
	}
	h.drain, h.closed = nil, false
	h.judgment, h.silence = context.WithCancel(context.Background())
	h.judging = new(sync.WaitGroup) // a Decider that forgot its context may still be in the old one
	h.leases.armed = 0
	h.armLocked()
	h.logger().Info("hub is back in service")
	return nil
}

// Close drains without patience.
func (h *Hub) Close() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.Drain(ctx)
}

// closeLinks closes every link and waits until they are gone.
func (h *Hub) closeLinks() int {
	h.mu.Lock()
	links := h.linksLocked()
	h.mu.Unlock()
	done := make(chan struct{}, len(links))
	for _, l := range links {
		go func() {
			l.Close(wire.ReasonShutdown, "hub is shutting down")
			done <- struct{}{}
		}()
	}
	for range links {
		<-done
	}
	return len(links)
}

func (h *Hub) linksLocked() []*link {
	var links []*link
	for _, a := range h.agents {
		links = append(links, a.links...)
	}
	return links
}

func (h *Hub) sessionsNow() []*session {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*session
	for _, c := range h.connectors {
		for s := range c.sessions {
			out = append(out, s)
		}
	}
	return out
}
