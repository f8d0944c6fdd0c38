//go:build unix

package testpeer

import (
	"crypto/rand"
	"crypto/sha256"
	_ "embed" // the script that makes the database
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// SambaOptions shape a domain controller. The zero value takes simple binds
// without TLS.
type SambaOptions struct {
	// StrongAuth refuses simple binds without TLS, as hardened domain
	// controllers do.
	StrongAuth bool
}

// sambaContacts make groups of thousands of members possible.
const sambaContacts = 3000

// Samba starts an Active Directory domain controller, of which it runs the LDAP
// service alone. It has people u1 to u20, who are users of the domain
// lab.test, as "u1@lab.test" too; 3000 contacts; and no groups but the built-in
// ones. The service account may write members of groups below GroupsDN.
//
// Making its database takes several seconds of CPU; it is done once and kept
// in the module's .cache directory. Starting on a copy takes about a second.
//
// Samba has the LDAP ports built in, so it gets a loopback address of its own.
// Where the test may not bind ports that low, Samba runs in a network
// namespace, its Unix socket is forwarded from a port of 127.0.0.1, and there
// is no LDAPSURL.
func Samba(tb testing.TB, o SambaOptions) *Directory {
	tb.Helper()
	samba := lookPath(tb, "samba")
	const base = "DC=lab,DC=test"
	d := &Directory{
		BaseDN: base, AdminDN: "CN=Administrator,CN=Users," + base, AdminPassword: "Passw0rd!x",
		PeopleDN: "OU=people," + base, GroupsDN: "OU=groups," + base, ContactsDN: "OU=contacts," + base,
		ServiceDN: "CN=svc,CN=Users," + base, ServicePassword: "svcpw",
		UserPassword: "userpw", People: 20, Contacts: sambaContacts, rdn: "CN", CA: NewCA(tb),
	}
	dir := shortDir(tb)
	if err := os.CopyFS(dir, os.DirFS(sambaDatabase(tb, samba))); err != nil {
		tb.Fatal(err)
	}
	s := &sambaServer{program: samba, dir: dir, strongAuth: o.StrongAuth, directory: d}
	d.launch = s.launch
	d.Process = d.launch(tb)
	return d
}

// sambaServer is how a domain controller is started.
type sambaServer struct {
	program, dir string
	strongAuth   bool
	directory    *Directory
	conf         string // empty until the first launch
	namespace    bool   // run apart, forwarded
}

func (s *sambaServer) launch(tb testing.TB) *Process {
	tb.Helper()
	var last string
	known := s.conf != ""
	for range launches(known) {
		if !known {
			s.configure(tb)
		}
		p := s.start(tb)
		wait := []string{"unix:" + s.socket()}
		if !s.namespace {
			wait = append(wait, s.directory.Addr, s.directory.TLSAddr)
		}
		if listening(p, 60*time.Second, wait...) {
			if !known && s.namespace {
				s.forward(tb)
			}
			return p
		}
		p.Kill()
		last = p.Output()
	}
	tb.Fatalf("samba does not come up: %s", last)
	return nil
}

func (s *sambaServer) start(tb testing.TB) *Process {
	tb.Helper()
	args := []string{"-i", "-M", "single", "-s", s.conf, "--debug-stdout"}
	if !s.namespace {
		return Start(tb, nil, s.program, args...)
	}
	// A new network namespace begins with its loopback interface down.
	script := `ip link set lo up && exec "$0" "$@"`
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, s.program}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = namespaceAttr()
	return startCmd(tb, cmd)
}

// configure writes the configuration for an address that is free.
func (s *sambaServer) configure(tb testing.TB) {
	tb.Helper()
	d := s.directory
	var ip string
	ip, s.namespace = loopbackFor(tb, "389", "636", "3268", "3269")
	cert := d.CA.Issue(tb, "dc1.lab.test", "localhost", ip, "127.0.0.1")
	s.conf = filepath.Join(s.dir, "lab.conf")
	strong := "no"
	if s.strongAuth {
		strong = "yes"
	}
	writeFile(tb, s.conf, fmt.Appendf(nil, sambaConf, s.dir, ip, strong, d.CA.File, cert.CertFile, cert.KeyFile))
	if !s.namespace {
		d.Addr, d.TLSAddr = ip+":389", ip+":636"
		d.URL, d.LDAPSURL = "ldap://"+d.Addr, "ldaps://"+d.TLSAddr
	}
}

