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

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

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
		{52, testpeer.WindowsUnavailable, forever, "unavailable", 4, 5}, // the last one looks whether it was done all the same
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
			var failed *ldapgroup.Error
			r, err := engine(t, s.config(t)).Change(context.Background(), scriptedGroup, numbered("4"), nil, ldapgroup.ChangeOptions{})
			got := string(class(err))
			if err == nil {
				got = told(r)
			} else if asError(err, &failed) && (failed.Class == ldapgroup.ClassUnavailable) != (failed.RetryAfter > 0) {
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
		p, err := e.Read(ctx, scriptedGroup, ldapgroup.ReadOptions{Cursor: cursor, Limit: 2000})
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
	r, err := e.Replace(ctx, scriptedGroup, wanted, ldapgroup.ReplaceOptions{IfMatch: etag})
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
	_, err := e.Change(context.Background(), scriptedGroup, numbered("4"), nil, ldapgroup.ChangeOptions{})
	var own *ldapgroup.Error
	if !asError(err, &own) || own.Class != ldapgroup.ClassReferral || own.Referral != url || own.RetryAfter != 0 {
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
		_, err := e.Read(context.Background(), scriptedGroup, ldapgroup.ReadOptions{})
		if c := class(err); c != ldapgroup.ClassReferral && (c != ldapgroup.ClassGroupNotFound || name != "reference") {
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
				r, err := e.Change(context.Background(), scriptedGroup, numbered("4"), nil, ldapgroup.ChangeOptions{})
				runtime.ReadMemStats(&after)
				if err == nil && r.Members[0].Outcome != ldapgroup.Unknown {
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
	c.Credentials = func(context.Context) (ldapgroup.Credentials, error) {
		return ldapgroup.Credentials{DN: s.BindDN, Password: *password.Load()}, nil
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
	_, err := e.Read(context.Background(), scriptedGroup, ldapgroup.ReadOptions{})
	if c := class(err); c != ldapgroup.ClassTimeout && c != ldapgroup.ClassDirectory {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
