package ldapgroup_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// peer is a real server with a group of each kind that it has.
type peer struct {
	name   string
	d      *testpeer.Directory
	vendor ldapgroup.Vendor
	groups []peerGroup
	admin  *ldap.Conn
}

type peerGroup struct {
	kind  ldapgroup.Kind
	dn    string
	empty bool // may be without members
}

// perServer is an expectation that differs between servers: by "server/kind",
// "kind", "server", or "" for the rest, the first that is there.
type perServer map[string]string

func (w perServer) of(p *peer, g peerGroup) (string, bool) {
	for _, key := range []string{p.name + "/" + g.kind.String(), g.kind.String(), p.name, ""} {
		if v, ok := w[key]; ok {
			return v, true
		}
	}
	return "", false
}

// servers are those that every case is tried on.
var servers = []struct {
	name   string
	vendor ldapgroup.Vendor
	start  func(testing.TB) *testpeer.Directory
}{
	{"openldap", ldapgroup.OpenLDAP, func(tb testing.TB) *testpeer.Directory { return testpeer.Slapd(tb, testpeer.SlapdOptions{}) }},
	{"memberof", ldapgroup.OpenLDAP, func(tb testing.TB) *testpeer.Directory {
		return testpeer.Slapd(tb, testpeer.SlapdOptions{MemberOf: true})
	}},
	{"389ds", ldapgroup.DS389, testpeer.DS389},
	{"samba", ldapgroup.Samba, func(tb testing.TB) *testpeer.Directory { return testpeer.Samba(tb, testpeer.SambaOptions{}) }},
}

// onEachServer runs f on all of them at the same time.
func onEachServer(t *testing.T, f func(*testing.T, *peer)) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			p := &peer{name: s.name, vendor: s.vendor, d: s.start(t)}
			p.addGroups(t)
			f(t, p)
		})
	}
}

// addGroups makes a group of each kind, and a person with a name that is not
// ASCII.
func (p *peer) addGroups(t *testing.T) {
	t.Helper()
	p.admin = admin(t, p.d)
	t.Cleanup(func() { p.admin.Close() })
	one := []string{p.d.UserDN(1)}
	group := func(k ldapgroup.Kind, empty bool, attrs map[string][]string) {
		t.Helper()
		g := peerGroup{kind: k, dn: p.d.GroupDN("of-" + k.String()), empty: empty}
		p.addEntry(t, g.dn, attrs)
		p.groups = append(p.groups, g)
	}
	if p.vendor == ldapgroup.Samba {
		group(ldapgroup.ADGroup, true, map[string][]string{"objectClass": {"group"}, "sAMAccountName": {"case"}})
		p.addEntry(t, p.zoe(), map[string][]string{"objectClass": {"contact"}})
		return
	}
	p.addEntry(t, p.zoe(), map[string][]string{"objectClass": {"inetOrgPerson"}, "sn": {"Z"}})
	mayBeEmpty := p.vendor == ldapgroup.DS389
	group(ldapgroup.GroupOfNames, mayBeEmpty, map[string][]string{"objectClass": {"groupOfNames"}, "member": one})
	if p.name == "memberof" {
		return // the overlay minds groupOfNames alone
	}
	group(ldapgroup.GroupOfUniqueNames, mayBeEmpty, map[string][]string{"objectClass": {"groupOfUniqueNames"}, "uniqueMember": one})
	classes := []string{"posixGroup"}
	if p.vendor == ldapgroup.DS389 {
		classes = []string{"nsContainer", "posixGroup"} // its posixGroup is auxiliary
	}
	group(ldapgroup.PosixGroup, true, map[string][]string{"objectClass": classes, "gidNumber": {"5000"}})
}

func (p *peer) addEntry(t *testing.T, dn string, attrs map[string][]string) {
	t.Helper()
	r := ldap.NewAddRequest(dn, nil)
	for a, v := range attrs {
		r.Attribute(a, v)
	}
	if err := p.admin.Add(r); err != nil {
		t.Fatalf("%s: add %s: %v", p.name, dn, err)
	}
}

func (p *peer) zoe() string { return "cn=Zoë," + p.d.PeopleDN }

// member turns a word of the table into a value: "4" is user 4 and "4^" in
// another spelling, "4%" with hex escapes; "ghost" is nobody. A group of user
// names has those, of which another spelling is another name.
func (p *peer) member(k ldapgroup.Kind, word string) string {
	n := strings.TrimRight(word, "^%")
	numbered := n != "" && strings.Trim(n, "0123456789") == ""
	switch {
	case k == ldapgroup.PosixGroup && numbered:
		return map[bool]string{false: "u" + n, true: "U" + n}[strings.HasSuffix(word, "^")]
	case k == ldapgroup.PosixGroup:
		return word
	case numbered && strings.HasSuffix(word, "^"):
		dn := strings.ToUpper(strings.ReplaceAll(p.d.UserDN(1), "u1,", "u"+n+","))
		return strings.ReplaceAll(dn, ",", " , ")
	case numbered && strings.HasSuffix(word, "%"):
		return strings.Replace(p.d.UserDN(1), "=u1,", fmt.Sprintf(`=\75%s,`, n), 1)
	case numbered:
		return strings.Replace(p.d.UserDN(1), "u1,", "u"+n+",", 1)
	case word == "ghost":
		return strings.Replace(p.d.UserDN(1), "u1,", "ghost,", 1)
	case word == "zoe":
		return p.zoe()
	case word == "zoe%":
		return strings.Replace(p.zoe(), "ë", `\c3\ab`, 1)
	case word == "group":
		return p.groups[0].dn
	case word == "svc":
		return p.d.ServiceDN
	case word == "empty":
		return ""
	}
	return word
}

func (p *peer) members(k ldapgroup.Kind, words string) []string {
	var out []string
	for _, w := range strings.Split(words, "|") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, p.member(k, w))
		}
	}
	return out
}

// set makes the group's members exactly those of words, "-" for nobody.
func (p *peer) set(t *testing.T, g peerGroup, words string) {
	t.Helper()
	r := ldap.NewModifyRequest(g.dn, nil)
	r.Replace(g.kind.Attribute(), p.members(g.kind, strings.TrimPrefix(words, "-")))
	if err := p.admin.Modify(r); err != nil {
		t.Fatal(err)
	}
}

// now is what the group lists, as the directory tells its admin: sorted, "u4"
// as 4.
func (p *peer) now(t *testing.T, g peerGroup) string {
	t.Helper()
	r, err := p.admin.Search(ldap.NewSearchRequest(g.dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{g.kind.Attribute()}, nil))
	if err != nil {
		t.Fatal(err)
	}
	var vs []string
	for _, v := range r.Entries[0].GetAttributeValues(g.kind.Attribute()) {
		if dn, err := ldap.ParseDN(v); err == nil && len(dn.RDNs) > 0 {
			v = dn.RDNs[0].Attributes[0].Value
		}
		vs = append(vs, strings.ToLower(strings.TrimPrefix(v, "u")))
	}
	slices.Sort(vs)
	return strings.Join(vs, " ")
}

// told is a result in a line: outcome/changed, the code of the directory's
// answer, the note and the class of each member.
func told(r *ldapgroup.Result) string {
	var out []string
	for _, m := range r.Members {
		s := m.Outcome.String() + "/" + m.Changed.String()
		if m.Answer != nil {
			s += fmt.Sprintf("(%d)", m.Answer.Code)
		}
		if m.Note != "" {
			s += "/" + m.Note
		}
		if m.Err != nil {
			s += "/" + string(m.Err.Class)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}
