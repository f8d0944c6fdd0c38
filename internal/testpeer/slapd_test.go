package testpeer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

func dialLDAP(t *testing.T, url string, o ...ldap.DialOpt) *ldap.Conn {
	t.Helper()
	c, err := ldap.DialURL(url, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func search(t *testing.T, c *ldap.Conn, base, filter string) []*ldap.Entry {
	t.Helper()
	r, err := c.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	return r.Entries
}

func TestSlapdServesPeopleAndGroups(t *testing.T) {
	d := Slapd(t, SlapdOptions{Seed: []string{"dn: cn=extra,dc=example,dc=org\nobjectClass: organizationalRole\ncn: extra"}})
	c := dialLDAP(t, d.URL)
	if n := len(search(t, c, d.PeopleDN, "(objectClass=inetOrgPerson)")); n != 20 {
		t.Errorf("%d people for anonymous, want 20", n)
	}
	if n := len(search(t, c, d.BaseDN, "(cn=extra)")); n != 1 {
		t.Errorf("the extra seed shows %d times", n)
	}
	staff := search(t, c, d.GroupDN("staff"), "(objectClass=groupOfNames)")
	if n := len(staff[0].GetAttributeValues("member")); n != 10 {
		t.Errorf("staff has %d members, want 10", n)
	}
	if staff[0].GetAttributeValue("userPassword") != "" {
		t.Error("anybody can read passwords")
	}
	if err := c.Bind(d.UserDN(1), "wrong"); !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
		t.Errorf("bind with a wrong password: %v", err)
	}
	add := ldap.NewModifyRequest(d.GroupDN("staff"), nil)
	add.Add("member", []string{d.UserDN(2)})
	for _, who := range []struct {
		dn, password string
		code         uint16
	}{
		{d.UserDN(1), d.UserPassword, ldap.LDAPResultInsufficientAccessRights},
		{d.ServiceDN, d.ServicePassword, ldap.LDAPResultSuccess},
		{d.AdminDN, d.AdminPassword, ldap.LDAPResultAttributeOrValueExists},
	} {
		if err := c.Bind(who.dn, who.password); err != nil {
			t.Fatalf("bind as %s: %v", who.dn, err)
		}
		err := c.Modify(add)
		if who.code == ldap.LDAPResultSuccess && err != nil || who.code != 0 && !ldap.IsErrorWithCode(err, who.code) {
			t.Errorf("modify as %s: %v, want code %d", who.dn, err, who.code)
		}
	}
}

func TestSlapdMemberOf(t *testing.T) {
	d := Slapd(t, SlapdOptions{MemberOf: true})
	c := dialLDAP(t, d.URL)
	if err := c.Bind(d.ServiceDN, d.ServicePassword); err != nil {
		t.Fatal(err)
	}
	add := func(dn string) error {
		r := ldap.NewModifyRequest(d.GroupDN("staff"), nil)
		r.Add("member", []string{dn})
		return c.Modify(r)
	}
	if err := add("uid=ghost," + d.PeopleDN); !ldap.IsErrorWithCode(err, ldap.LDAPResultConstraintViolation) {
		t.Errorf("adding a member that does not exist: %v, want constraintViolation", err)
	}
	if err := add(d.UserDN(2)); err != nil {
		t.Fatal(err)
	}
	if n := len(search(t, c, d.PeopleDN, "(memberOf="+d.GroupDN("staff")+")")); n != 1 {
		t.Errorf("%d people are found by memberOf, want the one added", n)
	}
}

func TestSlapdTLS(t *testing.T) {
	d := Slapd(t, SlapdOptions{TLS: true, People: 3})
	conf := &tls.Config{RootCAs: d.CA.Pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	start := dialLDAP(t, d.URL)
	if err := start.StartTLS(conf); err != nil {
		t.Fatalf("StartTLS: %v", err)
	}
	ldaps := dialLDAP(t, d.LDAPSURL, ldap.DialWithTLSConfig(conf))
	for name, c := range map[string]*ldap.Conn{"StartTLS": start, "LDAPS": ldaps} {
		if err := c.Bind(d.UserDN(1), d.UserPassword); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(search(t, c, d.PeopleDN, "(uid=u*)")); n != 3 {
			t.Errorf("%s: %d people, want 3", name, n)
		}
	}
}

func TestSlapdGivesBigResults(t *testing.T) {
	d := Slapd(t, SlapdOptions{BigEntries: 210})
	size := 0
	for _, e := range search(t, dialLDAP(t, d.URL), d.BigDN, "(cn=big*)") {
		size += len(e.GetAttributeValue("description"))
	}
	if size < 20<<20 {
		t.Errorf("the result has %d bytes, want over %d", size, 20<<20)
	}
}

func TestSlapdClosesIdleConnections(t *testing.T) {
	d := Slapd(t, SlapdOptions{IdleTimeout: time.Second})
	c, err := net.Dial("tcp", d.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	// slapd may say goodbye before it closes.
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("an idle connection ends with %v, want EOF", err)
	}
}

// fatal records what a helper reports in place of failing the test.
type fatal struct {
	testing.TB
	said string
}

var errFatal = errors.New("fatal")

func (f *fatal) Helper() {}
func (f *fatal) Fatalf(format string, _ ...any) {
	f.said = format
	panic(errFatal)
}

func TestMissingProgramFailsAndSaysWhatToDo(t *testing.T) {
	f := &fatal{TB: t}
	func() {
		defer func() {
			if r := recover(); r != nil && r != errFatal { //nolint:errorlint // the very value
				panic(r)
			}
		}()
		lookPath(f, "no-such-program-anywhere")
	}()
	if !strings.Contains(f.said, "scripts/deps.sh") {
		t.Errorf("said %q, want a pointer to scripts/deps.sh", f.said)
	}
}
