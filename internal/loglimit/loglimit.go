// Package loglimit keeps strangers from filling a log. It owns the count of the
// lines that are held back.
//
// Invariants:
//
//   - No line is held back without being counted.
//   - The next line that passes tells the count, and each line is told once.
package loglimit

import (
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// Limiter lets some lines pass and counts the rest, which the next line that
// passes tells. Safe for concurrent use.
type Limiter struct {
	limiter    *rate.Limiter
	suppressed atomic.Int64
}

// New returns a limiter that lets perSecond lines pass on average, and up to
// burst at once.
func New(perSecond float64, burst int) *Limiter {
	return &Limiter{limiter: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

// Allow reports whether a line may be written now. The field says how many
// lines were held back before it.
func (l *Limiter) Allow() (zap.Field, bool) {
	if !l.limiter.Allow() {
		l.suppressed.Add(1)
		return zap.Skip(), false
	}
	if n := l.suppressed.Swap(0); n > 0 {
		return zap.Int64("suppressed", n), true
	}
	return zap.Skip(), true
}
