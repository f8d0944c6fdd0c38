package demodir

import (
	"fmt"
	"strings"
)

// The names and passwords that the documentation prints. Everybody may read;
// the administrator may also write. A person's password is "demo-" and the
// uid.
const (
	BaseDN   = "dc=example,dc=org"
	PeopleDN = "ou=people," + BaseDN
	GroupsDN = "ou=groups," + BaseDN

	AdminDN        = "cn=admin," + BaseDN
	AdminPassword  = "admin-demo"
	ReaderDN       = "cn=reader," + BaseDN
	ReaderPassword = "reader-demo"
)

// PersonDN returns the DN of the person with this uid.
func PersonDN(uid string) string { return "uid=" + uid + "," + PeopleDN }

// GroupDN returns the DN of the group with this cn.
func GroupDN(cn string) string { return "cn=" + cn + "," + GroupsDN }

// people are uid, given name, surname and title.
var people = [][4]string{
	{"ada", "Ada", "Lovelace", "Analyst"},
	{"alan", "Alan", "Turing", "Researcher"},
	{"annie", "Annie", "Easley", "Engineer"},
	{"barbara", "Barbara", "Liskov", "Architect"},
	{"dennis", "Dennis", "Ritchie", "Engineer"},
	{"edsger", "Edsger", "Dijkstra", "Researcher"},
	{"grace", "Grace", "Hopper", "Rear Admiral"},
	{"hedy", "Hedy", "Lamarr", "Inventor"},
	{"katherine", "Katherine", "Johnson", "Analyst"},
	{"margaret", "Margaret", "Hamilton", "Engineer"},
	{"radia", "Radia", "Perlman", "Engineer"},
	{"zoe", "Zoë", "Ünal", "Apprentice"}, // not ASCII, so that UTF-8 is seen to pass
}

// groups are cn, description and the members' uids.
var groups = []struct {
	cn, description string
	members         []string
}{
	{"engineers", "People who build things", []string{"annie", "barbara", "dennis", "margaret", "radia"}},
	{"analysts", "People who find things out", []string{"ada", "alan", "katherine"}},
	{"vpn-users", "May reach the office network from outside", []string{"ada", "grace", "hedy", "radia"}},
}

// Example returns the demo's directory.
func Example() *Tree {
	t := NewTree(BaseDN, "objectClass", "organization", "objectClass", "dcObject", "dc", "example", "o", "Example Org")
	t.MustAdd(AdminDN, AdminPassword, "objectClass", "applicationProcess", "cn", "admin", "description", "may write")
	t.MustAdd(ReaderDN, ReaderPassword, "objectClass", "applicationProcess", "cn", "reader", "description", "may read")
	t.MustAdd(PeopleDN, "", "objectClass", "organizationalUnit", "ou", "people")
	t.MustAdd(GroupsDN, "", "objectClass", "organizationalUnit", "ou", "groups")
	for i, p := range people {
		uid, given, sn, title := p[0], p[1], p[2], p[3]
		t.MustAdd(PersonDN(uid), "demo-"+uid,
			"objectClass", "person", "objectClass", "organizationalPerson", "objectClass", "inetOrgPerson",
			"uid", uid, "cn", given+" "+sn, "givenName", given, "sn", sn, "title", title,
			"mail", uid+"@example.org", "employeeNumber", fmt.Sprint(1001+i), "telephoneNumber", fmt.Sprintf("+49 30 5550 %03d", i+1))
	}
	for _, g := range groups {
		attrs := []string{"objectClass", "groupOfNames", "cn", g.cn, "description", g.description}
		for _, uid := range g.members {
			attrs = append(attrs, "member", PersonDN(uid))
		}
		t.MustAdd(GroupDN(g.cn), "", attrs...)
	}
	t.admin = mustKey(AdminDN)
	return t
}

// NumPeople is how many people [Example] holds.
func NumPeople() int { return len(people) }

// Members returns the uids that [Example] puts into a group.
func Members(cn string) []string {
	for _, g := range groups {
		if strings.EqualFold(g.cn, cn) {
			return g.members
		}
	}
	return nil
}
