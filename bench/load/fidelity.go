package load

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nowconnect/nowconnect/bench/target"
)

// Kinds about how an end of a connection looks from the other end.
const (
	Fidelity = "fidelity" // Conns tries each of half-close, reset by target, reset by client
	Refused  = "refused"  // the target is gone: Conns tries, how many were told by a reset
	Recover  = "recover"  // tries until one exchange succeeds, for at most Window
)

func percentOf(n int, ok func() bool) float64 {
	good := 0
	for range n {
		if ok() {
			good++
		}
	}
	return 100 * float64(good) / float64(n)
}

func (r *run) fidelity() (Result, error) {
	ctl, err := r.dial(r.Count, modeWithID(target.Count, r.id)...)
	if err != nil {
		return nil, err
	}
	res := Result{
		"half-close passed %":   percentOf(r.Conns, r.halfClose),
		"target's RST passed %": percentOf(r.Conns, r.targetResets),
	}
	opened := percentOf(r.Conns, r.clientResets)
	time.Sleep(200 * time.Millisecond) // the last resets reach the target
	_, seen, err := askCount(ctl)
	if err != nil {
		return nil, err
	}
	if opened > 0 {
		res["client's RST passed %"] = 100 * float64(seen) / float64(r.Conns)
	}
	return res, nil
}

const endLimit = 2 * time.Second

// open connects for one try and says first; the deadline covers the whole try.
func (r *run) open(first ...byte) (*net.TCPConn, error) {
	c, err := r.dial(r.Addr, first...)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(endLimit))
	return c.(*net.TCPConn), nil
}

// halfClose ends its own direction and wants the answer that the target gives after that.
func (r *run) halfClose() bool {
	const size = 100 << 10
	c, err := r.open(target.HalfClose)
	if err != nil {
		return false
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, size)); err != nil || c.CloseWrite() != nil {
		return false
	}
	ans, err := io.ReadAll(c)
	return err == nil && len(ans) == 8 && binary.BigEndian.Uint64(ans) == size
}

// targetResets wants the target's byte and then a reset, not a clean end.
func (r *run) targetResets() bool {
	c, err := r.open(target.Reset)
	if err != nil {
		return false
	}
	defer c.Close()
	_, err = io.ReadAll(c)
	return errors.Is(err, syscall.ECONNRESET)
}

// clientResets resets a connection that the target is reading.
func (r *run) clientResets() bool {
	c, err := r.open(modeWithID(target.Watch, r.id)...)
	if err != nil {
		return false
	}
	var ready [1]byte
	_, err = io.ReadFull(c, ready[:])
	_ = c.SetLinger(0)
	c.Close()
	return err == nil
}

func (r *run) refused() (Result, error) {
	return Result{"refusal passed %": percentOf(r.Conns, func() bool {
		c, err := r.open(target.RequestResponse)
		if err == nil {
			defer c.Close()
			_, err = io.ReadAll(c)
		}
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED)
	})}, nil
}

// At is when something was seen, in Unix nanoseconds.
const At = "x at"

// recover starts a try every few milliseconds, because a try may hang on a
// system that is half down, and returns the moment of the first answer.
func (r *run) recover() (Result, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.Window)
	defer cancel()
	var at atomic.Int64
	var wg sync.WaitGroup
	for t := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-t.C {
		wg.Go(func() {
			d := net.Dialer{Timeout: time.Second}
			c, err := d.DialContext(ctx, "tcp", r.Addr)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if exchange(c, target.RequestResponse) == nil {
				at.CompareAndSwap(0, time.Now().UnixNano())
				cancel()
			}
		})
	}
	wg.Wait()
	if at.Load() == 0 {
		return nil, errors.New("no answer in time")
	}
	return Result{At: float64(at.Load())}, nil
}
