// Package authz decides whether a connection may pass. It owns the form of
// the question and of the answer; the engines that answer are elsewhere, each
// behind [Decider].
//
// Invariants:
//
//   - There are three outcomes, not two: allow, deny, and error. An error is
//     never an allow unless the configuration says so in words (on_error allow).
//   - A denial is a [Decision], not a Go error.
//   - The zero Decision is an error, so that a forgotten return fails closed.
package authz

import (
	"context"
	"time"
)

// Request is the question in AuthZEN 1.0 form
// (https://openid.net/specs/authorization-api-1_0.html).
// It must not be changed once a Decider has seen it.
type Request struct {
	Subject  Entity         `json:"subject"`
	Action   Action         `json:"action"`
	Resource Entity         `json:"resource"`
	Context  map[string]any `json:"context,omitempty"`
}

// Entity is a subject or a resource.
type Entity struct {
	Type       string         `json:"type"`
	ID         string         `json:"id"`
	Properties map[string]any `json:"properties,omitempty"`
}

// Action is what the subject wants to do with the resource.
type Action struct {
	Name       string         `json:"name"`
	Properties map[string]any `json:"properties,omitempty"`
}

// ActionConnect is the action of a client connection.
const ActionConnect = "connect"

// Outcome is one of the three answers.
type Outcome uint8

// The outcomes. The zero value is Error: what nobody decided is not allowed.
const (
	Error Outcome = iota
	Allow
	Deny
)

// String returns the value of the metric label "result".
func (o Outcome) String() string {
	switch o {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	default:
		return "error"
	}
}

// Decision is the answer to one Request. It is comparable.
type Decision struct {
	Outcome Outcome
	// Reason is for operators: the rule's id, or what the PDP said. It never
	// reaches the client.
	Reason string
	// Lease is how long an Allow holds before it must be asked again. 0 means
	// until the policy changes.
	Lease time.Duration
	// MaxDuration and MaxBytes are obligations of an Allow, which the hub
	// fulfils: the session ends when it is so old, counted from its acceptance,
	// or when so many bytes have passed, both directions together. 0 means no
	// bound.
	MaxDuration time.Duration
	MaxBytes    int64
	// Policy identifies the version of the policy that decided, for the audit.
	// Empty when the engine does not tell.
	Policy string
	// Engine names who decided, such as "rules", for the audit. Empty when the
	// engine does not tell.
	Engine string
	// ID is the engine's own name for this answer, such as the request id that
	// the PDP has in its log. Empty when it has none. A cached answer keeps it.
	ID string
	// Cached reports that no engine ran for this answer.
	Cached bool
	// Err is set when Outcome is Error, and when it is Allow only because the
	// configuration says so of errors (on_error allow).
	Err error
}

// Decider answers Requests. Implementations are safe for concurrent use,
// honour ctx and never panic on any Request.
type Decider interface {
	Decide(ctx context.Context, r *Request) Decision
}

// DeciderFunc makes a function a Decider.
type DeciderFunc func(ctx context.Context, r *Request) Decision

// Decide calls f.
func (f DeciderFunc) Decide(ctx context.Context, r *Request) Decision { return f(ctx, r) }

// AllowAll allows every request.
var AllowAll Decider = DeciderFunc(func(context.Context, *Request) Decision {
	return Decision{Outcome: Allow, Reason: "allow_all"}
})
