package nowconnect

import (
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// LogLimiter keeps strangers from filling the log: it lets some lines pass and
// counts the rest, which the next line that passes tells.
type LogLimiter struct {
	limiter    *rate.Limiter
	suppressed atomic.Int64
}

// NewLogLimiter returns a limiter that lets perSecond lines pass on average,
// and up to burst at once.
func NewLogLimiter(perSecond float64, burst int) *LogLimiter {
	return &LogLimiter{limiter: rate.NewLimiter(rate.Limit(perSecond), burst)}
}

// Allow reports whether a line may be written now. The field says how many
// lines were held back before it.
func (l *LogLimiter) Allow() (zap.Field, bool) {
	if !l.limiter.Allow() {
		l.suppressed.Add(1)
		return zap.Skip(), false
	}
	if n := l.suppressed.Swap(0); n > 0 {
		return zap.Int64("suppressed", n), true
	}
	return zap.Skip(), true
}
