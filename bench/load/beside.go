package load

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/bench/proc"
	"github.com/nowconnect/nowconnect/bench/target"
)

// pacer sends requests on its connections at fixed times, whether or not
// earlier ones were answered, and times each from the moment it was due.
type pacer struct {
	lat   []latencies  // per connection
	stuck atomic.Int64 // requests without an answer lateLimit after the window
}

// lateLimit is how long after the window answers still count.
const lateLimit = 3 * time.Second

// pace drives conns at rate for warm and window; begin and end of the window
// are the caller's to see through r.window.
func (r *run) pace(conns []net.Conn, rate float64) (*pacer, func()) {
	p := &pacer{lat: make([]latencies, len(conns))}
	every := time.Duration(float64(time.Second) / rate)
	t0 := time.Now()
	from, to := t0.Add(r.Warm), t0.Add(r.Warm+r.Window)
	var wg sync.WaitGroup
	for i, c := range conns {
		due := make(chan time.Time, int(float64(r.Warm+r.Window)/float64(every))+2)
		_ = c.SetDeadline(to.Add(lateLimit))
		wg.Go(func() {
			defer close(due)
			var req [target.RequestSize]byte
			for t := t0.Add(rand.N(every)); t.Before(to); t = t.Add(every) {
				time.Sleep(time.Until(t))
				due <- t
				if _, err := c.Write(req[:]); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			var rep [target.ReplySize]byte
			var err error
			for t := range due {
				if err == nil {
					_, err = io.ReadFull(c, rep[:])
				}
				if t.Before(from) {
					continue
				}
				// One that never came counts with the time it was waited for.
				p.lat[i] = append(p.lat[i], time.Since(t))
				if err != nil {
					p.stuck.Add(1)
				}
			}
		})
	}
	return p, wg.Wait
}

const bulkRamp = 300 * time.Millisecond

// pacedBeside measures paced requests beside Bulk saturating downward streams.
func (r *run) pacedBeside() (Result, error) {
	conns, err := r.openReady(r.Conns)
	if err != nil {
		return nil, err
	}
	f := &flow{total: func() (time.Duration, int64, error) { return 0, 0, nil }}
	if r.Bulk > 0 {
		if f, err = r.openSources(r.Bulk); err != nil {
			return nil, err
		}
		time.Sleep(bulkRamp)
	}
	p, wait := r.pace(conns, r.Rate)
	var b0, b1 int64
	d, hub, agent := r.window(func() { _, b0, _ = f.total() }, func() { _, b1, _ = f.total() })
	wait()
	all := merge(p.lat)
	res := Result{
		"p50 us": all.at(0.5), "p99 us": all.at(0.99), "unanswered": float64(p.stuck.Load()),
		"bulk MB/s": float64(b1-b0) / 1e6 / d.Seconds(), "errors": float64(f.fails.Load()),
	}
	explain(res, "s", d.Seconds(), hub, agent)
	return res, nil
}

// stalled measures what Stalled clients that never read do to the others and
// to the memory of hub and agent.
func (r *run) stalled() (Result, error) {
	// One of everything first, so that memory for the first use is not charged to the stalled.
	if _, err := r.openReady(1); err != nil {
		return nil, err
	}
	rss0 := proc.RSS(r.Hub) + proc.RSS(r.Agent)
	for range r.Stalled {
		if _, err := r.dial(r.Addr, target.Source); err != nil {
			return nil, fmt.Errorf("open a client that stalls: %w", err)
		}
	}
	time.Sleep(time.Second) // windows and socket buffers fill up
	res := Result{"RSS KB each": float64(proc.RSS(r.Hub)+proc.RSS(r.Agent)-rss0) / 1e3 / float64(max(r.Stalled, 1))}
	conns, _ := r.openReady(r.Conns)
	res["stuck conns"] = float64(r.Conns - len(conns))
	p, wait := r.pace(conns, r.Rate)
	wait()
	all := merge(p.lat)
	res["p50 us"], res["p99 us"] = all.at(0.5), all.at(0.99)
	res["unanswered"] = float64(p.stuck.Load())
	if len(conns) < r.Conns {
		res["bulk MB/s"] = 0 // nobody gets through: do not wait for the time limit again
		return res, nil
	}
	f, err := r.openSources(1)
	if err != nil {
		res["bulk MB/s"] = 0
		return res, nil
	}
	var b0, b1 int64
	d, _, _ := r.window(func() { _, b0, _ = f.total() }, func() { _, b1, _ = f.total() })
	res["bulk MB/s"] = float64(b1-b0) / 1e6 / d.Seconds()
	return res, nil
}

// idle measures what Conns connections cost that did one exchange and wait.
func (r *run) idle() (Result, error) {
	if _, err := r.openReady(64); err != nil {
		return nil, err
	}
	r.dropAll()
	time.Sleep(500 * time.Millisecond)
	rss0 := proc.RSS(r.Hub) + proc.RSS(r.Agent)
	fds0 := proc.Descriptors(r.Hub) + proc.Descriptors(r.Agent)
	t0 := time.Now()
	conns, err := r.openReady(r.Conns)
	opened := time.Since(t0)
	if len(conns) == 0 {
		return nil, err
	}
	time.Sleep(r.Warm) // whoever frees memory after the burst may do so
	n := float64(len(conns))
	res := Result{
		"RSS KB/conn": float64(proc.RSS(r.Hub)+proc.RSS(r.Agent)-rss0) / 1e3 / n,
		"fds/conn":    float64(proc.Descriptors(r.Hub)+proc.Descriptors(r.Agent)-fds0) / n,
		"opened/s":    n / opened.Seconds(),
		"failed":      float64(r.Conns - len(conns)),
	}
	hub0, agent0 := sample(r.Hub), sample(r.Agent)
	time.Sleep(r.Window)
	cpu := sample(r.Hub).Sub(hub0).CPU + sample(r.Agent).Sub(agent0).CPU
	res["idle CPU %"] = 100 * cpu.Seconds() / r.Window.Seconds()
	dead := 0
	for _, c := range conns[:min(len(conns), 200)] {
		_ = c.SetDeadline(time.Now().Add(ioLimit))
		if exchange(c) != nil {
			dead++
		}
	}
	res["dead of 200"] = float64(dead)
	return res, nil
}

// dropAll closes what is open so far.
func (r *run) dropAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}
