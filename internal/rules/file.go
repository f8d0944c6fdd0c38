package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ParseJSON reads {"rules": [ … ]}. lines has the line on which each rule
// begins, at its words; errors begin with name and line.
func ParseJSON(name string, b []byte) (rules []Rule, locate func(index int, field string) int, err error) {
	type located struct {
		raw    json.RawMessage
		offset int64
	}
	var found []located
	locate = func(i int, field string) int { return lineOf(b, found[i].offset+offsetOf(found[i].raw, field)) }
	fail := func(offset int64, err error) ([]Rule, func(int, string) int, error) {
		return nil, nil, fmt.Errorf("%s:%d: %w", name, lineOf(b, offset), err)
	}

	// The decoder below would tell wrongly where the syntax is broken.
	if err := json.Unmarshal(b, new(json.RawMessage)); err != nil {
		offset := int64(0)
		if se := (*json.SyntaxError)(nil); errors.As(err, &se) {
			offset = se.Offset - 1
		}
		return fail(offset, err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	expect := func(want json.Token) error {
		t, err := d.Token()
		if err == nil && t != want {
			err = fmt.Errorf("%v where %v should be", t, want)
		}
		return err
	}
	for _, want := range []json.Token{json.Delim('{'), "rules", json.Delim('[')} {
		if err := expect(want); err != nil {
			return fail(d.InputOffset(), err)
		}
	}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fail(d.InputOffset(), err)
		}
		found = append(found, located{raw, d.InputOffset() - int64(len(raw))})
		var r Rule
		if err := r.UnmarshalJSON(raw); err != nil {
			field := ""
			if fe := (*FieldError)(nil); errors.As(err, &fe) {
				field = fe.Field
			}
			return nil, nil, fmt.Errorf("%s:%d: rule %d: %w", name, locate(len(found)-1, field), len(found), err)
		}
		rules = append(rules, r)
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if err := expect(want); err != nil {
			return fail(d.InputOffset(), err)
		}
	}
	return rules, locate, nil
}

// offsetOf finds a word of the rule, the last one if it is there twice, or the
// rule itself when the word is not there.
func offsetOf(raw []byte, field string) (offset int64) {
	members, _ := membersOf(raw) // those up to a mistake are enough
	for _, m := range members {
		if strings.EqualFold(m.name, field) {
			offset = m.offset
		}
	}
	return offset
}

func lineOf(b []byte, offset int64) int {
	return 1 + bytes.Count(b[:min(int64(len(b)), max(0, offset))], []byte("\n"))
}
