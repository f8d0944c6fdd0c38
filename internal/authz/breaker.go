package authz

import (
	"math/rand/v2"
	"sync"
	"time"
)

// breaker stops asking an engine that failed several times in a row, so that
// clients learn at once what they would otherwise learn after a timeout, and
// the engine can recover. After a pause one question goes through as a probe;
// if it is answered, all do.
type breaker struct {
	threshold int           // failures in a row that open it
	pause     time.Duration // from opening to the probe, ± 20 %
	changed   func(open bool)

	mu       sync.Mutex
	failures int       // in a row, while closed
	until    time.Time // end of the pause; zero while closed
	probing  bool
	epoch    uint64 // changes with every state: answers from before it count no more
}

// admit reports whether the engine may be asked. Whoever is admitted reports.
func (b *breaker) admit() (epoch uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.until.IsZero() {
		if b.probing || time.Now().Before(b.until) {
			return 0, false
		}
		b.probing = true
		b.epoch++
	}
	return b.epoch, true
}

// report tells how it went.
func (b *breaker) report(epoch uint64, h health) {
	b.mu.Lock()
	wasOpen := !b.until.IsZero()
	if epoch == b.epoch {
		b.reportLocked(h, wasOpen)
	}
	isOpen := !b.until.IsZero()
	b.mu.Unlock()
	if b.changed != nil && wasOpen != isOpen {
		b.changed(isOpen)
	}
}

func (b *breaker) reportLocked(h health, wasOpen bool) {
	b.probing = false
	switch {
	case h == healthy:
		b.failures, b.until = 0, time.Time{}
		if wasOpen {
			b.epoch++
		}
	case h == sick && !wasOpen:
		if b.failures++; b.failures >= b.threshold {
			b.openLocked()
		}
	case h == sick:
		b.openLocked()
	}
}

func (b *breaker) openLocked() {
	b.failures = 0
	b.epoch++
	b.until = time.Now().Add(time.Duration(float64(b.pause) * (0.8 + 0.4*rand.Float64())))
}
