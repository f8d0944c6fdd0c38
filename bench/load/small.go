package load

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/bench/target"
)

// closedLoop measures request and reply on Conns standing connections.
func (r *run) closedLoop() (Result, error) {
	conns, err := r.openReady(r.Conns)
	if err != nil {
		return nil, err
	}
	var measuring, stop atomic.Bool
	var errs atomic.Int64
	lat := make([]latencies, len(conns))
	for i, c := range conns {
		_ = c.SetDeadline(time.Now().Add(r.Warm + r.Window + ioLimit)) // once: a deadline per request costs as much as the request
		r.wg.Go(func() {
			for !stop.Load() {
				t0 := time.Now()
				if exchange(c) != nil {
					errs.Add(1)
					return
				}
				if measuring.Load() {
					lat[i] = append(lat[i], time.Since(t0))
				}
			}
		})
	}
	d, hub, agent := r.window(func() { measuring.Store(true) }, func() { measuring.Store(false) })
	stop.Store(true)
	r.wg.Wait()
	all := merge(lat)
	if len(all) == 0 {
		return nil, fmt.Errorf("no request finished in %v, %d failed", d, errs.Load())
	}
	n := float64(len(all))
	res := Result{
		"ops/s": n / d.Seconds(), "p50 us": all.at(0.5), "p99 us": all.at(0.99),
		"CPU us/op": float64((hub.CPU + agent.CPU).Microseconds()) / n, "errors": float64(errs.Load()),
	}
	explain(res, "op", n, hub, agent)
	return res, nil
}

// churn measures connect, one exchange, close, by Conns workers.
func (r *run) churn() (Result, error) {
	var measuring, stop atomic.Bool
	var errs atomic.Int64
	var firstErr atomic.Pointer[error]
	lat := make([]latencies, r.Conns)
	for i := range r.Conns {
		d := churnDialer(r.Addr, i)
		r.wg.Go(func() {
			for !stop.Load() {
				t0 := time.Now()
				c, err := d.DialContext(r.ctx, "tcp", r.Addr)
				if err == nil {
					_ = c.SetDeadline(t0.Add(ioLimit))
					err = exchange(c, target.RequestResponse)
					c.Close()
				}
				switch {
				case err != nil:
					errs.Add(1)
					firstErr.CompareAndSwap(nil, &err)
					time.Sleep(time.Millisecond)
				case measuring.Load():
					lat[i] = append(lat[i], time.Since(t0))
				}
			}
		})
	}
	d, hub, agent := r.window(func() { measuring.Store(true) }, func() { measuring.Store(false) })
	stop.Store(true)
	r.wg.Wait()
	all := merge(lat)
	if len(all) == 0 {
		if e := firstErr.Load(); e != nil {
			return nil, fmt.Errorf("no connection finished in %v, %d failed, the first: %w", d, errs.Load(), *e)
		}
		return nil, fmt.Errorf("no connection finished in %v", d)
	}
	n := float64(len(all))
	res := Result{
		"conns/s": n / d.Seconds(), "p50 us": all.at(0.5), "p99 us": all.at(0.99),
		"CPU us/conn": float64((hub.CPU + agent.CPU).Microseconds()) / n, "errors": float64(errs.Load()),
	}
	explain(res, "conn", n, hub, agent)
	return res, nil
}
