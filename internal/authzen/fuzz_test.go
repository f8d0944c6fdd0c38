package authzen

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// sound checks what holds for every answer, whatever the bytes were.
func sound(t *testing.T, d authz.Decision) {
	t.Helper()
	for _, s := range []string{d.Reason, d.Policy} {
		if s != Clean(s) && !(len(s) > maxText && Clean(s) == s[:len(Clean(s))]) {
			t.Errorf("not clean: %q", s)
		}
	}
	switch {
	case d.Outcome == authz.Error && d.Err == nil:
		t.Error("an error without a reason")
	case d.Outcome != authz.Allow && (d.Lease != 0 || d.MaxDuration != 0 || d.MaxBytes != 0):
		t.Errorf("limits without a permit: %+v", d)
	case d.Lease < 0 || d.MaxDuration < 0 || d.MaxBytes < 0:
		t.Errorf("%+v", d)
	}
}

// allows reports whether a decoder that takes names in any case, and the last of
// several, finds the verdict. Ours may be stricter and never laxer.
func allows(body []byte, member string) bool {
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // else a number out of range, somewhere, is an error
	return d.Decode(&m) == nil && m[member] == true
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		`{"decision":true}`, `{"decision":false,"context":{"reason":"no"}}`, `{"allow":true,"ttl_sec":30}`, `{"allow":false}`,
		`{"decision":true,"context":{"ttl":300,"policy":"7","reason_admin":{"en":"yes"},"obligations":[]}}`,
		`{"decision":true,"context":{"obligations":[{"type":"max_duration","id":"1","seconds":60},{"type":"max_bytes","properties":{"bytes":9}}]}}`,
		`{"decision":true,"context":{"obligations":[{"type":"step-up","acr_value":"x"}]}}`,
		`{"decision":true,"decision":false}`, `{"Decision":true}`, `[]`, `null`, "\x00", `{"decision":true,"context":{"ttl":1e400}}`,
		`{"decision":true,"":{"":1e400}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for member, dialect := range map[string]Dialect{"decision": Standard{}, "allow": Original{}} {
			d, err := dialect.Answer(body)
			if err != nil {
				continue
			}
			if d.Outcome == authz.Error || d.Outcome == authz.Allow && !allows(body, member) {
				t.Errorf("%s of %q", d.Outcome, body)
			}
			sound(t, d)
		}
	})
}

func FuzzBatchAnswers(f *testing.F) {
	f.Add([]byte(`{"evaluations":[{"decision":true},{"decision":false}]}`), 2)
	f.Add([]byte(`{"evaluations":[{"decision":false,"context":{"error":{"status":404,"message":"x"}}}]}`), 1)
	f.Add([]byte(`{"evaluations":[{"decision":true,"context":{"obligations":[{"type":"max_bytes","bytes":1}]}},7,null]}`), 3)
	f.Add([]byte(`{"evaluations":null}`), 0)
	f.Add([]byte(`{"evaluations":{}}`), 1)
	f.Add([]byte(`{"decision":true}`), 1)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		ds, err := BatchAnswers(body, n)
		if err != nil {
			return
		}
		if len(ds) != n {
			t.Errorf("%d answers to %d questions", len(ds), n)
		}
		for _, d := range ds {
			sound(t, d)
		}
	})
}

func FuzzReadMetadata(f *testing.F) {
	const id = "https://pdp.example.com"
	f.Add([]byte(`{"policy_decision_point":"https://pdp.example.com","access_evaluation_endpoint":"https://pdp.example.com/access/v1/evaluation"}`))
	f.Add([]byte(`{"policy_decision_point":"https://other.example.com","access_evaluations_endpoint":"x"}`))
	f.Add([]byte(`{"policy_decision_point":["https://pdp.example.com"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := ReadMetadata(body, id); err != nil && len(err.Error()) > 4*maxText {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
