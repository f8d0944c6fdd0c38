package ldapgroup_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

func TestNewRefuses(t *testing.T) {
	for want, mod := range map[string]func(*Config){
		"no name":           func(c *Config) { c.Name = "" },
		"no way to dial":    func(c *Config) { c.Dial = nil },
		"no security":       func(c *Config) { c.Security = 0 },
		"in the clear":      func(c *Config) { c.AllowPlaintextBind = false },
		"server name":       func(c *Config) { c.Security, c.TLS = LDAPS, &tls.Config{} },
		"TLS needs":         func(c *Config) { c.Security = StartTLS },
		"no groups":         func(c *Config) { c.Groups = nil },
		"no member bases":   func(c *Config) { c.MemberBases = nil },
		"member base":       func(c *Config) { c.MemberBases = []string{"people"} },
		"not a DN":          func(c *Config) { c.Groups[0].DN = "groups" },
		"placeholder":       func(c *Config) { c.Groups[0].Placeholder = "x" },
		"between 0 and 1":   func(c *Config) { c.Groups[0].MaxRemovals = 20 },
		"make no sense":     func(c *Config) { c.MinConns, c.MaxConns = 3, 2 },
		"is negative":       func(c *Config) { c.IdleTime = -1 },
		"limit is negative": func(c *Config) { c.MaxMembers = -1 },
		"need the lookup":   func(c *Config) { c.AllowSID, c.Lookup = true, LookupNever },
	} {
		c := newFake().config()
		mod(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]Target{
		"ldap://dc1.example.org":         {Name: "dc1.example.org:389", ServerName: "dc1.example.org", Security: StartTLS},
		"ldap://dc1.example.org:3389/":   {Name: "dc1.example.org:3389", ServerName: "dc1.example.org", Security: StartTLS},
		"ldaps://dc1.example.org":        {Name: "dc1.example.org:636", ServerName: "dc1.example.org", Security: LDAPS},
		"ldaps://[::1]":                  {Name: "[::1]:636", ServerName: "::1", Security: LDAPS, Local: true},
		"ldap://127.0.0.1:1389":          {Name: "127.0.0.1:1389", ServerName: "127.0.0.1", Security: Plaintext, Local: true},
		"ldap://localhost":               {Name: "localhost:389", ServerName: "localhost", Security: Plaintext, Local: true},
		"ldap://localhost.evil.example":  {Name: "localhost.evil.example:389", ServerName: "localhost.evil.example", Security: StartTLS},
		"ldapi://%2frun%2fslapd%2fldapi": {Name: "/run/slapd/ldapi", Security: Plaintext, Local: true},
	} {
		got, err := ParseURL(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if got.Name != want.Name || got.ServerName != want.ServerName || got.Security != want.Security || got.Local != want.Local {
			t.Errorf("%s: %+v", raw, got)
		}
	}
	for _, raw := range []string{"", "dc1", "http://dc1", "ldap://", "ldap://u:p@dc1", "ldap://dc1/dc=x", "ldap://dc1?x", "ldaps://dc1#x", "ldapi://", "ldapi://%zz", "cldap://dc1"} {
		if _, err := ParseURL(raw); err == nil {
			t.Errorf("%q was taken", raw)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	target, err := ParseURL("ldapi://" + strings.ReplaceAll(path, "/", "%2F"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := target.Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// What logs and metrics are made of.
func TestEvents(t *testing.T) {
	d := newFake()
	d.put(person(1))
	rec := &recorder{}
	d.on = func(r *request) reply {
		if r.op == "modify" && len(r.adds) == 1 && r.adds[0] == person(1) {
			return reply{code: 20, diagnostic: "modify/add: member: value #0 already exists", matched: "ou=groups"}
		}
		return reply{}
	}
	type key struct{}
	bubble(t, d, func(c *Config) {
		c.Observer = rec.observer()
		member := c.Observer.Member
		c.Observer.Member = func(ctx context.Context, e MemberEvent) {
			if ctx.Value(key{}) != "request 7" {
				t.Error("the caller's context is lost")
			}
			member(ctx, e)
		}
	}, func(t *testing.T, e *Engine) {
		ctx := context.WithValue(context.Background(), key{}, "request 7")
		if _, err := e.Change(ctx, fakeGroup, persons(1, 1), persons(2, 2), ChangeOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	if n := len(rec.members); n != 2 {
		t.Fatalf("%d member events", n)
	}
	a, b := rec.members[0], rec.members[1]
	if a.Directory != "fake" || a.Group != fakeGroup || a.Server != OpenLDAP || a.Action != Add || a.Outcome != AlreadyMember ||
		a.Changed != ChangedNo || a.Attempts != 1 || *a.Answer != (Answer{20, "attributeOrValueExists", "modify/add: member: value #0 already exists", "ou=groups"}) {
		t.Errorf("%+v, %+v", a, a.Answer)
	}
	if b.Action != Remove || b.Outcome != NotMember || b.Answer == nil || b.Answer.Code != 16 || b.Answer.Name != "noSuchAttribute" {
		t.Errorf("%+v, %+v", b, b.Answer)
	}
	if m := rec.modifies; len(m) != 2 || m[0].Code != 20 || m[0].Values != 1 || m[0].Calls != 1 || m[0].Attempt != 1 || m[0].Err == nil || m[1].Code != 16 {
		t.Errorf("%+v", m)
	}
	if c := rec.conns; len(c) != 2 || c[0].What != "open" || c[0].Open != 1 || c[1].What != "closed_shutdown" || c[1].Open != 0 {
		t.Errorf("%+v", c)
	}
}

func TestResultInJSON(t *testing.T) {
	b, err := json.Marshal(MemberResult{
		Member: "m", Canonical: "M", Action: Remove, Outcome: NotMember, Changed: ChangedUnknown, Attempts: 2,
		Answer: &Answer{Code: 16, Name: CodeName(16)}, Err: &Error{Err: errors.New("secret")},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"member":"m","canonical":"M","action":"remove","outcome":"not_member","changed":null,"ldap":{"code":16,"name":"noSuchAttribute"},"attempts":2}`
	if string(b) != want {
		t.Errorf("got %s", b)
	}
}

// A value is not believed when the codes could be lying.
func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		name   string
		verify Verify
		ad     bool
		member bool
		rep    reply
		want   string
	}{
		{"20 is believed", VerifyAmbiguous, false, false, reply{code: 20}, "already_member/false"},
		{"20 is looked at", VerifyAlways, false, false, reply{code: 20}, "failed/false/directory"},
		{"68 is looked at", VerifyAmbiguous, true, false, reply{code: 68}, "failed/false/constraint"},
		{"68 is believed", VerifyNever, true, false, reply{code: 68}, "already_member/false"},
		{"68 elsewhere means nothing", VerifyNever, false, true, reply{code: 68}, "failed/false/constraint"},
	} {
		d := newFake()
		if tt.ad {
			d.active()
		}
		if tt.member {
			d.put(person(1))
		}
		modifies(d, 0, tt.rep)
		bubble(t, d, func(c *Config) { c.Verify = tt.verify }, func(t *testing.T, e *Engine) {
			if got := brief(change(t, e, persons(1, 1), nil)); got != tt.want {
				t.Errorf("%s: got %s", tt.name, got)
			}
		})
	}
}

// A round trip through a tunnel is what a change costs.
func TestOneChangeIsTwoRoundTrips(t *testing.T) {
	d := newFake()
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		change(t, e, persons(1, 1), nil)
		d.saw("")
		change(t, e, persons(2, 2), nil)
		if n := len(d.saw("")); n != 3 {
			t.Errorf("%d requests, want a search for group and member side by side and a modify", n)
		}
	})
}
