package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

func TestExitCodes(t *testing.T) {
	problem := func(status int) error {
		return fmt.Errorf("list: %w", &groupapi.Problem{Status: status})
	}
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {errors.New("x"), 1}, {problem(404), 3}, {problem(403), 3}, {problem(302), 3}, {problem(503), 4}, {problem(500), 4},
		{&url.Error{Err: io.EOF}, 4}, {context.DeadlineExceeded, 4}, {context.Canceled, 4}, {errIncomplete, 5},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What a directory sends must not take over the terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"uid=zoë,dc=x": "uid=zoë,dc=x", "a\x1b[2Jb": "a�[2Jb", "a\r\nb": "a��b", "a\u202eb": "a�b", "a\u009bb": "a�b", "\x00": "�",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestCredentialsComeFromOnePlace(t *testing.T) {
	env := func(pairs ...string) func(string) string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m["NOWCONNECT_API_"+pairs[i]] = pairs[i+1]
		}
		return func(name string) string { return m[name] }
	}
	// A flag puts the environment's credential aside, but not its address.
	o := apiOptions{tokenFile: "t"}
	if err := o.fromEnvironment(env("URL", "https://x", "USER", "u", "PASSWORD", "p", "TOKEN", "other")); err != nil || o.user != "" || o.token != "" || o.url != "https://x" {
		t.Errorf("%+v %v", o, err)
	}
	o = apiOptions{user: "u"}
	if err := o.fromEnvironment(env("URL", "https://x", "PASSWORD", "p")); err != nil || o.password != "p" {
		t.Errorf("%+v %v", o, err)
	}
	for name, pairs := range map[string][]string{
		"no API":             {"USER", "u", "PASSWORD", "p"},
		"a user and a token": {"URL", "https://x", "USER", "u", "PASSWORD", "p", "TOKEN", "t"},
		"a user without":     {"URL", "https://x", "USER", "u"},
		"--cert and --key":   {"URL", "https://x", "CERT", "c"},
	} {
		o := apiOptions{}
		if err := o.fromEnvironment(env(pairs...)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o = apiOptions{passwordFile: "f"}
	if err := o.fromEnvironment(env("URL", "https://x")); err == nil {
		t.Error("a password without a user")
	}
}

// Progress is for people who watch; scripts see the result alone.
func TestProgressIsClearedAway(t *testing.T) {
	var errs bytes.Buffer
	g := &groupRun{err: &errs}
	g.show("%d of %d", 1, 2)
	g.done()
	if errs.Len() > 0 {
		t.Errorf("%q without a terminal", errs.String())
	}
	g.progress = true
	g.show("%d of %d", 1, 2)
	g.done()
	if got := errs.String(); got != "\r\x1b[K1 of 2\r\x1b[K" {
		t.Errorf("%q", got)
	}
}
