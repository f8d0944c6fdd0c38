package agent

import (
	"math/rand/v2"
	"time"
)

const (
	// steadyLink is how long a link must have lived for its loss to count as a
	// new trouble and not as more of the last one.
	steadyLink = 10 * time.Second

	// quickRetry is how long a lost link is retried at the least delay before
	// the delays grow: a hub that restarts is back within seconds, and a
	// refused TCP connect costs nobody anything.
	quickRetry = 5 * time.Second

	// busyMax bounds the delay after a hub that takes no agents now: that
	// passes, and its Retry-After says no more than this.
	busyMax = 5 * time.Second
)

// backoff spaces the attempts of one link. Owned by that link's loop.
type backoff struct {
	min, max time.Duration
	since    time.Time     // when the trouble began; zero while there is none
	last     time.Duration // the delay before jitter; 0 before the first
}

// next returns how long to wait before the next attempt. All delays are
// jittered into their upper half, so that the agents of a hub that went away
// do not return in step.
func (b *backoff) next(t trouble) time.Duration {
	now := time.Now()
	if b.since.IsZero() {
		b.since = now
	}
	switch {
	case t == troubleSuperseded:
		b.last = b.max
	case t == troubleLost && now.Sub(b.since) < quickRetry:
		b.last = b.min
	case t == troubleBusy:
		b.last = min(max(2*b.last, b.min), busyMax, b.max)
	default:
		b.last = min(max(2*b.last, b.min), b.max)
	}
	return b.last/2 + rand.N(b.last/2+1)
}

// reset forgets the trouble.
func (b *backoff) reset() { b.since, b.last = time.Time{}, 0 }
