//go:build unix

package testpeer

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// addGroup makes a group as the admin.
func addGroup(t *testing.T, d *Directory, name string, attrs map[string][]string) string {
	t.Helper()
	c := dialLDAP(t, d.URL)
	if err := c.Bind(d.AdminDN, d.AdminPassword); err != nil {
		t.Fatalf("bind as %s: %v", d.AdminDN, err)
	}
	r := ldap.NewAddRequest(d.GroupDN(name), nil)
	for a, v := range attrs {
		r.Attribute(a, v)
	}
	if err := c.Add(r); err != nil {
		t.Fatalf("add group %s: %v", name, err)
	}
	return d.GroupDN(name)
}

// wantRights checks that the service account writes members of group and
// nothing of people, and that people write neither.
func wantRights(t *testing.T, d *Directory, group string) {
	t.Helper()
	member := ldap.NewModifyRequest(group, nil)
	member.Add("member", []string{d.UserDN(2)})
	person := ldap.NewModifyRequest(d.UserDN(2), nil)
	person.Replace("description", []string{"written"})
	for _, who := range []struct {
		dn, password string
		member       uint16
	}{
		{d.UserDN(1), d.UserPassword, ldap.LDAPResultInsufficientAccessRights},
		{d.ServiceDN, d.ServicePassword, ldap.LDAPResultSuccess},
	} {
		c := dialLDAP(t, d.URL)
		if err := c.Bind(who.dn, who.password); err != nil {
			t.Fatalf("bind as %s: %v", who.dn, err)
		}
		if err := c.Modify(member); who.member == 0 && err != nil || who.member != 0 && !ldap.IsErrorWithCode(err, who.member) {
			t.Errorf("%s changes a group: %v, want code %d", who.dn, err, who.member)
		}
		if err := c.Modify(person); !ldap.IsErrorWithCode(err, ldap.LDAPResultInsufficientAccessRights) {
			t.Errorf("%s changes a person: %v, want insufficientAccessRights", who.dn, err)
		}
	}
}

// wantRestart checks that what was written is there after kill -9.
func wantRestart(t *testing.T, d *Directory, group string) {
	t.Helper()
	was := d.URL
	d.Stop()
	d.Restart(t)
	if d.URL != was {
		t.Errorf("restarted at %s, was at %s", d.URL, was)
	}
	c := dialLDAP(t, d.URL)
	if err := c.Bind(d.UserDN(1), d.UserPassword); err != nil {
		t.Fatalf("bind after the restart: %v", err)
	}
	g := search(t, c, group, "(member="+ldap.EscapeFilter(d.UserDN(2))+")")
	if len(g) != 1 {
		t.Errorf("the group is found %d times by the member added before the restart", len(g))
	}
}

func TestSambaIsADomainController(t *testing.T) {
	d := Samba(t, SambaOptions{})
	g := addGroup(t, d, "crew", map[string][]string{"objectClass": {"group"}, "sAMAccountName": {"crew"}})
	wantRights(t, d, g)
	wantRestart(t, d, g)

	c := dialLDAP(t, d.URL)
	if err := c.StartTLS(&tls.Config{RootCAs: d.CA.Pool, ServerName: "dc1.lab.test", MinVersion: tls.VersionTLS12}); err != nil {
		t.Fatalf("StartTLS: %v", err)
	}
	if err := c.Bind("u1@lab.test", d.UserPassword); err != nil {
		t.Errorf("bind by the user's principal name: %v", err)
	}
	r, err := c.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)",
		[]string{"defaultNamingContext", "supportedCapabilities"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Entries[0].GetAttributeValue("defaultNamingContext"); got != d.BaseDN {
		t.Errorf("the naming context is %q, want %q", got, d.BaseDN)
	}
	const activeDirectory = "1.2.840.113556.1.4.800"
	if got := strings.Join(r.Entries[0].GetAttributeValues("supportedCapabilities"), " "); !strings.Contains(got, activeDirectory) {
		t.Errorf("the capabilities %q lack Active Directory's", got)
	}
	last := search(t, c, d.ContactDN(d.Contacts), "(objectClass=contact)")
	if len(last) != 1 {
		t.Errorf("contact %d is there %d times", d.Contacts, len(last))
	}
}

