package ldapgroup_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func TestMain(m *testing.M) { testpeer.LeakCheck(m) }

// groupsLDIF are groups of each kind below ou=groups of a testpeer directory,
// with users 1, 2 and 3 as members.
func groupsLDIF() []string {
	const groups, people = "ou=groups,dc=example,dc=org", "ou=people,dc=example,dc=org"
	gon := fmt.Sprintf("dn: cn=gon,%s\nobjectClass: groupOfNames\ncn: gon", groups)
	gou := fmt.Sprintf("dn: cn=gou,%s\nobjectClass: groupOfUniqueNames\ncn: gou", groups)
	px := fmt.Sprintf("dn: cn=px,%s\nobjectClass: posixGroup\ncn: px\ngidNumber: 1000", groups)
	for i := 1; i <= 3; i++ {
		gon += fmt.Sprintf("\nmember: uid=u%d,%s", i, people)
		gou += fmt.Sprintf("\nuniqueMember: uid=u%d,%s", i, people)
		px += fmt.Sprintf("\nmemberUid: u%d", i)
	}
	return []string{gon, gou, px}
}

// config is what tests use unless they say otherwise: everything below
// ou=groups and ou=people, as the service account.
func config(d *testpeer.Directory) Config {
	target, err := ParseURL(d.URL)
	if err != nil {
		panic(err)
	}
	return Config{
		Name: target.Name, Dial: target.Dial, Security: target.Security, AllowPlaintextBind: target.Local,
		Credentials: func(context.Context) (Credentials, error) {
			return Credentials{DN: d.ServiceDN, Password: d.ServicePassword}, nil
		},
		Groups:      []GroupRule{{DN: d.GroupsDN, Subtree: true, AllowReplace: true}},
		MemberBases: []string{d.PeopleDN},
	}
}

func engine(t testing.TB, c Config) *Engine {
	t.Helper()
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// listed reads a group as the admin sees it, sorted, by the first RDN's value.
func listed(t testing.TB, d *testpeer.Directory, group, attribute string) string {
	t.Helper()
	return strings.Join(values(t, d, group, attribute), " ")
}

func values(t testing.TB, d *testpeer.Directory, group, attribute string) []string {
	t.Helper()
	l := admin(t, d)
	defer l.Close()
	r, err := l.Search(ldap.NewSearchRequest(group, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{attribute}, nil))
	if err != nil {
		t.Fatal(err)
	}
	var vs []string
	for _, v := range r.Entries[0].GetAttributeValues(attribute) {
		if dn, err := ldap.ParseDN(v); err == nil && len(dn.RDNs) > 0 {
			v = dn.RDNs[0].Attributes[0].Value
		}
		vs = append(vs, v)
	}
	slices.Sort(vs)
	return vs
}

func admin(t testing.TB, d *testpeer.Directory) *ldap.Conn {
	t.Helper()
	l, err := ldap.DialURL(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	l.SetTimeout(20 * time.Second)
	if err := l.Bind(d.AdminDN, d.AdminPassword); err != nil {
		t.Fatal(err)
	}
	return l
}

// set makes the group's members exactly those.
func set(t testing.TB, d *testpeer.Directory, group, attribute string, members ...string) {
	t.Helper()
	l := admin(t, d)
	defer l.Close()
	r := ldap.NewModifyRequest(group, nil)
	r.Replace(attribute, members)
	if err := l.Modify(r); err != nil {
		t.Fatal(err)
	}
}

// brief is a result in a line: outcome/changed for each member.
func brief(r *Result) string {
	var b []string
	for _, m := range r.Members {
		s := m.Outcome.String() + "/" + m.Changed.String()
		if m.Note != "" {
			s += "/" + m.Note
		}
		if m.Err != nil {
			s += "/" + string(m.Err.Class)
		}
		b = append(b, s)
	}
	return strings.Join(b, " ")
}

// recorder collects events.
type recorder struct {
	mu       sync.Mutex
	modifies []ModifyEvent
	members  []MemberEvent
	conns    []ConnEvent
}

func (r *recorder) observer() Observer {
	return Observer{
		Modify: func(e ModifyEvent) { r.mu.Lock(); defer r.mu.Unlock(); r.modifies = append(r.modifies, e) },
		Member: func(_ context.Context, e MemberEvent) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.members = append(r.members, e)
		},
		Conn: func(e ConnEvent) { r.mu.Lock(); defer r.mu.Unlock(); r.conns = append(r.conns, e) },
	}
}

func (r *recorder) count() (modifies, members int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.modifies), len(r.members)
}

func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.modifies, r.members, r.conns = nil, nil, nil
}

func asError(err error, e **Error) bool { return errors.As(err, e) }

func class(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return ""
}
