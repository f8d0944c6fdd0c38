package testpeer

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SlapdOptions shape a directory. The zero value is a plain one with 20 people
// and 2 groups.
type SlapdOptions struct {
	TLS         bool          // offer StartTLS, and LDAPS on a second port
	IdleTimeout time.Duration // the server closes idle connections; whole seconds, 0 = never
	People      int           // u1, u2, …; 0 = 20
	Seed        []string      // LDIF to load after the people and groups
	Unindexed   bool          // searches by what names people read them all
	// MemberOf loads the memberof and refint overlays: adding a member that
	// does not exist is refused, and members that are deleted leave their groups.
	MemberOf bool
	// BigEntries adds so many entries below ou=big, each with a description of
	// BigEntryBytes (0 = 100,000). 210 of them make a search result of 21 MB.
	BigEntries    int
	BigEntryBytes int
}

// Slapd starts OpenLDAP with its own configuration and data. Anybody may read
// everything but passwords; people may change their own entry.
func Slapd(tb testing.TB, o SlapdOptions) *Directory {
	tb.Helper()
	slapd, slapadd := lookPath(tb, "slapd"), lookPath(tb, "slapadd")
	const base = "dc=example,dc=org"
	d := &Directory{
		BaseDN: base, AdminDN: "cn=admin," + base, AdminPassword: "secret",
		PeopleDN: "ou=people," + base, GroupsDN: "ou=groups," + base, BigDN: "ou=big," + base,
		ServiceDN: "cn=svc," + base, ServicePassword: "svcpw",
		UserPassword: "userpw", People: o.People, rdn: "uid",
	}
	if d.People == 0 {
		d.People = 20
	}
	if o.TLS {
		d.CA = NewCA(tb)
	}
	dir := tb.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		tb.Fatal(err)
	}
	conf := writeFile(tb, filepath.Join(dir, "slapd.conf"), []byte(d.config(tb, dir, o)))
	seed := writeFile(tb, filepath.Join(dir, "seed.ldif"), []byte(d.ldif(o)))
	add := exec.Command(slapadd, "-q", "-f", conf, "-b", base, "-l", seed)
	if out, err := add.CombinedOutput(); err != nil {
		tb.Fatalf("slapadd: %v\n%s", err, out)
	}
	d.launch = func(tb testing.TB) *Process { return d.startSlapd(tb, slapd, conf) }
	d.Process = d.launch(tb)
	return d
}

// startSlapd tries several ports when it has none yet: slapd cannot report one
// of its own choice.
func (d *Directory) startSlapd(tb testing.TB, slapd, conf string) *Process {
	tb.Helper()
	known := d.Addr != ""
	var last string
	for range launches(known) {
		if !known {
			d.Addr = FreeAddr(tb)
			d.URL = "ldap://" + d.Addr
			if d.CA != nil {
				d.TLSAddr = FreeAddr(tb)
				d.LDAPSURL = "ldaps://" + d.TLSAddr
			}
		}
		urls, wait := d.URL+"/", []string{d.Addr}
		if d.CA != nil {
			urls += " " + d.LDAPSURL + "/"
			wait = append(wait, d.TLSAddr)
		}
		// -d keeps slapd in the foreground, so that it stays our child.
		p := Start(tb, nil, slapd, "-d", "0", "-f", conf, "-h", urls)
		if listening(p, 20*time.Second, wait...) {
			return p
		}
		p.Kill()
		last = p.Output()
	}
	tb.Fatalf("slapd does not come up: %s", last)
	return nil
}

func (d *Directory) config(tb testing.TB, dir string, o SlapdOptions) string {
	tb.Helper()
	var b strings.Builder
	for _, s := range []string{"core", "cosine", "nis", "inetorgperson"} {
		fmt.Fprintf(&b, "include /etc/ldap/schema/%s.schema\n", s)
	}
	fmt.Fprintf(&b, "pidfile %[1]s/slapd.pid\nargsfile %[1]s/slapd.args\n", dir)
	b.WriteString("modulepath /usr/lib/ldap\nmoduleload back_mdb\nloglevel 0\nsizelimit unlimited\n")
	if o.MemberOf {
		b.WriteString("moduleload memberof\nmoduleload refint\n")
	}
	fmt.Fprintf(&b, "idletimeout %d\n", int(o.IdleTimeout.Seconds()))
	if d.CA != nil {
		c := d.CA.Issue(tb, "localhost", "127.0.0.1", net.IPv6loopback.String())
		fmt.Fprintf(&b, "TLSCACertificateFile %s\nTLSCertificateFile %s\nTLSCertificateKeyFile %s\n", d.CA.File, c.CertFile, c.KeyFile)
	}
	fmt.Fprintf(&b, "database mdb\nsuffix %q\ndirectory %s/db\nmaxsize 1073741824\nenvflags nosync\n", d.BaseDN, dir)
	fmt.Fprintf(&b, "rootdn %q\nrootpw %s\nindex objectClass eq\n", d.AdminDN, d.AdminPassword)
	if !o.Unindexed {
		b.WriteString("index cn,uid,member eq\n")
	}
	b.WriteString("access to attrs=userPassword by anonymous auth by self write by * none\n")
	fmt.Fprintf(&b, "access to dn.subtree=%q by dn.exact=%q write by * read\n", d.GroupsDN, d.ServiceDN)
	b.WriteString("access to * by self write by * read\n")
	if o.MemberOf {
		b.WriteString("overlay memberof\nmemberof-group-oc groupOfNames\nmemberof-member-ad member\nmemberof-dangling error\n")
		b.WriteString("memberof-refint true\noverlay refint\nrefint_attributes member\n")
	}
	return b.String()
}

func (d *Directory) ldif(o SlapdOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dn: %s\nobjectClass: top\nobjectClass: domain\ndc: example\n\n", d.BaseDN)
	fmt.Fprintf(&b, "dn: %s\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: svc\nuserPassword: %s\n\n",
		d.ServiceDN, d.ServicePassword)
	for _, ou := range []string{"people", "groups", "big"} {
		fmt.Fprintf(&b, "dn: ou=%s,%s\nobjectClass: organizationalUnit\nou: %[1]s\n\n", ou, d.BaseDN)
	}
	for i := 1; i <= d.People; i++ {
		fmt.Fprintf(&b, "dn: %s\nobjectClass: inetOrgPerson\nuid: u%[2]d\ncn: User %[2]d\nsn: U%[2]d\nmail: u%[2]d@example.org\nuserPassword: %s\n\n",
			d.UserDN(i), i, d.UserPassword)
	}
	fmt.Fprintf(&b, "dn: %s\nobjectClass: groupOfNames\ncn: empty\nmember: %s\n\n", d.GroupDN("empty"), d.AdminDN)
	fmt.Fprintf(&b, "dn: %s\nobjectClass: groupOfNames\ncn: staff\n", d.GroupDN("staff"))
	for i := 1; i <= d.People; i += 2 {
		fmt.Fprintf(&b, "member: %s\n", d.UserDN(i))
	}
	b.WriteString("\n")
	size := o.BigEntryBytes
	if size == 0 {
		size = 100_000
	}
	text := strings.Repeat("0123456789abcdef", size/16+1)[:size]
	for i := 1; i <= o.BigEntries; i++ {
		fmt.Fprintf(&b, "dn: cn=big%d,%s\nobjectClass: organizationalRole\ncn: big%[1]d\ndescription: %[3]s\n\n", i, d.BigDN, text)
	}
	for _, s := range o.Seed {
		b.WriteString(strings.TrimSpace(s) + "\n\n")
	}
	return b.String()
}
