package groupapi

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever is sent as a path segment, what comes out was decoded once, is
// UTF-8, does not look encoded, and leads back to itself.
func FuzzDecodeSegment(f *testing.F) {
	for _, s := range []string{"cn=a%2Fb%5C%2Cc,ou=Z%C3%BCrich,dc=example", "cn=%2525", "%00", "%0D%0A", "..", "%FF", "a+b", "%", "%C0%AF", "..%2F..%2Fx", "cn=a%3Bb", "%u002C", "%25%32%35"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		got, err := DecodeSegment(sent)
		if err != nil {
			return
		}
		if got == "" || !utf8.ValidString(got) || encodedAgain(got) || len(got) > MaxSegment {
			t.Errorf("%q gives %q", sent, got)
		}
		if len(url.PathEscape(got)) > MaxSegment {
			return
		}
		if again, err := DecodeSegment(url.PathEscape(got)); err != nil || again != got {
			t.Errorf("%q gives %q, and that %q, %v", sent, got, again, err)
		}
	})
}

// No body makes the reader panic, and what it accepts was UTF-8, and is.
func FuzzDecodeLists(f *testing.F) {
	f.Add([]byte(`{"add":["a"],"remove":["b"]}`))
	f.Add([]byte("{\"add\":[\"\xff\"]}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var add, remove []string
		if DecodeLists(body, map[string]*[]string{"add": &add, "remove": &remove}, 100) != nil {
			return
		}
		for _, s := range append(add, remove...) {
			if !utf8.Valid(body) || !utf8.ValidString(s) {
				t.Errorf("%q gives %q", body, s)
			}
		}
	})
}

// Many strings of a small body are refused before they are held in memory.
func TestManyMembersAreRefusedEarly(t *testing.T) {
	body := []byte(`{"add":[""` + strings.Repeat(`,""`, 1<<20) + `]}`)
	var add []string
	if n := testing.AllocsPerRun(1, func() {
		add = nil
		if err := DecodeLists(body, map[string]*[]string{"add": &add}, 100); !errors.Is(err, ErrTooMany) {
			t.Error(err)
		}
	}); n > 1000 {
		t.Errorf("%v allocations", n)
	}
}
