package authzen

import (
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

func TestLease(t *testing.T) {
	for body, want := range map[string]time.Duration{
		`{"decision":true,"context":{"ttl":2.5}}`:  2500 * time.Millisecond,
		`{"decision":true,"context":{"ttl":0}}`:    time.Second,
		`{"decision":true,"context":{"ttl":-3}}`:   time.Second,
		`{"decision":true,"context":{"ttl":1e99}}`: 24 * time.Hour,
		`{"decision":true,"context":{"ttl":null}}`: 0,
	} {
		d, err := Standard{}.Answer([]byte(body))
		if err != nil || d.Outcome != authz.Allow || d.Lease != want {
			t.Errorf("%s: %+v, %v", body, d, err)
		}
	}
}

func TestObligations(t *testing.T) {
	const century = 100 * 365 * 24 * time.Hour
	for list, want := range map[string]authz.Decision{
		`[]`:   {},
		`null`: {},
		`[{"type":"max_duration","id":"1","seconds":90}]`:                                     {MaxDuration: 90 * time.Second},
		`[{"type":"max_duration","properties":{"seconds":0.25}}]`:                             {MaxDuration: 250 * time.Millisecond},
		`[{"type":"max_duration","seconds":1e300}]`:                                           {MaxDuration: century},
		`[{"type":"max_duration","seconds":1e-300}]`:                                          {MaxDuration: 1},
		`[{"type":"max_bytes","bytes":1048576}]`:                                              {MaxBytes: 1 << 20},
		`[{"type":"max_bytes","bytes":1e300}]`:                                                {MaxBytes: 1<<63 - 1},
		`[{"type":"max_bytes","bytes":0.5}]`:                                                  {MaxBytes: 1},
		`[{"type":"max_bytes","bytes":7},{"type":"max_duration","seconds":60}]`:               {MaxBytes: 7, MaxDuration: time.Minute},
		`[{"type":"max_bytes","bytes":7},{"type":"max_bytes","properties":{"bytes":5}}]`:      {MaxBytes: 5},
		`[{"type":"max_duration","seconds":60},{"type":"max_duration","seconds":61,"id":""}]`: {MaxDuration: time.Minute},
	} {
		want.Outcome = authz.Allow
		d, err := Standard{}.Answer([]byte(`{"decision":true,"context":{"obligations":` + list + `}}`))
		if err != nil || d != want {
			t.Errorf("%s: %+v, %v", list, d, err)
		}
	}
	for _, list := range []string{
		`[null]`, `[7]`, `[[]]`, `"max_bytes"`, `7`, `{}`,
		`[{"Type":"max_bytes","bytes":1}]`, `[{"type":["max_bytes"],"bytes":1}]`, `[{"type":"MAX_BYTES","bytes":1}]`,
		`[{"type":"max_bytes"}]`, `[{"type":"max_bytes","Bytes":1}]`, `[{"type":"max_bytes","seconds":1}]`,
		`[{"type":"max_bytes","bytes":null}]`, `[{"type":"max_bytes","bytes":0}]`, `[{"type":"max_bytes","bytes":-1}]`,
		`[{"type":"max_bytes","bytes":true}]`, `[{"type":"max_bytes","bytes":1e999}]`,
		`[{"type":"max_duration","seconds":"60"}]`, `[{"type":"max_duration","properties":[60]}]`,
	} {
		d, err := Standard{}.Answer([]byte(`{"decision":true,"context":{"obligations":` + list + `}}`))
		if err != nil || d.Outcome != authz.Deny || d.Reason == "" || d.MaxBytes != 0 || d.MaxDuration != 0 {
			t.Errorf("%s: %+v, %v", list, d, err)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		" \t\n":                        "",
		"  a \r\n\tb\x00c\x1b[31m  ":   "a b c [31m",
		"{\n  \"code\": 1\n}":          `{ "code": 1 }`,
		"non\u00a0breaking \u202e rtl": "non breaking rtl",
		"bad \xff\xfe utf":             "bad \ufffd\ufffd utf",
		strings.Repeat("x", 5000):      strings.Repeat("x", maxText),
	} {
		if got := Clean(in); got != strings.TrimSpace(want) {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}
