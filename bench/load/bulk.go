package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/nowconnect/nowconnect/bench/target"
)

// flow is a set of saturating streams and the way to read how far they got.
type flow struct {
	total func() (at time.Duration, bytes int64, err error)
	fails atomic.Int64
}

// bulk measures Conns streams that open opens.
func (r *run) bulk(open func(n int) (*flow, error)) (Result, error) {
	f, err := open(r.Conns)
	if err != nil {
		return nil, err
	}
	var t0, t1 time.Duration
	var b0, b1 int64
	var err0, err1 error
	_, hub, agent := r.window(
		func() { t0, b0, err0 = f.total() },
		func() { t1, b1, err1 = f.total() })
	if err0 != nil || err1 != nil {
		return nil, fmt.Errorf("count bytes: %w", first(err0, err1))
	}
	n := float64(b1 - b0)
	if n <= 0 {
		return nil, fmt.Errorf("no bytes moved in %v", t1-t0)
	}
	res := Result{
		"MB/s":     n / 1e6 / (t1 - t0).Seconds(),
		"CPU s/GB": (hub.CPU + agent.CPU).Seconds() / (n / 1e9),
		"errors":   float64(f.fails.Load()),
	}
	explain(res, "MB", n/1e6, hub, agent)
	return res, nil
}

func first(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

const chunk = 256 << 10

// openSources starts n readers of endless streams and waits until each has its first bytes.
func (r *run) openSources(n int) (*flow, error) {
	var got atomic.Int64
	started := time.Now()
	f := &flow{total: func() (time.Duration, int64, error) { return time.Since(started), got.Load(), nil }}
	for range n {
		c, err := r.dial(r.Addr, target.Source)
		if err != nil {
			return nil, fmt.Errorf("open stream: %w", err)
		}
		buf := make([]byte, chunk)
		_ = c.SetReadDeadline(time.Now().Add(ioLimit))
		if _, err := c.Read(buf); err != nil {
			return nil, fmt.Errorf("first bytes of a stream: %w", err)
		}
		_ = c.SetReadDeadline(time.Time{})
		r.wg.Go(func() {
			for {
				k, err := c.Read(buf)
				got.Add(int64(k))
				if err != nil {
					r.failUnlessEnded(f)
					return
				}
			}
		})
	}
	return f, nil
}

func (r *run) failUnlessEnded(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		f.fails.Add(1)
	}
}

// openSinks starts n writers of endless streams; what counts is what the target took.
func (r *run) openSinks(n int) (*flow, error) {
	ctl, err := r.dial(r.Count, modeWithID(target.Count, r.id)...)
	if err != nil {
		return nil, fmt.Errorf("reach the target for counting: %w", err)
	}
	f := &flow{total: func() (time.Duration, int64, error) { return askCount(ctl) }}
	for range n {
		c, err := r.dial(r.Addr, modeWithID(target.Sink, r.id)...)
		if err != nil {
			return nil, fmt.Errorf("open stream: %w", err)
		}
		r.wg.Go(func() {
			buf := make([]byte, chunk)
			for {
				if _, err := c.Write(buf); err != nil {
					r.failUnlessEnded(f)
					return
				}
			}
		})
	}
	return f, nil
}

func askCount(c net.Conn) (time.Duration, int64, error) {
	_ = c.SetDeadline(time.Now().Add(ioLimit))
	if _, err := c.Write([]byte{0}); err != nil {
		return 0, 0, err
	}
	var ans [target.CountSize]byte
	if _, err := io.ReadFull(c, ans[:]); err != nil {
		return 0, 0, err
	}
	return time.Duration(binary.BigEndian.Uint64(ans[:8])), int64(binary.BigEndian.Uint64(ans[8:])), nil
}
