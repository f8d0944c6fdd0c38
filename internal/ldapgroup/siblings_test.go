package ldapgroup_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// counting makes c's Dial count what is written: a request each.
func counting(c *Config) *atomic.Int64 {
	n, dial := &atomic.Int64{}, c.Dial
	c.Dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return &countedConn{conn, n}, nil
	}
	return n
}

type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// Members side by side cost few requests, and each gets the name that a search
// for it alone finds, whatever it is called and however it is spelled.
func TestMembersSideBySide(t *testing.T) {
	onEachServer(t, func(t *testing.T, p *peer) {
		g := p.groups[0]
		named := func(rdn string) string { return rdn + "," + p.d.PeopleDN }
		entry := map[string][]string{"objectClass": {"inetOrgPerson"}, "sn": {"s"}}
		if p.vendor == Samba {
			entry = map[string][]string{"objectClass": {"contact"}}
		}
		var asked []string
		for i := range 200 {
			dn := named(fmt.Sprintf("cn=many %d", i))
			p.addEntry(t, dn, entry)
			switch i % 4 {
			case 1:
				dn = strings.ToUpper(dn)
			case 2:
				dn = named(fmt.Sprintf(`cn=\6dany  %d`, i))
			}
			asked = append(asked, dn)
		}
		odd := []string{`comma\, inc`, `plus\+plus`, `semi\;colon`, `hash\#`, `\#hash`, `back\\slash`, `star*`, `(paren)`, `is\=equal`, "Zoë Ünal", `quo\"te`, `l\<t\>`}
		for i, v := range odd {
			odd[i] = named("cn=" + v)
			p.addEntry(t, odd[i], entry)
		}
		if p.vendor != Samba { // which has one attribute in each RDN
			two := named("cn=several+sn=s")
			p.addEntry(t, two, entry)
			odd = append(odd, two, named("SN=S+CN=Several"), named("commonName=many 0"))
		} else {
			guid := p.alt(t, p.d.UserDN(3), "objectGUID")
			sid := p.alt(t, p.d.UserDN(4), "objectSid")
			odd = append(odd, guid, sid)
		}
		asked = append(asked, odd...)
		asked = append(asked, named("cn=nobody"), named("cn=many 7"), named("cn=MANY 8"), p.d.GroupDN("nobody"), "not a dn", asked[0])

		c := config(p.d)
		c.AllowSID = true
		requests := counting(&c)
		e := engine(t, c)
		want := make([]string, len(asked))
		for i, m := range asked {
			want[i] = p.canonical(m)
		}
		for _, dry := range []bool{true, false} {
			requests.Store(0)
			r, err := e.Change(context.Background(), g.dn, asked, nil, ChangeOptions{DryRun: dry})
			if err != nil {
				t.Fatal(err)
			}
			n := requests.Load()
			// A machine that pauses makes an engine go the longer way for a minute: it
			// must be so with each of several.
			for try := 0; n > 100 && try < 3; try++ {
				requests.Store(0)
				if _, err := engine(t, c).Change(context.Background(), g.dn, asked, nil, ChangeOptions{DryRun: true}); err != nil {
					t.Fatal(err)
				}
				n = requests.Load()
			}
			if n > 100 {
				t.Errorf("dry=%v: %d requests for %d members", dry, n, len(asked))
			}
			for i, m := range r.Members {
				if m.Canonical != want[i] {
					t.Errorf("%q is called %q, want %q", m.Member, m.Canonical, want[i])
				}
				if added := m.Outcome == Added; added != (want[i] != "") {
					t.Errorf("%q: %v %v", m.Member, m.Outcome, m.Err)
				}
			}
		}
		have := values(t, p.d, g.dn, g.kind.Attribute())
		if n := len(slices.Compact(have)); n != len(have) {
			t.Errorf("%d members, %d of them twice", len(have), len(have)-n)
		}
	})
}

// canonical is what a search for one entry finds, empty without one.
func (p *peer) canonical(dn string) string {
	r, err := p.admin.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"1.1"}, nil))
	if err != nil || len(r.Entries) == 0 || !strings.HasSuffix(strings.ToLower(r.Entries[0].DN), strings.ToLower(p.d.PeopleDN)) {
		return ""
	}
	return r.Entries[0].DN
}

// alt is an entry's name in one of Active Directory's other forms.
func (p *peer) alt(t *testing.T, dn, attribute string) string {
	t.Helper()
	r, err := p.admin.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{attribute}, nil))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("<%s=%x>", strings.ToUpper(strings.TrimPrefix(attribute, "object")), r.Entries[0].GetRawAttributeValue(attribute))
}

