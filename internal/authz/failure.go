package authz

import "errors"

// Kind is why a question got no answer. It is a closed set.
type Kind string

// The kinds of failure.
const (
	KindTimeout     Kind = "timeout"      // no answer within the deadline
	KindTransport   Kind = "transport"    // no connection, TLS failed, connection broke
	KindRejected    Kind = "rejected"     // the engine answers, but will not judge this question
	KindUnavailable Kind = "unavailable"  // the engine says that it cannot judge now
	KindDecode      Kind = "decode"       // an answer that makes no sense
	KindBreakerOpen Kind = "breaker_open" // not asked: it failed too often just now
	KindLimit       Kind = "limit"        // not asked: too many questions at once
	KindPanic       Kind = "panic"        // the engine's own fault
)

// Failure is the Err of a Decision whose engine gave no answer. An Err that is
// no Failure counts as KindTransport.
type Failure struct {
	Kind Kind
	Err  error
}

// Fail makes the Decision that goes with a Failure.
func Fail(kind Kind, err error) Decision {
	return Decision{Outcome: Error, Err: &Failure{Kind: kind, Err: err}}
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// KindOf tells why d is an Error; it is empty when d is none.
func KindOf(d Decision) Kind {
	if d.Outcome == Allow || d.Outcome == Deny {
		return ""
	}
	if f, ok := errors.AsType[*Failure](d.Err); ok {
		return f.Kind
	}
	return KindTransport
}

// health is what a call says about its engine.
type health uint8

const (
	silent  health = iota // nothing
	healthy               // it is there
	sick                  // it is not, or not of use
)

// healthOf reads it from an answer. A question that the engine rejects shows
// that it lives: counting it would let one client with odd properties shut the
// door for everybody.
func healthOf(d Decision) health {
	switch KindOf(d) {
	case "", KindRejected:
		return healthy
	case KindBreakerOpen, KindLimit:
		return silent
	default:
		return sick
	}
}
