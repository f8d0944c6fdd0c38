package testpeer

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// DS389 starts a 389 Directory Server with people u1 to u20 and no groups. The
// admin is its Directory Manager. It has no TLS.
//
// The server's own installer takes a quarter of a minute, starts it on all
// interfaces and does not run as root; filling in the template that the
// installer uses takes less than a second.
func DS389(tb testing.TB) *Directory {
	tb.Helper()
	program := lookPath(tb, "ns-slapd")
	const base = "dc=example,dc=org"
	d := &Directory{
		BaseDN: base, AdminDN: "cn=Directory Manager", AdminPassword: "secret389",
		PeopleDN: "ou=people," + base, GroupsDN: "ou=groups," + base,
		ServiceDN: "cn=svc," + base, ServicePassword: "svcpw",
		UserPassword: "userpw", People: 20, rdn: "uid",
	}
	s := &ds389Server{program: program, temp: shortDir(tb), directory: d}
	d.launch = s.launch
	d.Process = d.launch(tb)
	d.seedDS389(tb)
	return d
}

// ds389Server is how a 389 Directory Server is started.
type ds389Server struct {
	program, temp string
	directory     *Directory
	dir, config   string // empty until the first launch
}

func (s *ds389Server) launch(tb testing.TB) *Process {
	tb.Helper()
	d := s.directory
	known := s.dir != ""
	var last string
	for i := range launches(known) {
		if !known {
			d.Addr = FreeAddr(tb)
			d.URL = "ldap://" + d.Addr
			// Two servers whose configurations have one name share a semaphore
			// in /dev/shm, to which only the first one's user has a right.
			s.dir = filepath.Join(s.temp, fmt.Sprint(i))
			s.config = filepath.Join(s.dir, filepath.Base(s.temp))
			tb.Cleanup(func() { removeSemaphore(filepath.Base(s.temp)) })
			layOutDS389(tb, s.dir, s.config, d)
		}
		// -d keeps it in the foreground, so that it stays our child.
		p := Start(tb, nil, s.program, "-D", s.config, "-i", filepath.Join(s.dir, "pid"), "-d", "0")
		if listening(p, 60*time.Second, d.Addr) {
			return p
		}
		p.Kill()
		last = p.Output()
	}
	tb.Fatalf("ns-slapd does not come up: %s", last)
	return nil
}

// removeSemaphore removes what a server whose configuration has this name leaves
// behind, if it is there.
func removeSemaphore(name string) { os.Remove("/dev/shm/sem." + name + ".stats") }

// layOutDS389 makes the directories of a server, with its first configuration.
func layOutDS389(tb testing.TB, dir, config string, d *Directory) {
	tb.Helper()
	for _, sub := range []string{config + "/schema", dir + "/lock", dir + "/tmp", dir + "/ldif", dir + "/bak", dir + "/run",
		dir + "/inst", dir + "/log", dir + "/db"} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	// The installed ones are for their owner's eyes; these will do.
	writeFile(tb, filepath.Join(config, "certmap.conf"), []byte("certmap default default\n"))
	writeFile(tb, filepath.Join(config, "slapd-collations.conf"),
		[]byte("collation \"\" \"\" \"\" 1 3 2.16.840.1.113730.3.3.2.0.1 default\n"))
	writeFile(tb, filepath.Join(config, "schema", "99user.ldif"),
		[]byte("dn: cn=schema\nobjectClass: top\nobjectClass: ldapSubentry\nobjectClass: subschema\ncn: schema\n"))
	writeFile(tb, filepath.Join(config, "dse.ldif"), []byte(configDS389(tb, dir, config, d)))
}

func configDS389(tb testing.TB, dir, config string, d *Directory) string {
	tb.Helper()
	me, err := user.Current()
	if err != nil {
		tb.Fatal(err)
	}
	host, port, err := net.SplitHostPort(d.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	values := []string{
		"schema_dir", config + "/schema", "config_dir", config, "cert_dir", config,
		"lock_dir", dir + "/lock", "tmp_dir", dir + "/tmp", "ldif_dir", dir + "/ldif", "bak_dir", dir + "/bak",
		"run_dir", dir + "/run", "inst_dir", dir + "/inst", "log_dir", dir + "/log",
		"db_dir", dir + "/db", "db_home_dir", dir + "/db\nnsslapd-db-durable-transaction: off", "db_lib", "bdb",
		"fqdn", "localhost", "ds_port", port + "\nnsslapd-listenhost: " + host, "ds_user", me.Username,
		"rootdn", d.AdminDN, "ds_passwd", "{CLEAR}" + d.AdminPassword, "ds_suffix", d.BaseDN, "instance_name", "test",
		"ldapi_enabled", "off", "ldapi_autobind", "off", "ldapi", dir + "/run/ldapi",
	}
	for i := 0; i < len(values); i += 2 {
		values[i] = "%" + values[i] + "%"
	}
	return strings.NewReplacer(values...).Replace(string(readFile(tb, "/usr/share/dirsrv/data/template-dse.ldif")))
}

// seedDS389 adds the database, which the server takes only while it runs, and
// the entries.
func (d *Directory) seedDS389(tb testing.TB) {
	tb.Helper()
	c, err := ldap.DialURL(d.URL)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	c.SetTimeout(30 * time.Second)
	if err := c.Bind(d.AdminDN, d.AdminPassword); err != nil {
		tb.Fatalf("bind as %s: %v", d.AdminDN, err)
	}
	add := func(dn string, attrs ...string) {
		tb.Helper()
		r := ldap.NewAddRequest(dn, nil)
		for i := 0; i < len(attrs); i += 2 {
			r.Attribute(attrs[i], strings.Split(attrs[i+1], " + "))
		}
		if err := c.Add(r); err != nil {
			tb.Fatalf("add %s: %v", dn, err)
		}
	}
	add("cn=userroot,cn=ldbm database,cn=plugins,cn=config",
		"objectClass", "top + extensibleObject + nsBackendInstance", "cn", "userroot", "nsslapd-suffix", d.BaseDN)
	add(fmt.Sprintf("cn=%q,cn=mapping tree,cn=config", d.BaseDN),
		"objectClass", "top + extensibleObject + nsMappingTree", "cn", d.BaseDN, "nsslapd-state", "backend", "nsslapd-backend", "userroot")
	const readers = `(targetattr!="userPassword || aci")(version 3.0; acl "read"; allow (read,search,compare) userdn="ldap:///all";)`
	writers := fmt.Sprintf(`(targetattr="*")(version 3.0; acl "write"; allow (all) userdn="ldap:///%s";)`, d.ServiceDN)
	add(d.BaseDN, "objectClass", "top + domain", "dc", "example", "aci", readers)
	add(d.ServiceDN, "objectClass", "organizationalRole + simpleSecurityObject", "cn", "svc", "userPassword", d.ServicePassword)
	add(d.PeopleDN, "objectClass", "organizationalUnit", "ou", "people")
	add(d.GroupsDN, "objectClass", "organizationalUnit", "ou", "groups", "aci", writers)
	for i := 1; i <= d.People; i++ {
		n := fmt.Sprint("u", i)
		add(d.UserDN(i), "objectClass", "inetOrgPerson", "uid", n, "cn", n, "sn", n, "userPassword", d.UserPassword)
	}
}
