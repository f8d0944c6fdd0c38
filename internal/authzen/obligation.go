package authzen

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// The obligations that the hub can fulfil.
const (
	obligationDuration = "max_duration" // member seconds
	obligationBytes    = "max_bytes"    // member bytes
)

// maxDuration keeps a number of seconds from overflowing a time.Duration.
const maxDuration = 100 * 365 * 24 * time.Hour

// oblige puts the obligations of a permit into d. It returns what is wrong with
// one that it cannot read or does not know, and nothing when all is well. The
// permit is a denial then: the draft profile for obligations demands so, and a
// limit that is not understood must not be no limit.
//
// Of several obligations of one type the strictest counts.
func oblige(d *authz.Decision, raw json.RawMessage) (unmet string) {
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return "not readable"
	}
	for _, o := range list {
		if err := obligeOne(d, o); err != nil {
			return err.Error()
		}
	}
	return ""
}

func obligeOne(d *authz.Decision, o map[string]json.RawMessage) error {
	switch t := text(o["type"]); t {
	case obligationDuration:
		seconds, err := amount(o, "seconds")
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		limit := maxDuration
		if seconds < maxDuration.Seconds() {
			limit = max(1, time.Duration(seconds*float64(time.Second)))
		}
		d.MaxDuration = stricter(d.MaxDuration, limit)
		return nil
	case obligationBytes:
		bytes, err := amount(o, "bytes")
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		limit := int64(math.MaxInt64)
		if bytes < 1<<62 {
			limit = max(1, int64(bytes))
		}
		d.MaxBytes = stricter(d.MaxBytes, limit)
		return nil
	default:
		return errors.New(nameOf(o))
	}
}

// amount reads an obligation's number, which stands in it or, as some PDPs
// write it, in its member properties. It is above 0.
func amount(o map[string]json.RawMessage, member string) (float64, error) {
	raw := o[member]
	if len(raw) == 0 {
		var properties map[string]json.RawMessage
		if json.Unmarshal(o["properties"], &properties) == nil {
			raw = properties[member]
		}
	}
	var n *float64
	if err := json.Unmarshal(raw, &n); err != nil || n == nil || !(*n > 0) {
		return 0, fmt.Errorf("no member %s with a number above 0", member)
	}
	return *n, nil
}

// stricter returns the smaller limit; 0 is none.
func stricter[T time.Duration | int64](a, b T) T {
	if a == 0 || b < a {
		return b
	}
	return a
}

// nameOf tells the obligation to operators.
func nameOf(o map[string]json.RawMessage) string {
	for _, member := range []string{"type", "id"} {
		if name := text(o[member]); name != "" {
			return name
		}
	}
	return "without a name"
}

// text reads a JSON string for a log line; empty when it is none.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return Clean(s)
}
