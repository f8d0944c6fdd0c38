package ldapgroup

import (
	"slices"
	"testing"

	"github.com/go-ldap/ldap/v3"
)

func TestRulesMostExactFirst(t *testing.T) {
	rules, err := parseRules([]GroupRule{
		{DN: "dc=x", Subtree: true},
		{DN: "ou=b,ou=groups,dc=x", Subtree: true, MaxRemovals: 0.5},
		{DN: "ou=groups,dc=x", Subtree: true},
		{DN: "ou=b,ou=groups,dc=x"},
		{DN: "cn=a,ou=groups,dc=x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{rules: rules}
	for dn, want := range map[string]GroupRule{
		"cn=a,ou=groups,dc=x":            {DN: "cn=a,ou=groups,dc=x"},
		"CN=A , OU=Groups,DC=X":          {DN: "cn=a,ou=groups,dc=x"},
		"cn=z,cn=a,ou=groups,dc=x":       {DN: "ou=groups,dc=x", Subtree: true},
		"ou=b,ou=groups,dc=x":            {DN: "ou=b,ou=groups,dc=x"},
		"cn=c,ou=b,ou=groups,dc=x":       {DN: "ou=b,ou=groups,dc=x", Subtree: true},
		"cn=c,dc=x":                      {DN: "dc=x", Subtree: true},
		`cn=c\,ou=b\,ou=groups,dc=x`:     {DN: "dc=x", Subtree: true},
		"cn=c,dc=y":                      {},
		`cn=c\,dc=x`:                     {},
		"cn=c,ou=groups,dc=x,dc=example": {},
	} {
		n, err := parseName(dn)
		if err != nil {
			t.Fatal(err)
		}
		r := e.ruleFor(n)
		if r == nil {
			r = &rule{}
		}
		if r.DN != want.DN || r.Subtree != want.Subtree {
			t.Errorf("%q: rule %q, subtree %v", dn, r.DN, r.Subtree)
		}
	}
}

func TestProtectedGroups(t *testing.T) {
	domain := "\x00\x00\x00\x00\x00\x05\x15\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00"
	for _, tt := range []struct {
		domain string
		rid    uint32
		want   bool
	}{
		{domain, 512, true}, {domain, 513, true}, {domain, 519, true}, {domain, 527, true},
		{domain, 1000, false}, {domain, 1104, false},
		{builtinDomain, 544, true}, {builtinDomain, 5000, true},
	} {
		b := []byte("\x01\x05" + tt.domain)
		b[1] = byte((len(tt.domain)-6)/4 + 1)
		b = append(b, byte(tt.rid), byte(tt.rid>>8), 0, 0)
		s, ok := parseSID(b)
		if !ok || s.rid != tt.rid || s.domain != tt.domain || s.protected() != tt.want {
			t.Errorf("%x: %+v, %v, protected %v", b, s, ok, s.protected())
		}
	}
	for _, b := range []string{"", "\x01", "\x02\x01\x00\x00\x00\x00\x00\x05\x0b\x00\x00\x00", "\x01\x02\x00\x00\x00\x00\x00\x05\x0b\x00\x00\x00"} {
		if s, ok := parseSID([]byte(b)); ok {
			t.Errorf("%x is %+v", b, s)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, tt := range []struct {
		classes []string
		want    Kind
	}{
		{[]string{"top", "groupofnames"}, GroupOfNames},
		{[]string{"top", "posixGroup", "groupOfNames"}, GroupOfNames}, // RFC 2307bis
		{[]string{"groupOfUniqueNames"}, GroupOfUniqueNames},
		{[]string{"top", "group"}, ADGroup},
		{[]string{"top", "group", "posixGroup"}, ADGroup},
		{[]string{"posixGroup"}, PosixGroup},
		{[]string{"inetOrgPerson", "groupOfURLs"}, 0},
		{nil, 0},
	} {
		e := ldap.NewEntry("cn=g", map[string][]string{"objectClass": tt.classes})
		if got := kindOf(e); got != tt.want {
			t.Errorf("%v: %v", tt.classes, got)
		}
	}
}

func TestVendors(t *testing.T) {
	for _, tt := range []struct {
		root map[string][]string
		want Vendor
	}{
		{map[string][]string{"objectClass": {"top", "OpenLDAProotDSE"}}, OpenLDAP},
		{map[string][]string{"vendorName": {"389 Project"}, "vendorVersion": {"389-Directory/2.3.1"}}, DS389},
		{map[string][]string{"vendorName": {"Samba Team (https://www.samba.org)"}, "supportedCapabilities": {adCapability}}, Samba},
		{map[string][]string{"supportedcapabilities": {"1.2.3", adCapability}}, ActiveDirectory},
		{map[string][]string{"supportedCapabilities": {adLDSCapability}}, ActiveDirectory},
		{map[string][]string{"vendorName": {"lldap"}}, Generic},
		{nil, Generic},
	} {
		if got := serverOf(ldap.NewEntry("", tt.root)).Vendor; got != tt.want {
			t.Errorf("%v: %v", tt.root, got)
		}
	}
}

func TestParseSchema(t *testing.T) {
	items := parseSchema([]string{
		"( 2.5.6.9 NAME 'groupOfNames' DESC 'RFC2256: a group (of names)' SUP top STRUCTURAL MUST ( member $ cn ) MAY ( businessCategory $ o ) )",
		"(2.5.6.17 NAME ( 'groupOfUniqueNames' 'gou' ) MUST(uniqueMember$cn)MAY description)",
		"( 2.5.4.31 NAME 'member' SUP distinguishedName )",
		"( 1.2.3 DESC 'nameless' )",
		"( 1.2.4 NAME ", "", "((((", "( 1.2.5 NAME 'open MUST ( a $",
	})
	for class, attribute := range map[string]string{"groupofnames": "Member", "gou": "uniquemember", "groupofuniquenames": "description"} {
		if items[class] == nil || !items[class].allows(attribute) {
			t.Errorf("%s does not allow %s: %+v", class, attribute, items[class])
		}
	}
	if !slices.Equal(items["groupofnames"].may, []string{"businessCategory", "o"}) || items["member"] == nil || items["groupofnames"].allows("uniqueMember") {
		t.Errorf("got %+v", items["groupofnames"])
	}
}
