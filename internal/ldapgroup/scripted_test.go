package ldapgroup_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
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

func (s *scripted) config(t *testing.T) Config {
	t.Helper()
	target, err := ParseURL(s.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Name: "scripted", Dial: target.Dial, Security: target.Security, AllowPlaintextBind: true,
		Credentials: func(context.Context) (Credentials, error) {
			return Credentials{DN: s.BindDN, Password: "one"}, nil
		},
		Groups:      []GroupRule{{DN: "OU=groups,DC=lab,DC=test", Subtree: true, AllowReplace: true}},
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
			r, err := e.Change(context.Background(), scriptedGroup, adds, removes, ChangeOptions{})
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
	c.OpTimeout = 250 * time.Millisecond
	e := engine(t, c)
	done := make(chan struct{})
	s.onModify(1, func(r *testpeer.LDAPRequest) {
		r.Later(func() {
			defer close(done)
			select {
			case <-time.After(300 * time.Millisecond):
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
	wantText(t, "once more", ask(t, e, scriptedGroup, numbered("4"), numbered("1")), "already_member/false(68) removed/true")
}

// Each code with its retries: how many requests, on how many connections.
func TestRetries(t *testing.T) {
	const forever = 100
	for _, tt := range []struct {
		code       uint16
		diagnostic string
		times      int // that it is answered
		want       string
		modifies   int
		conns      int
	}{
		{51, testpeer.WindowsBusy, 1, "added/true", 2, 1},
		{51, testpeer.WindowsBusy, 3, "added/true", 4, 1},
		{51, testpeer.WindowsBusy, forever, "unavailable", 4, 1},
		{52, testpeer.WindowsUnavailable, 1, "added/true", 2, 2},
		{52, testpeer.WindowsUnavailable, forever, "unavailable", 4, 4},
		{1, testpeer.WindowsBindFirst, 1, "added/true", 2, 2},
		{1, testpeer.WindowsBindFirst, forever, "account", 2, 2},
		{80, "", 1, "added/true", 2, 1},
		{80, "", forever, "directory", 2, 1},
		{3, "", 1, "added/true", 2, 1},
		{3, "", forever, "timeout", 2, 1},
		{2, "", forever, "directory", 1, 1},
		{8, "", forever, "account", 1, 1},
		{12, "", forever, "directory", 1, 1},
		{13, "", forever, "account", 1, 1},
		{16, "", forever, "directory", 1, 1},
		{17, "", forever, "config", 1, 1},
		{19, "", forever, "failed/false(19)/constraint", 1, 1},
		{21, "", forever, "failed/false(21)/invalid", 1, 1},
		{34, "", forever, "failed/false(34)/invalid", 1, 1},
		{48, "", forever, "account", 1, 1},
		{49, "", forever, "account", 1, 1},
		{50, testpeer.WindowsNotAllowed, forever, "denied", 1, 1},
		{53, testpeer.WindowsUnwilling, forever, "failed/false(53)/constraint", 1, 1},
		{65, "", forever, "constraint", 1, 1},
	} {
		t.Run(fmt.Sprintf("%d, %d times", tt.code, tt.times), func(t *testing.T) {
			t.Parallel()
			s := startScripted(t, true)
			var answered atomic.Int64
			s.onModify(0, func(r *testpeer.LDAPRequest) {
				if int(answered.Add(1)) <= tt.times {
					r.Result(tt.code, tt.diagnostic)
					return
				}
				s.Answer(r)
			})
			var failed *Error
			r, err := engine(t, s.config(t)).Change(context.Background(), scriptedGroup, numbered("4"), nil, ChangeOptions{})
			got := string(class(err))
			if err == nil {
				got = told(r)
			} else if asError(err, &failed) && (failed.Class == ClassUnavailable) != (failed.RetryAfter > 0) {
				t.Errorf("%v says to try again in %d s", err, failed.RetryAfter)
			}
			wantText(t, "outcome", got, tt.want)
			if n := s.Count("modify"); n != tt.modifies {
				t.Errorf("%d requests, want %d", n, tt.modifies)
			}
			if n := s.server.Conns(); n != tt.conns {
				t.Errorf("%d connections, want %d", n, tt.conns)
			}
		})
	}
}

// Windows hands out 1500 members at a time, beside an empty attribute.
func TestFiveThousandMembersInRanges(t *testing.T) {
	s := startScripted(t, true)
	var all []string
	for i := range 5000 {
		all = append(all, labUser(i))
	}
	s.People = all // nobody has connected yet
	s.SetGroup(scriptedGroup, all...)
	e := engine(t, s.config(t))
	ctx := context.Background()
	var got []string
	var etag string
	for cursor := ""; ; {
		p, err := e.Read(ctx, scriptedGroup, ReadOptions{Cursor: cursor, Limit: 2000})
		if err != nil {
			t.Fatal(err)
		}
		if p.Total != 5000 {
			t.Fatalf("%d members in all", p.Total)
		}
		got, etag = append(got, p.Members...), p.ETag
		if cursor = p.Next; cursor == "" {
			break
		}
	}
	slices.Sort(got)
	slices.Sort(all)
	if !slices.Equal(got, all) {
		t.Errorf("%d members are not the 5000", len(got))
	}
	// rootDSE, the group, and four ranges: the pages are of one reading.
	if n := s.Count("search"); n != 6 {
		t.Errorf("%d searches", n)
	}
	// A desired state that leaves out three and adds one.
	wanted := append(slices.Clone(all[3:]), labUser(6000))
	s.People = append(s.People, labUser(6000))
	r, err := e.Replace(ctx, scriptedGroup, wanted, ReplaceOptions{IfMatch: etag})
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, "replace", told(r), "added/true removed/true removed/true removed/true")
	if n := len(s.Group(scriptedGroup)); n != 4998 || r.AlreadyRight != 4997 {
		t.Errorf("%d members, %d of them right before", n, r.AlreadyRight)
	}
}

// Referrals are not followed: not of a change, and not of a search.
func TestReferralsAreNotFollowed(t *testing.T) {
	elsewhere := testpeer.LDAPServer(t, func(r *testpeer.LDAPRequest) { r.Result(0, "") })
	s := startScripted(t, false)
	e := engine(t, s.config(t))
	url := elsewhere.URL + "/" + scriptedGroup
	s.onModify(0, func(r *testpeer.LDAPRequest) { r.Referral(url, "ldap://second.invalid/") })
	_, err := e.Change(context.Background(), scriptedGroup, numbered("4"), nil, ChangeOptions{})
	var own *Error
	if !asError(err, &own) || own.Class != ClassReferral || own.Referral != url || own.RetryAfter != 0 {
		t.Errorf("a change: %+v", own)
	}
	if strings.Contains(err.Error(), "second.invalid") || strings.Contains(err.Error(), elsewhere.Addr) {
		t.Errorf("the error shows where to: %v", err)
	}
	for name, answer := range map[string]func(*testpeer.LDAPRequest){
		"result":    func(r *testpeer.LDAPRequest) { r.Referral(url) },
		"reference": func(r *testpeer.LDAPRequest) { r.Reference(url); r.Result(0, "") },
	} {
		script := func(r *testpeer.LDAPRequest) {
			if r.Op == ldap.ApplicationSearchRequest && r.DN == scriptedGroup {
				answer(r)
				return
			}
			s.Answer(r)
		}
		s.script.Store(&script)
		_, err := e.Read(context.Background(), scriptedGroup, ReadOptions{})
		if c := class(err); c != ClassReferral && (c != ClassGroupNotFound || name != "reference") {
			t.Errorf("a search, by %s: %v", name, err)
		}
	}
	if n := elsewhere.Conns(); n != 0 {
		t.Errorf("%d connections were made to where the referral led", n)
	}
	wantText(t, "the group", s.lists(), "1 2 3")
}

// A claim of a gigabyte costs nothing, whatever it is the answer to.
func TestClaimsOfGigabytes(t *testing.T) {
	claims := map[string][]byte{
		"message": {0x30, 0x84, 0x40, 0, 0, 0, 0x02, 0x01, 0x03},
		"inside":  {0x30, 0x0d, 0x02, 0x01, 0x03, 0x61, 0x84, 0x40, 0, 0, 0, 0x0a, 0x01, 0x00, 0x04},
	}
	for what, op := range map[string]func(*testpeer.LDAPRequest) bool{
		"bind":    func(r *testpeer.LDAPRequest) bool { return r.Op == ldap.ApplicationBindRequest },
		"rootDSE": func(r *testpeer.LDAPRequest) bool { return r.Op == ldap.ApplicationSearchRequest && r.DN == "" },
		"search":  func(r *testpeer.LDAPRequest) bool { return r.Op == ldap.ApplicationSearchRequest && r.DN != "" },
		"modify":  func(r *testpeer.LDAPRequest) bool { return r.Op == ldap.ApplicationModifyRequest },
	} {
		for name, claim := range claims {
			t.Run(what+"/"+name, func(t *testing.T) {
				s := startScripted(t, true)
				c := s.config(t)
				c.Attempts = 2
				e := engine(t, c)
				script := func(r *testpeer.LDAPRequest) {
					if op(r) {
						r.Raw(claim)
						return
					}
					s.Answer(r)
				}
				s.script.Store(&script)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				r, err := e.Change(context.Background(), scriptedGroup, numbered("4"), nil, ChangeOptions{})
				runtime.ReadMemStats(&after)
				if err == nil && r.Members[0].Outcome != Unknown {
					t.Errorf("got %s", told(r))
				}
				if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
					t.Errorf("%d MB were allocated", n>>20)
				}
				s.script.Store(nil)
				if what != "bind" && what != "rootDSE" { // whose failures are remembered for a moment
					wantText(t, "then", ask(t, e, scriptedGroup, numbered("5"), nil), "added/true")
				}
			})
		}
	}
}

// The password is changed while connections are open, and the server drops
// them: the next call binds with the new one.
func TestPasswordIsRotated(t *testing.T) {
	s := startScripted(t, true)
	c := s.config(t)
	password := atomic.Pointer[string]{}
	one, two := "one", "two"
	password.Store(&one)
	c.Credentials = func(context.Context) (Credentials, error) {
		return Credentials{DN: s.BindDN, Password: *password.Load()}, nil
	}
	e := engine(t, c)
	wantText(t, "before", ask(t, e, scriptedGroup, numbered("4"), nil), "added/true")
	s.SetPassword("two")
	script := func(r *testpeer.LDAPRequest) {
		if r.Conn == 1 {
			r.Disconnecting(ldap.LDAPResultUnavailable)
			return
		}
		if r.Op == ldap.ApplicationBindRequest && r.Password == one {
			password.Store(&two) // the file is there in the moment that the old one fails
		}
		s.Answer(r)
	}
	s.script.Store(&script)
	wantText(t, "after", ask(t, e, scriptedGroup, numbered("5"), nil), "added/true")
	if n := s.Count("bind"); n != 3 {
		t.Errorf("%d binds, want one before, one refused, one with the new password", n)
	}
}

// A server that speaks a byte at a time is waited for no longer than one that
// says nothing.
func TestTrickle(t *testing.T) {
	s := startScripted(t, true)
	c := s.config(t)
	c.OpTimeout, c.Attempts = 300*time.Millisecond, 1
	e := engine(t, c)
	script := func(r *testpeer.LDAPRequest) {
		if r.DN != scriptedGroup {
			s.Answer(r)
			return
		}
		r.Later(func() {
			for range 1000 {
				r.Raw([]byte{0x30, 0x84, 0x00, 0x10, 0x00, 0x00}[:1])
				select {
				case <-time.After(50 * time.Millisecond):
				case <-s.server.Over():
					return
				}
			}
		})
	}
	s.script.Store(&script)
	begin := time.Now()
	_, err := e.Read(context.Background(), scriptedGroup, ReadOptions{})
	if c := class(err); c != ClassTimeout && c != ClassDirectory {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
