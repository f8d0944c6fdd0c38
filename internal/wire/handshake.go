package wire

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Bounds on names that cross the wire or become metric labels.
const (
	MaxName       = 64   // bytes in an agent id or connector name
	MaxConnectors = 1024 // connectors that one agent may announce
	MaxLinks      = 16   // links that one agent may hold
)

// Hello is the agent's first frame. Unknown JSON fields are ignored, so that
// a newer agent can talk to an older hub.
type Hello struct {
	Version      int      `json:"version"`
	Capabilities []string `json:"capabilities,omitempty"`
	AgentID      string   `json:"agent_id"`
	// Instance is random per agent process. A login with the same Instance
	// and Link as a live one takes that one's place.
	Instance string `json:"instance"`
	Link     int    `json:"link"` // 0 to MaxLinks-1: which of the agent's links this is
	// Handover asks that a live link whose place this one takes is drained and
	// not closed. Only for hubs with [CapHandover].
	Handover   bool     `json:"handover,omitempty"`
	Connectors []string `json:"connectors"`
	// Window is how many bytes of each session the agent accepts before it
	// has granted credit, from 1 to MaxWindow. It covers the client bytes
	// that follow OPEN at once.
	Window   uint32 `json:"window"`
	Software string `json:"software,omitempty"` // for logs: name and version
}

// HelloAck is the hub's answer.
type HelloAck struct {
	Version      int      `json:"version"`
	Capabilities []string `json:"capabilities,omitempty"`
	Accepted     []string `json:"accepted"`          // connectors that this agent now serves
	Refused      []string `json:"refused,omitempty"` // connectors that the hub's configuration does not give it
	// PingInterval and PingTimeout are the hub's own, in milliseconds; for
	// the agent's log only, it keeps its own.
	PingInterval int64 `json:"ping_interval_ms"`
	PingTimeout  int64 `json:"ping_timeout_ms"`
	MaxSessions  int   `json:"max_sessions,omitempty"`
	// MaxLinks is how many links the hub lets this agent hold. 0 is the answer
	// of a hub that does not tell.
	MaxLinks int    `json:"max_links,omitempty"`
	Hub      string `json:"hub,omitempty"` // for logs: the hub's id
	// ExpiresIn is for how many milliseconds from now the hub will hold the
	// credential good; 0 means for ever. A duration and not a date, because the
	// clocks of the two need not agree.
	ExpiresIn int64 `json:"expires_in_ms,omitempty"`
}

// Capabilities of version 1. An agent lists those it has in HELLO; the hub
// answers with those that hold for the link.
const (
	// CapReauth: the agent may renew the link's credential with AUTH.
	CapReauth = "reauth"
	// CapHandover: the hub knows Hello.Handover.
	CapHandover = "handover"
)

// AuthAck is the hub's answer to AUTH. Without Error the new credential is in
// force.
type AuthAck struct {
	Error   AuthError `json:"error,omitempty"`
	Message string    `json:"message,omitempty"` // for the agent's log; never a part of the credential
	// RetryAfter is how many milliseconds to wait before the next AUTH; 0
	// leaves it to the agent.
	RetryAfter int64 `json:"retry_after_ms,omitempty"`
	ExpiresIn  int64 `json:"expires_in_ms,omitempty"` // as in HelloAck
	// Accepted and Refused are as in HelloAck. Both are absent when they do
	// not fit into the frame.
	Accepted []string `json:"accepted,omitempty"`
	Refused  []string `json:"refused,omitempty"`
}

// AuthError tells why a new credential is not in force. The one before is.
type AuthError string

// The errors of AUTH_ACK. A word that a receiver does not know counts as
// AuthRefused.
const (
	AuthRefused     AuthError = "refused"     // the credential is not good for this link
	AuthUnavailable AuthError = "unavailable" // the hub cannot tell now
	AuthLimit       AuthError = "limit"       // too many AUTH frames; this one was not looked at
)

// MaxWindow caps what either side may let a peer send unasked, and the sum of
// a session's outstanding credit.
const MaxWindow = 64 << 20

// Open asks the agent for a session.
type Open struct {
	Connector string `json:"connector"`
	Session   string `json:"session"` // the hub's name for the session, as in its logs
	// Window is how many bytes the agent may send before it is granted more.
	Window uint32 `json:"window"`
	// ConnectTimeout bounds the agent's dial, in milliseconds. 0 leaves it to
	// the agent; the agent's own bound holds as well.
	ConnectTimeout int64  `json:"connect_timeout_ms,omitempty"`
	Client         string `json:"client,omitempty"` // address of the client, for the agent's log
}

