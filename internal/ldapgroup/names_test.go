package ldapgroup

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"
)

func TestSameName(t *testing.T) {
	const u1 = "uid=u1,ou=people,dc=example,dc=org"
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{u1, "UID=U1 ,  OU=People, DC=example,DC=org", true},
		{u1, `uid=\75\31,ou=people,dc=example,dc=org`, true},
		{"cn=a b,dc=x", "cn=a    b,dc=x", true},
		{"cn=a b,dc=x", `cn=a\20b,dc=x`, true},
		{"cn=a b,dc=x", `cn=\ a b\ ,dc=x`, true},
		{"cn=ab,dc=x", "cn=a b,dc=x", false},
		{"cn=Zoë,dc=x", `cn=zo\c3\8b,dc=x`, true},
		{"cn=ΣΑΣ,dc=x", "cn=σας,dc=x", true},
		{"cn=\u212a,dc=x", "cn=k,dc=x", true},
		{`cn=a\,b,dc=x`, `cn=a\2cb,dc=x`, true},
		{`cn=a\,dc\=x`, "cn=a,dc=x", false},
		{`ou=evil\,ou=people,dc=x`, "ou=evil,ou=people,dc=x", false},
		{"cn=a+uid=b,dc=x", "UID=b + cn=a,dc=x", true},
		{"cn=a+uid=b,dc=x", "cn=a,uid=b,dc=x", false},
		{`cn=a\+uid=b,dc=x`, "cn=a+uid=b,dc=x", false},
		{`cn=a\\,dc=x`, `cn=a\5c,dc=x`, true},
		{"cn=a=b,dc=x", `cn=a\=b,dc=x`, true},
		{"not a dn", "not a dn", false},
		{"", "", false},
	} {
		if got := SameName(tt.a, tt.b); got != tt.same {
			t.Errorf("%q and %q: %v", tt.a, tt.b, got)
		}
	}
}

func TestValidName(t *testing.T) {
	for _, s := range []string{
		"dc=x", "cn=a,dc=x", " cn = a , dc = x ", `cn=a\,b,dc=x`, `cn=\#1,dc=x`, "2.5.4.3=a,dc=x", "cn=Zoë,dc=x", "cn=a+sn=b,dc=x",
		`cn=\22quoted\22,dc=x`, `cn=a\;b,dc=x`, "cn=a#b,dc=x", "cn=a=b,dc=x",
	} {
		if err := ValidName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, want := range map[string]error{
		"":                                errNameEmpty,
		"   ":                             errNameEmpty,
		"cn=" + strings.Repeat("a", 2048): errNameLong,
		"cn=\xff,dc=x":                    errNameUTF8,
		`cn=\ff,dc=x`:                     errNameUTF8,
		"cn=a\nmember: x,dc=x":            errNameControl,
		"cn=a\x00,dc=x":                   errNameControl,
		"cn=a\u0085,dc=x":                 errNameControl,
		`cn=a\00,dc=x`:                    errNameControl,
		`cn=a\0amember: x,dc=x`:           errNameControl,
		"cn=a;dc=x":                       errNameEscape,
		`cn="a",dc=x`:                     errNameEscape,
		"<SID=S-1-5-11>":                  errNameEscape,
		"uid=#04027531,dc=x":              errNameHex,
		"cn=a+uid= #04027531,dc=x":        errNameHex,
		"cn=,dc=x":                        errNameRDN,
		`cn=\20,dc=x`:                     errNameRDN,
		"cn=a,,dc=x":                      errNameSyntax,
		"cn=a,dc=x,":                      errNameSyntax,
		"abc":                             errNameSyntax,
		"=a,dc=x":                         errNameSyntax,
		"c n=a,dc=x":                      errNameRDN,
		"member;range=0-1,dc=x":           errNameEscape,
		`c\6e=a,dc=x\`:                    errNameSyntax,
	} {
		err := ValidName(s)
		if !errors.Is(err, want) || classOf(err) != ClassInvalid {
			t.Errorf("%q: %v, want %v", s, err, want)
		}
	}
}

func TestBelow(t *testing.T) {
	base, err := parseName("OU=people,dc=x")
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]bool{
		"ou=people,dc=x":                 true,
		"uid=u1,ou=People , dc=X":        true,
		"uid=u1,ou=a,ou=people,dc=x":     true,
		`uid=u1,ou=evil\,ou=people,dc=x`: false,
		"uid=u1,ou=notpeople,dc=x":       false,
		"uid=u1,ou=people,dc=x,dc=y":     false,
		`uid=u1\2cou=people\2cdc=x`:      false,
		"uid=u1,ou=people+ou=admin,dc=x": false,
		"dc=x":                           false,
	} {
		n, err := parseName(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.below(base); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestAltName(t *testing.T) {
	for s, want := range map[string]bool{
		"<SID=S-1-5-21-1-2-3-1104>": true,
		"<sid=s-1-5-11>":            true,
		"<SID=0105000000000005150000000100000002000000030000005004000000>": false, // a byte too long
		"<SID=010500000000000515000000010000000200000003000000500400ff>":   true,
		"<GUID=9160c6b5-8871-43b7-bf68-00b8e3eef400>":                      true,
		"<GUID=9160c6b5887143b7bf6800b8e3eef400>":                          true,
		"<GUID=9160c6b5>":                                false,
		"<SID=garbage>":                                  false,
		"<SID=S-1-5-11>,dc=x":                            false,
		"<SID=S-1-5-11)(objectClass=*>":                  false,
		"<WKGUID=a9d1ca15768811d1aded00c04fd8d5cd,dc=x>": false,
		"<>": false,
		"<":  false,
	} {
		if got := altName(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// The fast way to a key and the slow one must agree, no name that is accepted
// may be below a base unless its RDNs say so, and a key must survive being
// written out and read again.
func FuzzName(f *testing.F) {
	for _, s := range []string{
		"uid=u1,ou=people,dc=example,dc=org", " UID = U1 , OU=People", `cn=a\,b\+c\20,dc=x`, "cn=a+uid=b,dc=x", `cn=\c3\ab,dc=x`,
		`cn=\ff,dc=x`, "cn=a  b,dc=x", "cn=#04,dc=x", "cn=a;dc=x", `cn=ſ\00,dc=x`, "2.5.4.3=a", "cn=\u212a,dc=x", `cn="a",dc=x`, `cn=a\`, "=,=",
		`0==\#\<`, "cn==#04,dc=x", "cn=a,dc==#04+ou= #04",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		stored := storedName(s)
		dn, parseErr := ldap.ParseDN(s)
		if plain, ok := plainKey(s); ok {
			if parseErr != nil {
				t.Fatalf("%q is plain and does not parse: %v", s, parseErr)
			}
			if slow := parsedKey(dn); slow != plain {
				t.Fatalf("%q: keys %q and %q", s, plain, slow)
			}
		}
		n, err := parseName(s)
		if err != nil {
			return
		}
		if parseErr != nil {
			t.Fatalf("%q is valid and does not parse: %v", s, parseErr)
		}
		if n.key != stored.key {
			t.Fatalf("%q: keys %q from outside and %q from the directory", s, n.key, stored.key)
		}
		if got := n.depth(); got != len(dn.RDNs) {
			t.Fatalf("%q: key %q has %d parts of %d", s, n.key, got, len(dn.RDNs))
		}
		again, err := parseName(dn.String())
		if err != nil && len(dn.String()) <= maxNameBytes {
			t.Fatalf("%q, written %q: %v", s, dn.String(), err)
		}
		if err == nil && again.key != n.key {
			t.Fatalf("%q, written %q: keys %q and %q", s, dn.String(), n.key, again.key)
		}
		parent := &ldap.DN{RDNs: dn.RDNs[1:]}
		if len(parent.RDNs) > 0 && !n.below(name{key: parsedKey(parent)}) {
			t.Fatalf("%q is not below its parent", s)
		}
		base, err := parseName("ou=people,dc=x")
		if err != nil {
			t.Fatal(err)
		}
		want, err := ldap.ParseDN("ou=people,dc=x")
		if err != nil {
			t.Fatal(err)
		}
		if n.below(base) && !want.AncestorOfFold(dn) && !want.EqualFold(dn) && !looseBelow(dn) {
			t.Fatalf("%q is below %q only by key", s, base.raw)
		}
	})
}

