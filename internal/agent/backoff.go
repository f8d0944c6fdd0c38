package agent

import (
	"math/rand/v2"
	"time"
)

const (
	// steadyLink is how long a link must have lived for its loss to count as a
	// new trouble and not as more of the last one.
	steadyLink = 10 * time.Second

	// quickRetry is how long a link must have been down for the delays to
	// grow: a hub that restarts is back within seconds, and a refused TCP
	// connect costs nobody anything.
	quickRetry = 5 * time.Second

	// refusedMin is the least delay after a refusal: what is refused now is not
	// welcome in 200 ms, and a proxy may count wrong passwords.
	refusedMin = 2 * time.Second

	// busyMax bounds the delay after a hub that takes no agents now: that
	// passes, and its Retry-After says no more than this.
	busyMax = 5 * time.Second
)

// backoff spaces the attempts of one link. Owned by that link's loop.
type backoff struct {
	min, max time.Duration
	since    time.Time     // when the trouble began, moved on by the time that links lived meanwhile; zero while there is none
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
	case t == troubleRefused:
		b.last = min(max(2*b.last, refusedMin), b.max)
	default:
		b.last = min(max(2*b.last, b.min), b.max)
	}
	return b.last/2 + rand.N(b.last/2+1)
}

// lived notes that there was a link for d. A long life ends the trouble; a
// short one does not, but was no downtime either.
func (b *backoff) lived(d time.Duration) {
	switch {
	case d >= steadyLink:
		b.since, b.last = time.Time{}, 0
	case !b.since.IsZero():
		b.since = b.since.Add(d)
	}
}