func TestSambaWithStrongAuthRefusesPlainBinds(t *testing.T) {
	d := Samba(t, SambaOptions{StrongAuth: true})
	c := dialLDAP(t, d.URL)
	if err := c.Bind(d.ServiceDN, d.ServicePassword); !ldap.IsErrorWithCode(err, ldap.LDAPResultStrongAuthRequired) {
		t.Errorf("a plain bind: %v, want strongerAuthRequired", err)
	}
	conf := &tls.Config{RootCAs: d.CA.Pool, ServerName: "dc1.lab.test", MinVersion: tls.VersionTLS12}
	if err := c.StartTLS(conf); err != nil {
		t.Fatalf("StartTLS: %v", err)
	}
	if err := c.Bind(d.ServiceDN, d.ServicePassword); err != nil {
		t.Errorf("a bind over StartTLS: %v", err)
	}
	if d.LDAPSURL != "" {
		if err := dialLDAP(t, d.LDAPSURL, ldap.DialWithTLSConfig(conf)).Bind(d.ServiceDN, d.ServicePassword); err != nil {
			t.Errorf("a bind over LDAPS: %v", err)
		}
	}
}

func TestDS389(t *testing.T) {
	d := DS389(t)
	g := addGroup(t, d, "crew", map[string][]string{"objectClass": {"top", "groupOfNames"}})
	wantRights(t, d, g)
	wantRestart(t, d, g)
}

func TestSlapdRestartsWithItsData(t *testing.T) {
	d := Slapd(t, SlapdOptions{})
	c := dialLDAP(t, d.URL)
	if err := c.Bind(d.ServiceDN, d.ServicePassword); err != nil {
		t.Fatal(err)
	}
	r := ldap.NewModifyRequest(d.GroupDN("staff"), nil)
	r.Add("member", []string{d.UserDN(2)})
	if err := c.Modify(r); err != nil {
		t.Fatal(err)
	}
	wantRestart(t, d, d.GroupDN("staff"))
}

// The directories are processes of several kinds; all must go with a test
// binary that is killed.
func TestDirectoriesEndWithAKilledTestBinary(t *testing.T) {
	const role = "TESTPEER_DIRECTORIES"
	if os.Getenv(role) != "" {
		for _, d := range []*Directory{Slapd(t, SlapdOptions{}), Samba(t, SambaOptions{}), DS389(t)} {
			os.Stdout.WriteString("child " + strconv.Itoa(d.Process.PID()) + "\n")
		}
		os.Stdout.WriteString("up\n")
		select {}
	}
	// Its temporary directories would outlive it, and what is named after them.
	temp := shortDir(t)
	t.Cleanup(func() {
		left, _ := filepath.Glob(filepath.Join(temp, "*")) // the pattern is good
		for _, dir := range left {
			removeSemaphore(filepath.Base(dir))
		}
	})
	parent := Start(t, []string{role + "=1", "TMPDIR=" + temp}, os.Args[0],
		"-test.run=^TestDirectoriesEndWithAKilledTestBinary$")
	if !eventually(120*time.Second, parent.Done(), func() bool { return strings.Contains(parent.Output(), "up\n") }) {
		t.Fatalf("the directories do not start: %s", parent.Output())
	}
	var pids []int
	for line := range strings.Lines(parent.Output()) {
		if n, ok := strings.CutPrefix(line, "child "); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil || !alive(pid) {
				t.Fatalf("child %q is not there", n)
			}
			pids = append(pids, pid)
		}
	}
	if len(pids) != 3 {
		t.Fatalf("%d children, want 3", len(pids))
	}
	parent.Kill()
	for _, pid := range pids {
		if !eventually(20*time.Second, nil, func() bool { return !alive(pid) }) {
			t.Errorf("directory %d outlives its killed test binary", pid)
		}
	}
}