// looseBelow is below with runs of spaces folded, which EqualFold does not do.
func looseBelow(dn *ldap.DN) bool {
	if len(dn.RDNs) < 2 {
		return false
	}
	fold := func(r *ldap.RelativeDN, typ, value string) bool {
		return len(r.Attributes) == 1 && strings.EqualFold(r.Attributes[0].Type, typ) &&
			strings.EqualFold(strings.Join(strings.Fields(r.Attributes[0].Value), " "), value)
	}
	n := len(dn.RDNs)
	return fold(dn.RDNs[n-2], "ou", "people") && fold(dn.RDNs[n-1], "dc", "x")
}

// The guard must take nothing that the decoder chokes on and bound what it
// takes.
func FuzzGuardedMessage(f *testing.F) {
	f.Add([]byte{0x02, 0x01, 0x01, 0x61, 0x07, 0x0a, 0x01, 0x00, 0x04, 0x00, 0x04, 0x00})
	f.Add([]byte{0x30, 0x80, 0x00, 0x00})
	f.Add([]byte{0x04, 0x84, 0x40, 0x00, 0x00, 0x00})
	f.Fuzz(func(t *testing.T, content []byte) {
		left := maxElements
		if checkBER(content, maxDepth, &left) != nil {
			return
		}
		if left < 0 {
			t.Fatal("more elements than allowed")
		}
		for rest := content; len(rest) > 0; {
			_, inner, next, err := element(rest)
			if err != nil || len(inner)+len(next) >= len(rest) {
				t.Fatalf("element of %x: %v", rest, err)
			}
			rest = next
		}
	})
}

func BenchmarkCanonicalName(b *testing.B) {
	for name, s := range map[string]string{
		"plain":   "CN=Some Body,OU=People,OU=Munich,DC=example,DC=org",
		"escaped": `CN=Body\, Some,OU=People,OU=M\C3\BCnchen,DC=example,DC=org`,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if storedName(s).key == "" {
					b.Fatal("no key")
				}
			}
		})
	}
}

func BenchmarkMergeAndSplit(b *testing.B) {
	j := &job{}
	for i := range 20_000 {
		n := storedName(fmt.Sprintf("uid=u%d,ou=people,dc=example,dc=org", i))
		j.members = append(j.members, &member{given: n.raw, action: Add, name: n})
	}
	b.ReportAllocs()
	for b.Loop() {
		adds, _ := merge([]*job{j})
		if len(split(adds)) != 20 {
			b.Fatal("not 20 chunks")
		}
	}
}

func BenchmarkETag(b *testing.B) {
	c := &contents{}
	for i := range 20_000 {
		c.keys = append(c.keys, storedName(fmt.Sprintf("uid=u%d,ou=people,dc=example,dc=org", i)).key)
	}
	b.ReportAllocs()
	for b.Loop() {
		_ = c.etag()
	}
}
