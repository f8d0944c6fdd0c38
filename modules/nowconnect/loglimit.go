package nowconnect

import "github.com/nowconnect/nowconnect/internal/loglimit"

// LogLimiter keeps strangers from filling the log.
type LogLimiter = loglimit.Limiter

// NewLogLimiter returns a limiter that lets perSecond lines pass on average,
// and up to burst at once.
func NewLogLimiter(perSecond float64, burst int) *LogLimiter { return loglimit.New(perSecond, burst) }