// Where the directory does not answer as it should, each is looked for alone.
func TestMembersSideBySideRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer reply
		active bool
	}{
		{"size limit", reply{code: ldap.LDAPResultSizeLimitExceeded, dns: persons(32, 40)}, false},
		{"administrative limit", reply{code: ldap.LDAPResultAdminLimitExceeded}, true},
		{"time limit", reply{code: ldap.LDAPResultTimeLimitExceeded}, true},
		{"unwilling", reply{code: ldap.LDAPResultUnwillingToPerform}, false},
		{"no rights", reply{code: ldap.LDAPResultInsufficientAccessRights}, false},
		{"busy", reply{code: ldap.LDAPResultBusy}, false},
		{"unavailable", reply{code: ldap.LDAPResultUnavailable}, false},
		{"no such parent", reply{code: ldap.LDAPResultNoSuchObject}, false},
		{"referral", reply{code: ldap.LDAPResultReferral, referral: "ldap://elsewhere/"}, false},
		{"nothing found", reply{dns: []string{}}, false},
		{"somebody else", reply{dns: []string{"uid=other,ou=people", "ou=people", "not a dn"}}, true},
		{"everybody twice", reply{dns: append(persons(1, 300), persons(1, 300)...)}, false},
		{"connection cut", reply{cutBefore: true}, false},
		{"nonsense", reply{raw: []byte("nonsense")}, false},
		{"no answer", reply{silent: true}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFake()
			if tt.active {
				d.active()
			}
			d.on = func(r *request) reply {
				if strings.HasPrefix(r.filter, "(|") {
					return tt.answer
				}
				return reply{}
			}
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				began := time.Now()
				r := change(t, e, append(persons(1, 300), "uid=nobody,ou=people"), nil)
				for i, m := range r.Members {
					if i < 300 && (m.Outcome != Added || m.Canonical != person(i+1)) {
						t.Fatalf("%s: %v, called %q: %v", m.Member, m.Outcome, m.Canonical, m.Err)
					}
				}
				if m := r.Members[300]; m.Outcome != Failed || m.Err.Class != ClassMemberNotFound {
					t.Errorf("nobody: %v %v", m.Outcome, m.Err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// A directory that reads all of the children for each search, because it has
// no index, is asked so twice in a minute at most.
func TestMembersSideBySideWithoutIndex(t *testing.T) {
	const never = time.Hour
	for _, tt := range []struct {
		takes           time.Duration
		together, alone int // searches; alone with that for the group
	}{
		{0, 6, 32},                       // 31 with the group, 269 in six
		{300 * time.Millisecond, 2, 201}, // both were slow: the other 169 alone
		{never, 1, 302},                  // given up with its connection; the next one's rootDSE counts
	} {
		d := newFake()
		d.on = func(r *request) reply {
			if !strings.HasPrefix(r.filter, "(|") || tt.takes == 0 {
				return reply{}
			}
			if tt.takes == never {
				return reply{silent: true}
			}
			slow := make(chan struct{})
			time.AfterFunc(tt.takes, func() { close(slow) })
			return reply{wait: slow}
		}
		bubble(t, d, nil, func(t *testing.T, e *Engine) {
			count := func(from, to int) (together, alone int) {
				t.Helper()
				d.saw("")
				if r := change(t, e, persons(from, to), nil); !r.Complete() {
					t.Errorf("incomplete: %v", r.Members[len(r.Members)-1].Err)
				}
				all := d.saw("search")
				for _, l := range all {
					if strings.Contains(l, "(|") {
						together++
					}
				}
				return together, len(all) - together
			}
			change(t, e, persons(1, 1), nil)
			if together, alone := count(2, 301); together != tt.together || alone != tt.alone {
				t.Errorf("%v: %d searches for several and %d for one, want %d and %d", tt.takes, together, alone, tt.together, tt.alone)
			}
			if together, _ := count(302, 601); (together > 0) != (tt.takes == 0) {
				t.Errorf("%v: then %d searches for several", tt.takes, together)
			}
			time.Sleep(61 * time.Second)
			if together, _ := count(602, 901); together != tt.together {
				t.Errorf("%v: a minute later %d searches for several, want %d", tt.takes, together, tt.together)
			}
		})
	}
}

// A real one without an index: nothing is lost but time, and that once.
func TestUnindexedDirectory(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{People: 20_000, Unindexed: true, Seed: groupsLDIF()})
	c := config(d)
	requests := counting(&c)
	e := engine(t, c)
	var members []string
	for i := 11; i <= 1010; i++ {
		members = append(members, d.UserDN(i))
	}
	for try := range 2 {
		requests.Store(0)
		began := time.Now()
		r, err := e.Change(context.Background(), d.GroupDN("gon"), members, nil, ChangeOptions{})
		if err != nil || !r.Complete() {
			t.Fatal(err, brief(r))
		}
		t.Logf("%d requests in %v", requests.Load(), time.Since(began))
		if n := requests.Load(); try == 1 && n < 1000 {
			t.Errorf("%d requests: it reads 20,000 entries for each of them", n)
		}
	}
}
