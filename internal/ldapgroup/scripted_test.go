package ldapgroup_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

const scriptedGroup = "CN=crew,OU=groups,DC=lab,DC=test"

// scripted is a server whose script may be changed between calls.
type scripted struct {
	*testpeer.GroupServer
	server *testpeer.ScriptedLDAP
	script atomic.Pointer[func(*testpeer.LDAPRequest)] // nil answers as the server would
}

func startScripted(t *testing.T, windows bool) *scripted {
	t.Helper()
	s := &scripted{GroupServer: &testpeer.GroupServer{Windows: windows, BindDN: "CN=svc,DC=lab,DC=test"}}
	s.SetPassword("one")
	for i := range 20 {
		s.People = append(s.People, labUser(i))
	}
	s.SetGroup(scriptedGroup, labUser(1), labUser(2), labUser(3))
	s.server = testpeer.LDAPServer(t, func(r *testpeer.LDAPRequest) {
		s.Note(r)
		if f := s.script.Load(); f != nil {
			(*f)(r)
			return
		}
		s.Answer(r)
	})
	return s
}

func labUser(i int) string { return fmt.Sprintf("CN=u%d,OU=people,DC=lab,DC=test", i) }

// onModify makes f answer the nth modify from now on, all if n is 0.
func (s *scripted) onModify(n int64, f func(*testpeer.LDAPRequest)) {
	var seen atomic.Int64
	script := func(r *testpeer.LDAPRequest) {
		if r.Op == ldap.ApplicationModifyRequest {
			if k := seen.Add(1); n == 0 || k == n {
				f(r)
				return
			}
		}
		s.Answer(r)
	}
	s.script.Store(&script)
}