// sambaConf takes the directory, the address, yes or no to strong
// authentication, and the files of CA, certificate and key.
const sambaConf = `[global]
  netbios name = DC1
  realm = LAB.TEST
  workgroup = LAB
  server role = active directory domain controller
  server services = ldap
  dcerpc endpoint servers =
  bind interfaces only = yes
  interfaces = %[2]s/8
  private dir = %[1]s/private
  lock directory = %[1]s
  state directory = %[1]s/state
  cache directory = %[1]s/cache
  pid directory = %[1]s
  ncalrpc dir = %[1]s/ncalrpc
  winbindd socket directory = %[1]s/winbindd
  ntp signd socket directory = %[1]s/ntp
  log file = %[1]s/log.%%m
  log level = 0
  ldap server require strong auth = %[3]s
  tls enabled = yes
  tls cafile = %[4]s
  tls certfile = %[5]s
  tls keyfile = %[6]s
  ldb:nosync = true
  load printers = no
  disable spoolss = yes
`

func (s *sambaServer) socket() string { return filepath.Join(s.dir, "private", "ldapi") }

// forward gives the Unix socket a port of 127.0.0.1.
func (s *sambaServer) forward(tb testing.TB) {
	tb.Helper()
	t := Serve(tb, func(c *net.TCPConn) {
		u, err := net.Dial("unix", s.socket())
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(u, c) // either end is told below
			u.Close()
		})
		io.Copy(c, u)
		c.Close()
		wg.Wait()
	})
	s.directory.Addr, s.directory.URL = t.Addr, "ldap://"+t.Addr
}

// loopbackFor finds an address of 127.0.0.0/8 where all the ports are free. In
// a namespace of its own every address is; lowly says that it needs one,
// because this process may not bind such ports.
func loopbackFor(tb testing.TB, ports ...string) (ip string, lowly bool) {
	tb.Helper()
	for range 100 {
		var b [3]byte
		rand.Read(b[:])
		ip = fmt.Sprintf("127.%d.%d.%d", 64+b[0]%64, b[1], 1+b[2]%254)
		err := tryListen(ip, ports)
		if err == nil {
			return ip, false
		}
		if errors.Is(err, os.ErrPermission) {
			return ip, true
		}
	}
	tb.Fatalf("no loopback address has the ports %s free", strings.Join(ports, " "))
	return "", false
}

func tryListen(ip string, ports []string) error {
	for _, p := range ports {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, p))
		if err != nil {
			return err
		}
		ln.Close()
	}
	return nil
}

//go:embed sambadb.py
var sambaScript string

// sambaDatabase is the directory with a fresh database for this version of
// Samba. It is made when it is not there yet, by one test process for all.
func sambaDatabase(tb testing.TB, samba string) string {
	tb.Helper()
	version, err := exec.Command(samba, "--version").Output()
	if err != nil {
		tb.Fatalf("samba --version: %v", err)
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", version, sambaScript, sambaContacts))
	parent := filepath.Join(ModuleRoot(tb), ".cache", "samba")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		tb.Fatal(err)
	}
	defer lockDir(tb, parent)()
	dir := filepath.Join(parent, fmt.Sprintf("%x", key[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	removeAllBut(tb, parent, "lock") // those of other versions, and what a killed test left
	work := filepath.Join(parent, "making")
	if err := os.Mkdir(work, 0o700); err != nil {
		tb.Fatal(err)
	}
	// Samba's modules are there for the system's Python alone.
	p := exec.Command("/usr/bin/python3", "-", work, strconv.Itoa(sambaContacts))
	p.Stdin, p.SysProcAttr = strings.NewReader(sambaScript), procAttr()
	if out, err := p.CombinedOutput(); err != nil {
		tb.Fatalf("make a Samba database: %v (is everything that scripts/deps.sh installs there?)\n%s", err, out)
	}
	if err := os.Rename(work, dir); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func removeAllBut(tb testing.TB, dir, name string) {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == name {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			tb.Fatal(err)
		}
	}
}
