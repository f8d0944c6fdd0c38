package wan

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type packet struct {
	due time.Time
	buf *[]byte
	n   int
}

// inFlight bounds the packets on the way; 40 ms at 500 Mbit/s are 1700.
const inFlight = 1 << 16

// carry moves packets one way. What the bottleneck cannot take is dropped
// here, so the sender's TCP sees a full queue as on a real link.
func (l *Link) carry(from, to int) {
	bufs := sync.Pool{New: func() any { b := make([]byte, 2048); return &b }}
	fifo := make(chan packet, inFlight)
	go deliver(fifo, to, &bufs)
	runtime.LockOSThread() // blocking reads in a thread of its own, not through the poller
	perByte := 8e3 / l.Rate
	var free time.Time // when the bottleneck will have sent all it holds
	for {
		b := bufs.Get().(*[]byte)
		n, err := unix.Read(from, *b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if l.blackhole.Load() || free.Sub(now) > l.Queue || rand.Float64() < l.Loss/100 {
			bufs.Put(b)
			continue
		}
		free = free.Add(time.Duration(float64(n) * perByte))
		select {
		case fifo <- packet{free.Add(l.RTT / 2), b, n}:
		default:
			bufs.Put(b)
		}
	}
}

func deliver(fifo <-chan packet, to int, bufs *sync.Pool) {
	runtime.LockOSThread() // the kernel's sleep is finer than the runtime's timers
	for p := range fifo {
		if d := time.Until(p.due); d > 0 {
			ts := unix.NsecToTimespec(int64(d))
			_ = unix.Nanosleep(&ts, nil) // woken early: the packet comes early by as much
		}
		_, _ = unix.Write(to, (*p.buf)[:p.n]) // a full device drops, as devices do
		bufs.Put(p.buf)
	}
}