func (s *scripted) config(t *testing.T) ldapgroup.Config {
	t.Helper()
	target, err := ldapgroup.ParseURL(s.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return ldapgroup.Config{
		Name: "scripted", Dial: target.Dial, Security: target.Security, AllowPlaintextBind: true,
		Credentials: func(context.Context) (ldapgroup.Credentials, error) {
			return ldapgroup.Credentials{DN: s.BindDN, Password: "one"}, nil
		},
		Groups:      []ldapgroup.GroupRule{{DN: "OU=groups,DC=lab,DC=test", Subtree: true, AllowReplace: true}},
		MemberBases: []string{"OU=people,DC=lab,DC=test"},
		OpTimeout:   10 * time.Second,
		Attempts:    4,
	}
}

func (s *scripted) lists() string {
	var out []string
	for _, m := range s.Group(scriptedGroup) {
		out = append(out, strings.TrimPrefix(strings.SplitN(m, ",", 2)[0], "CN=u"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// What Windows says, to the byte, and what that means. Samba says the same
// with other words, so only a script can.
func TestWindowsDiagnostics(t *testing.T) {
	s := startScripted(t, true)
	e := engine(t, s.config(t))
	for _, tt := range []struct {
		name, add, remove string
		code              uint16
		diagnostic        string
		want              string
		searches          int // after the modify; the answer alone must do where it is 0
	}{
		{name: "in the group", add: "1", code: 68, diagnostic: testpeer.WindowsInGroup, want: "already_member/false(68)"},
		{name: "in the group, says another number", add: "1", code: 68, diagnostic: testpeer.WindowsNotAllowed,
			want: "already_member/false(68)", searches: 1},
		{name: "a clash of names", add: "4", code: 68, diagnostic: testpeer.WindowsNotAllowed,
			want: "failed/false(68)/constraint", searches: 1},
		{name: "primary group", add: "4", code: 68, diagnostic: testpeer.WindowsPrimaryGroup, want: "already_member/false(68)/primary_group"},
		{name: "not in the group", remove: "4", code: 53, diagnostic: testpeer.WindowsNotInGroup, want: "not_member/false(53)"},
		{name: "unwilling for another reason", remove: "1", code: 53, diagnostic: testpeer.WindowsUnwilling,
			want: "failed/false(53)/constraint", searches: 2},
		{name: "no member entry", add: "4", code: 32, diagnostic: testpeer.WindowsNoMember, want: "failed/false(32)/member_not_found"},
		{name: "no group", add: "4", code: 32, diagnostic: testpeer.WindowsNoGroup, want: "group_not_found"},
		{name: "no rights", add: "4", code: 50, diagnostic: testpeer.WindowsNotAllowed, want: "denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.SetGroup(scriptedGroup, labUser(1), labUser(2), labUser(3))
			var before int
			s.onModify(1, func(r *testpeer.LDAPRequest) {
				before = s.Count("search")
				r.Result(tt.code, tt.diagnostic)
			})
			adds, removes := numbered(tt.add), numbered(tt.remove)
			r, err := e.Change(context.Background(), scriptedGroup, adds, removes, ldapgroup.ChangeOptions{})
			got := string(class(err))
			if err == nil {
				got = told(r)
				if d := r.Members[0].Answer.Diagnostic; strings.ContainsAny(d, "\x00") || strings.HasSuffix(d, "\n") ||
					!strings.HasPrefix(tt.diagnostic, d) {
					t.Errorf("the diagnostic is told as %q", d)
				}
			}
			wantText(t, "outcome", got, tt.want)
			if n := s.Count("search") - before; n != tt.searches {
				t.Errorf("%d searches followed, want %d", n, tt.searches)
			}
			wantText(t, "the group", s.lists(), "1 2 3")
		})
	}
}

func numbered(words string) []string {
	var out []string
	for _, w := range strings.Fields(words) {
		out = append(out, "CN=u"+w+",OU=people,DC=lab,DC=test")
	}
	return out
}

// Answers that are lost, by any of the ways that TCP has, are looked up.
func TestLostAnswersOnTheWire(t *testing.T) {
	for _, end := range []struct {
		name string
		f    func(*testpeer.LDAPRequest)
	}{
		{"closed", (*testpeer.LDAPRequest).Close},
		{"reset", (*testpeer.LDAPRequest).Reset},
		{"notice of disconnection", func(r *testpeer.LDAPRequest) { r.Disconnecting(ldap.LDAPResultUnavailable) }},
		{"half an answer", func(r *testpeer.LDAPRequest) { r.Raw([]byte{0x30, 0x0c, 0x02, 0x01}); r.Close() }},
	} {
		for _, tt := range []struct {
			name, add, remove string
			applied           bool
			want, after       string
		}{
			{"added, before", "4", "", false, "added/true", "1 2 3 4"},
			{"added, after", "4", "", true, "already_member/null", "1 2 3 4"},
			{"removed, before", "", "3", false, "removed/true", "1 2"},
			{"removed, after", "", "3", true, "not_member/null", "1 2"},
			{"three, before", "4 5 6", "1", false, "added/true added/true added/true removed/true", "2 3 4 5 6"},
			{"three, after", "4 5 6", "1", true, "already_member/null already_member/null already_member/null removed/true", "2 3 4 5 6"},
		} {
			t.Run(end.name+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := startScripted(t, true)
				e := engine(t, s.config(t))
				s.onModify(1, func(r *testpeer.LDAPRequest) {
					if tt.applied {
						s.Modify(r)
					}
					end.f(r)
				})
				wantText(t, "outcome", ask(t, e, scriptedGroup, numbered(tt.add), numbered(tt.remove)), tt.want)
				wantText(t, "the group", s.lists(), tt.after)
				if n := s.server.Conns(); n != 2 {
					t.Errorf("%d connections, want the broken one and another", n)
				}
			})
		}
	}
}

// Nobody asks again who was answered with nonsense. Nor does anybody guess.
func TestNonsenseForAnAnswer(t *testing.T) {
	for _, applied := range []bool{false, true} {
		s := startScripted(t, true)
		s.onModify(1, func(r *testpeer.LDAPRequest) {
			if applied {
				s.Modify(r)
			}
			r.Raw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		})
		e := engine(t, s.config(t))
		want := "unknown/null/directory"
		if applied {
			want = "already_member/null"
		}
		wantText(t, fmt.Sprint("applied ", applied), ask(t, e, scriptedGroup, numbered("4"), nil), want)
		if n := s.Count("modify"); n != 1 {
			t.Errorf("%d requests", n)
		}
	}
}

// A server that is slower than our patience carries the change out all the
// same: what the call then says must be what the group says.
func TestAnswerAfterTheDeadline(t *testing.T) {
	s := startScripted(t, false)
	c := s.config(t)
	c.OpTimeout = 700 * time.Millisecond
	e := engine(t, c)
	done := make(chan struct{})
	s.onModify(1, func(r *testpeer.LDAPRequest) {
		r.Later(func() {
			defer close(done)
			select {
			case <-time.After(800 * time.Millisecond):
			case <-s.server.Over():
			}
			code, text := s.Modify(r)
			r.Result(code, text)
		})
	})
	got := ask(t, e, scriptedGroup, numbered("4"), nil)
	<-done
	// Whether the look came before the late change or after it is not ours to say.
	if got != "added/true" && got != "already_member/null" && got != "already_member/null(20)" {
		t.Errorf("got %s", got)
	}
	wantText(t, "the group", s.lists(), "1 2 3 4")
}

// A server that is never heard of again leaves nothing but the truth to tell.
func TestUnknownIsSaidWhenItIs(t *testing.T) {
	s := startScripted(t, true)
	c := s.config(t)
	c.Attempts = 2
	e := engine(t, c)
	var gone atomic.Bool
	script := func(r *testpeer.LDAPRequest) {
		switch {
		case r.Op == ldap.ApplicationModifyRequest:
			s.Modify(r)
			gone.Store(true)
			r.Reset()
		case gone.Load():
			r.Reset()
		default:
			s.Answer(r)
		}
	}
	s.script.Store(&script)
	wantText(t, "outcome", ask(t, e, scriptedGroup, numbered("4"), numbered("1")),
		"unknown/null/unavailable skipped/false/unavailable")
	s.script.Store(nil)
	wantText(t, "once more", ask(t, engine(t, s.config(t)), scriptedGroup, numbered("4"), numbered("1")), "already_member/false(68) removed/true")
}
