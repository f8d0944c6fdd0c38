package nowconnect

import (
	"errors"

	"go.uber.org/zap"
)

// Audit says what goes into the log `nowconnect.audit`.
type Audit struct {
	// SampleAllows is the part of all sessions, from 0 to 1, whose allows are
	// logged: that at the beginning and those of later judgements. Denials,
	// errors and the ends of sessions are always logged. Default: 1, all.
	SampleAllows *float64 `json:"sample_allows,omitempty"`
}

var errSample = errors.New("audit: sample_allows is not from 0 to 1")

func (a *Audit) check() error {
	if s := a.sampleAllows(); !(s >= 0 && s <= 1) { // nor NaN
		return errSample
	}
	return nil
}

func (a *Audit) sampleAllows() float64 {
	if a == nil || a.SampleAllows == nil {
		return 1
	}
	return *a.SampleAllows
}

// AuditLogger returns the log of decisions and of sessions' ends, which a
// configuration can route to a sink of its own by the name nowconnect.audit.
func (a *App) AuditLogger() *zap.Logger { return a.logger.Named("audit") }
