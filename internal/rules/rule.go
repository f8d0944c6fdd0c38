package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Rule is one rule as it is written. All conditions of a rule must hold; of the
// values of one condition, one must.
type Rule struct {
	// ID names the rule; it is the reason of decisions, in logs and in the
	// audit. Default: the effect and the rule's position, such as `allow-3`,
	// with `file-` before it for a rule of the file. Such an id moves when a
	// rule is put before it, so give those that matter a name.
	ID string `json:"id,omitempty"`

	// Effect is `allow` or `deny`. Required.
	Effect string `json:"effect,omitempty"`

	// Connectors names the connectors that the rule is about. Default: all.
	Connectors []string `json:"connectors,omitempty"`

	// Actions lists what the client wants to do: `connect`, and through the
	// HTTP API for groups `group.members.read`, `group.members.add`,
	// `group.members.remove` and `group.members.replace`. Default: for a rule
	// that allows, `connect`; for one that denies, all.
	Actions []string `json:"actions,omitempty"`

	// Sources lists networks, or single addresses, that the client comes from.
	Sources []string `json:"sources,omitempty"`

	// Times lists when the rule holds; one of them must.
	Times []Time `json:"times,omitempty"`

	// TimeZone is the IANA name of the zone in which `times` are read, such as
	// `Europe/Berlin`. Default: UTC.
	TimeZone string `json:"time_zone,omitempty"`

	// SNI lists TLS server names, `*.example.com` standing for one label. The
	// client chooses what it asks for, so this proves nothing about it.
	SNI []string `json:"sni,omitempty"`

	// ClientSANs lists alternative names of the client's verified certificate:
	// `dns:app.example.com`, `dns:*.example.com`, `uri:spiffe://corp/app`,
	// `uri:spiffe://corp/*`, `email:a@example.com`, `email:*@example.com`.
	ClientSANs []string `json:"client_sans,omitempty"`

	// Agents names the agents that would serve the connection. The rule does not
	// choose among them: the hub chooses, and the rule is about its choice.
	Agents []string `json:"agents,omitempty"`

	// Expression is a CEL expression that must be true.
	Expression string `json:"expression,omitempty"`

	// MaxDuration ends the sessions that the rule allows at that age, counted
	// from when the connection was accepted, such as `8h`. From 1s. Default: no
	// bound.
	MaxDuration string `json:"max_duration,omitempty"`

	// MaxBytes ends the sessions that the rule allows before more than so many
	// bytes have passed, both directions together. Default: no bound.
	MaxBytes int64 `json:"max_bytes,omitempty"`
}

// Time is a stretch of time that comes again every week. It is read on the
// clock on the wall: a window in an hour that daylight saving skips does not
// occur that day, in one that it repeats it occurs twice.
type Time struct {
	// Weekdays lists days or ranges of them: `mon`, `mon-fri`, `sat-sun`. A
	// window that crosses midnight belongs to the day on which it begins.
	// Default: every day.
	Weekdays []string `json:"weekdays,omitempty"`

	// Hours lists windows such as `08:00-18:00`, the end not included. When the
	// end is before the begin, it is that of the next day. Default: the whole
	// day.
	Hours []string `json:"hours,omitempty"`
}

// The values of Rule.Effect.
const (
	EffectAllow = "allow"
	EffectDeny  = "deny"
)

// FieldError is a mistake in one field of a rule.
type FieldError struct {
	Field string // its JSON name
	Err   error
}

// Error implements error.
func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

func fieldErrorf(field, format string, args ...any) error {
	return &FieldError{field, fmt.Errorf(format, args...)}
}

// UnmarshalJSON reads a rule and refuses what encoding/json lets pass and a
// policy must not: words that are not known, doubled ones, and null, which
// would leave a condition out.
func (r *Rule) UnmarshalJSON(b []byte) error {
	members, err := membersOf(b)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.null {
			return fieldErrorf(m.name, "null is no value; leave the word out")
		}
	}
	type plain Rule
	var p plain
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return atField(members, err)
	}
	*r = Rule(p)
	return nil
}

// UnmarshalJSON does for a time what Rule's does for a rule.
func (t *Time) UnmarshalJSON(b []byte) error {
	var r struct {
		Weekdays []string `json:"weekdays"`
		Hours    []string `json:"hours"`
	}
	members, err := membersOf(b)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.null {
			return fmt.Errorf("%s: null is no value; leave the word out", m.name)
		}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return err
	}
	t.Weekdays, t.Hours = r.Weekdays, r.Hours
	return nil
}

// member is one name of a JSON object.
type member struct {
	name   string
	offset int64 // where the name begins
	null   bool
}

// membersOf lists the names of the object b, which must be one. With an error it
// lists those up to the mistake.
func membersOf(b []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	var members []member
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return members, err
		}
		m := member{name: t.(string), offset: d.InputOffset() - 1}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return members, err
		}
		m.null = string(v) == "null"
		members = append(members, m)
		if seen[strings.ToLower(m.name)] { // encoding/json does not mind case
			return members, &FieldError{m.name, errors.New("twice in the same object")}
		}
		seen[strings.ToLower(m.name)] = true
	}
	_, err := d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return members, err
}

// atField finds the field that a decoding error is about.
func atField(members []member, err error) error {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) && te.Field != "" {
		name, _, _ := strings.Cut(te.Field, ".")
		return fieldErrorf(name, "a JSON %s does not belong here", te.Value)
	}
	for _, m := range members {
		if err.Error() == fmt.Sprintf("json: unknown field %q", m.name) {
			return &FieldError{m.name, errors.New("not a word of rules")}
		}
	}
	if fe := (*FieldError)(nil); errors.As(err, &fe) {
		return err
	}
	return &FieldError{"times", err} // the only field with a decoder of its own
}