// Validate reports the first fault, naming its field.
func (h *Hello) Validate() error {
	if h.Version != Version {
		return fmt.Errorf("hello: version %d, this hub speaks %d: %w", h.Version, Version, ErrWrongVersion)
	}
	if err := CheckName(h.AgentID); err != nil {
		return fmt.Errorf("hello: agent_id: %w", err)
	}
	if err := CheckName(h.Instance); err != nil {
		return fmt.Errorf("hello: instance: %w", err)
	}
	if h.Link < 0 || h.Link >= MaxLinks {
		return fmt.Errorf("hello: link %d is not in 0..%d: %w", h.Link, MaxLinks-1, ErrBadHandshake)
	}
	if h.Window == 0 || h.Window > MaxWindow {
		return fmt.Errorf("hello: window %d is not in 1..%d: %w", h.Window, MaxWindow, ErrBadHandshake)
	}
	return checkNames("hello: connectors", h.Connectors)
}

// Validate reports the first fault, naming its field.
func (a *HelloAck) Validate() error {
	if a.Version != Version {
		return fmt.Errorf("hello_ack: version %d, this agent speaks %d: %w", a.Version, Version, ErrWrongVersion)
	}
	if a.MaxLinks < 0 || a.MaxLinks > MaxLinks {
		return fmt.Errorf("hello_ack: max_links %d is not in 0..%d: %w", a.MaxLinks, MaxLinks, ErrBadHandshake)
	}
	if a.ExpiresIn < 0 {
		return fmt.Errorf("hello_ack: expires_in_ms is negative: %w", ErrBadHandshake)
	}
	if err := checkNames("hello_ack: accepted", a.Accepted); err != nil {
		return err
	}
	return checkNames("hello_ack: refused", a.Refused)
}

// Validate reports the first fault, naming its field.
func (a *AuthAck) Validate() error {
	if a.ExpiresIn < 0 || a.RetryAfter < 0 {
		return fmt.Errorf("auth_ack: negative time: %w", ErrBadFrame)
	}
	if len(a.Message) > MaxMessage {
		return fmt.Errorf("auth_ack: message is longer than %d bytes: %w", MaxMessage, ErrBadFrame)
	}
	if err := checkNames("auth_ack: accepted", a.Accepted); err != nil {
		return err
	}
	return checkNames("auth_ack: refused", a.Refused)
}

// Validate reports the first fault, naming its field.
func (o *Open) Validate() error {
	if err := CheckName(o.Connector); err != nil {
		return fmt.Errorf("open: connector: %w", err)
	}
	if len(o.Session) > MaxName {
		return fmt.Errorf("open: session is longer than %d bytes: %w", MaxName, ErrBadFrame)
	}
	if o.Window == 0 || o.Window > MaxWindow {
		return fmt.Errorf("open: window %d is not in 1..%d: %w", o.Window, MaxWindow, ErrBadFrame)
	}
	if o.ConnectTimeout < 0 {
		return fmt.Errorf("open: connect_timeout_ms is negative: %w", ErrBadFrame)
	}
	return nil
}

// CheckName reports whether s can name an agent, instance or connector: 1 to
// MaxName letters, digits, dots, hyphens and underscores, not starting with a
// dot or hyphen. Names compare byte for byte; nothing folds case, so that
// routing, policy and audit can never disagree about who is meant.
func CheckName(s string) error {
	if s == "" || len(s) > MaxName {
		return fmt.Errorf("name has %d bytes, not 1 to %d: %w", len(s), MaxName, ErrBadHandshake)
	}
	if s[0] == '.' || s[0] == '-' {
		return fmt.Errorf("name %q starts with %q: %w", s, s[0], ErrBadHandshake)
	}
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_')
	}
	if i := strings.IndexFunc(s, bad); i >= 0 {
		return fmt.Errorf("name %q has a character other than letters, digits, '.', '-' and '_': %w", s, ErrBadHandshake)
	}
	return nil
}

func checkNames(field string, names []string) error {
	if len(names) > MaxConnectors {
		return fmt.Errorf("%s: %d names, at most %d: %w", field, len(names), MaxConnectors, ErrBadHandshake)
	}
	for i, n := range names {
		if err := CheckName(n); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		if slices.Contains(names[:i], n) {
			return fmt.Errorf("%s: %q twice: %w", field, n, ErrBadHandshake)
		}
	}
	return nil
}

// validator is a JSON message that can judge itself.
type validator interface{ Validate() error }

// Decode parses a JSON payload into m and validates it.
func Decode(p []byte, m validator) error {
	if err := json.Unmarshal(p, m); err != nil {
		return fmt.Errorf("%w: %w", ErrBadHandshake, err)
	}
	return m.Validate()
}

// AppendMessage appends a frame whose payload is m as JSON. It fails when m is
// invalid or does not fit into max bytes.
func AppendMessage(b []byte, t Type, cid CID, m validator, max int) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	p, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %v: %w", t, err)
	}
	if len(p) > max {
		return nil, fmt.Errorf("encode %v: %d bytes, at most %d: %w", t, len(p), max, ErrFrameTooLong)
	}
	return AppendFrame(b, t, cid, p), nil
}
