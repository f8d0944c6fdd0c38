package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// tool runs one of OpenLDAP's commands. Without env, which that would hide too,
// it does not see the machine's configuration.
func tool(t *testing.T, env []string, stdin, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	if env == nil {
		env = []string{"LDAPNOINIT="}
	}
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v (Debian: ldap-utils)", name, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ldapsearch runs a search that must succeed and returns its LDIF.
func ldapsearch(t *testing.T, url string, args ...string) string {
	t.Helper()
	out, errs, code := tool(t, nil, "", "ldapsearch", append([]string{"-x", "-LLL", "-o", "ldif-wrap=no", "-H", url}, args...)...)
	if code != 0 {
		t.Fatalf("ldapsearch %q: exit status %d, %s", args, code, errs)
	}
	return out
}

// dialLDAP connects go-ldap.
func dialLDAP(t *testing.T, url string, o ...ldap.DialOpt) *ldap.Conn {
	t.Helper()
	c, err := ldap.DialURL(url, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetTimeout(2 * soon) // the default waits for ever
	return c
}

func subtree(base, filter string, attrs ...string) *ldap.SearchRequest {
	return ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false, filter, attrs, nil)
}

func search(t *testing.T, c *ldap.Conn, r *ldap.SearchRequest) []*ldap.Entry {
	t.Helper()
	res, err := c.Search(r)
	if err != nil {
		t.Fatal(err)
	}
	return res.Entries
}

// startDirectory starts OpenLDAP with a hub and an agent in front of it:
// connector directory leads to its LDAP port, whose URL at the hub is url, and
// ldaps to its LDAPS port.
func startDirectory(t *testing.T, o testpeer.SlapdOptions, edit func(*siteOptions)) (s *site, d *testpeer.Directory, url string) {
	t.Helper()
	d = testpeer.Slapd(t, o)
	so := siteOptions{connectors: []connector{{name: "directory", target: d.Addr, lines: []string{"protocol ldap"}}}}
	if d.TLSAddr != "" {
		so.connectors = append(so.connectors, connector{name: "ldaps", target: d.TLSAddr, lines: []string{"protocol ldap"}})
	}
	if edit != nil {
		edit(&so)
	}
	s = startSite(t, so)
	return s, d, "ldap://" + s.addr("directory")
}

func TestLDAPBindSearchModify(t *testing.T) {
	s, d, url := startDirectory(t, testpeer.SlapdOptions{People: 57}, nil)
	anybody := dialLDAP(t, url)

	t.Run("anonymous", func(t *testing.T) {
		if out := ldapsearch(t, url, "-b", d.PeopleDN, "uid=u7", "mail"); out != "dn: "+d.UserDN(7)+"\nmail: u7@example.org\n\n" {
			t.Errorf("ldapsearch: %q", out)
		}
		if err := anybody.UnauthenticatedBind(""); err != nil {
			t.Error(err)
		}
		if e := search(t, anybody, subtree(d.PeopleDN, "(uid=u7)")); len(e) != 1 || e[0].GetAttributeValue("mail") != "u7@example.org" {
			t.Errorf("go-ldap: %v", e)
		}
	})

	t.Run("simple bind", func(t *testing.T) {
		out, errs, code := tool(t, nil, "", "ldapwhoami", "-x", "-H", url, "-D", d.UserDN(3), "-w", d.UserPassword)
		if code != 0 || out != "dn:"+d.UserDN(3)+"\n" {
			t.Errorf("ldapwhoami: %d %q %q", code, out, errs)
		}
		_, errs, code = tool(t, nil, "", "ldapsearch", "-x", "-H", url, "-D", d.UserDN(3), "-w", "wrong", "-b", d.BaseDN)
		if code != int(ldap.LDAPResultInvalidCredentials) || !strings.Contains(errs, "Invalid credentials (49)") {
			t.Errorf("ldapsearch with a wrong password: %d %q", code, errs)
		}
		c := dialLDAP(t, url)
		if err := c.Bind(d.UserDN(3), "wrong"); !ldap.IsErrorWithCode(err, ldap.LDAPResultInvalidCredentials) {
			t.Errorf("go-ldap with a wrong password: %v", err)
		}
		if err := c.Bind(d.UserDN(3), d.UserPassword); err != nil {
			t.Fatal(err)
		}
		if who, err := c.WhoAmI(nil); err != nil || who.AuthzID != "dn:"+d.UserDN(3) {
			t.Errorf("who am I: %v, %v", who, err)
		}
	})

	t.Run("paged search", func(t *testing.T) {
		out := ldapsearch(t, url, "-b", d.PeopleDN, "-E", "pr=10/noprompt", "uid=*", "uid")
		if n := strings.Count(out, "\ndn: ") + strings.Count(out[:4], "dn: "); n != 57 {
			t.Errorf("ldapsearch: %d entries of 57", n)
		}
		pages, seen := 0, make(map[string]bool)
		paging := ldap.NewControlPaging(10)
		for r := subtree(d.PeopleDN, "(uid=*)", "uid"); ; {
			r.Controls = []ldap.Control{paging}
			res, err := anybody.Search(r)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			if len(res.Entries) > 10 {
				t.Errorf("page %d has %d entries", pages, len(res.Entries))
			}
			for _, e := range res.Entries {
				seen[e.DN] = true
			}
			next, ok := ldap.FindControl(res.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
			if !ok || len(next.Cookie) == 0 {
				break
			}
			paging.SetCookie(next.Cookie)
		}
		if pages != 6 || len(seen) != 57 {
			t.Errorf("go-ldap: %d entries on %d pages", len(seen), pages)
		}
	})

	t.Run("modify", func(t *testing.T) {
		group := d.GroupDN("empty")
		ldif := fmt.Sprintf("dn: %s\nchangetype: modify\nadd: member\nmember: %s\n", group, d.UserDN(5))
		as := []string{"-x", "-H", url, "-D", d.ServiceDN, "-w", d.ServicePassword}
		if out, errs, code := tool(t, nil, ldif, "ldapmodify", as...); code != 0 {
			t.Fatalf("ldapmodify: %d %q %q", code, out, errs)
		}
		want := []string{d.AdminDN, d.UserDN(5)}
		if got := members(t, anybody, group); strings.Join(got, ";") != strings.Join(want, ";") {
			t.Errorf("after ldapmodify go-ldap reads %q, not %q", got, want)
		}
		_, errs, code := tool(t, nil, ldif, "ldapmodify", as...)
		if code != int(ldap.LDAPResultAttributeOrValueExists) {
			t.Errorf("ldapmodify again: %d %q", code, errs)
		}
		service := dialLDAP(t, url)
		if err := service.Bind(d.ServiceDN, d.ServicePassword); err != nil {
			t.Fatal(err)
		}
		m := ldap.NewModifyRequest(group, nil)
		m.Delete("member", []string{d.UserDN(5)})
		m.Add("member", []string{d.UserDN(6)})
		if err := service.Modify(m); err != nil {
			t.Fatal(err)
		}
		out := ldapsearch(t, url, "-b", group, "-s", "base", "member")
		if out != fmt.Sprintf("dn: %s\nmember: %s\nmember: %s\n\n", group, d.AdminDN, d.UserDN(6)) {
			t.Errorf("after go-ldap's modify ldapsearch reads %q", out)
		}
	})

	// Every client said unbind and closed, or is still there.
	s.waitMetric(active("directory"), 1)
	for series, v := range s.scrape() {
		if strings.HasPrefix(series, "nowconnect_sessions_closed_total") && v > 0 && !strings.Contains(series, `reason="fin"`) {
			t.Errorf("%s is %v", series, v)
		}
	}
}

func members(t *testing.T, c *ldap.Conn, group string) []string {
	t.Helper()
	e := search(t, c, ldap.NewSearchRequest(group, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false, "(objectClass=*)", []string{"member"}, nil))
	if len(e) != 1 {
		t.Fatalf("%d entries for %s", len(e), group)
	}
	return e[0].GetAttributeValues("member")
}

func TestLDAPResultOver20MB(t *testing.T) {
	const entries, size = 210, 100_000
	s, d, url := startDirectory(t, testpeer.SlapdOptions{BigEntries: entries, BigEntryBytes: size}, nil)
	args := []string{"-b", d.BigDN, "-s", "one", "description"}
	got, want := ldapsearch(t, url, args...), ldapsearch(t, d.URL, args...)
	if len(got) < entries*size || len(got) != len(want) || sha256.Sum256([]byte(got)) != sha256.Sum256([]byte(want)) {
		t.Errorf("ldapsearch: %d bytes through the tunnel, %d directly", len(got), len(want))
	}
	const a2c = `nowconnect_tcp_bytes_total{connector="directory",direction="a2c"}`
	before := s.metric(a2c)
	if before < entries*size {
		t.Errorf("%s is %v", a2c, before)
	}
	c := dialLDAP(t, url)
	n := 0
	for _, e := range search(t, c, subtree(d.BigDN, "(description=*)", "description")) {
		n += len(e.GetAttributeValue("description"))
	}
	if n != entries*size {
		t.Errorf("go-ldap: %d bytes, not %d", n, entries*size)
	}
	if n := s.metric(a2c) - before; n < entries*size {
		t.Errorf("%s rose by %v", a2c, n)
	}
}

func TestLDAPTLSThroughTheTunnel(t *testing.T) {
	s, d, url := startDirectory(t, testpeer.SlapdOptions{TLS: true}, nil)
	ldaps := "ldaps://" + s.addr("ldaps")
	wrong := testpeer.NewCA(t)
	trust := func(ca *testpeer.CA) *tls.Config { return &tls.Config{RootCAs: ca.Pool, ServerName: "localhost"} }
	verified := func(t *testing.T, c *ldap.Conn) {
		t.Helper()
		state, ok := c.TLSConnectionState()
		if !ok || len(state.VerifiedChains) == 0 {
			t.Fatalf("no verified certificate: %v", ok)
		}
		if cn := state.VerifiedChains[0][0].Subject.CommonName; cn != "localhost" {
			t.Errorf("the certificate is %q's", cn)
		}
		if err := c.Bind(d.UserDN(1), d.UserPassword); err != nil {
			t.Error(err)
		}
		if e := search(t, c, subtree(d.PeopleDN, "(uid=u2)")); len(e) != 1 {
			t.Errorf("%d entries", len(e))
		}
	}
	commands := func(t *testing.T, url string, startTLS ...string) {
		t.Helper()
		args := append([]string{"-x", "-LLL", "-H", url, "-b", d.PeopleDN, "uid=u2", "mail"}, startTLS...)
		env := func(ca *testpeer.CA) []string {
			return []string{"LDAPTLS_CACERT=" + ca.File, "LDAPTLS_REQCERT=demand"}
		}
		out, errs, code := tool(t, env(d.CA), "", "ldapsearch", args...)
		if code != 0 || !strings.Contains(out, "mail: u2@example.org") {
			t.Errorf("ldapsearch: %d %q %q", code, out, errs)
		}
		if out, errs, code = tool(t, env(wrong), "", "ldapsearch", args...); code == 0 || out != "" {
			t.Errorf("ldapsearch that trusts another CA: %d %q %q", code, out, errs)
		}
	}

	t.Run("StartTLS", func(t *testing.T) {
		c := dialLDAP(t, url)
		if err := c.StartTLS(trust(d.CA)); err != nil {
			t.Fatal(err)
		}
		verified(t, c)
		if err := dialLDAP(t, url).StartTLS(trust(wrong)); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
			t.Errorf("with another CA: %v", err)
		}
		commands(t, url, "-ZZ")
	})

	t.Run("LDAPS", func(t *testing.T) {
		verified(t, dialLDAP(t, ldaps, ldap.DialWithTLSConfig(trust(d.CA))))
		if c, err := ldap.DialURL(ldaps, ldap.DialWithTLSConfig(trust(wrong))); err == nil {
			c.Close()
			t.Error("go-ldap accepts another CA's certificate")
		}
		commands(t, ldaps)
	})
}

// Ten minutes of idling are 30 ping periods of 20 s, and longer than any
// timeout of a web server's: the longest of Caddy's is 5 minutes of idling.
// Here a ping period is 50 ms, at both ends, and the timeouts of the server that
// agents come to are 1 s. The connections idle until the hub has had more than
// 30 answers to its pings from each link, and for at least three of those
// timeouts. No idle_timeout is configured.
func TestLDAPPooledConnectionsIdle(t *testing.T) {
	const pool, periods, caddyTimeout = 200, 30, time.Second
	started := time.Now()
	s, d, url := startDirectory(t, testpeer.SlapdOptions{}, func(o *siteOptions) {
		o.hub = []string{"ping_interval 50ms"}
		o.globals = []string{
			// Only where agents come: /metrics may take longer on a busy machine.
			"servers $HTTPS {\n\t\ttimeouts {\n\t\t\tread_body 1s\n\t\t\tread_header 1s\n\t\t\twrite 1s\n\t\t\tidle 1s\n\t\t}\n\t}",
		}
		o.agent = func(c *agent.Config) { c.PingInterval = 50 * time.Millisecond }
	})
	if _, config := s.adminDo("GET", "/config/apps/http/servers", "", ""); strings.Count(config, `"write_timeout":1000000000`) != 1 {
		t.Fatalf("Caddy's timeouts are not set: %s", config)
	}
	var conns []*ldap.Conn
	user := func(i int) string { return d.UserDN(1 + i%d.People) }
	for i := range pool {
		c := dialLDAP(t, url)
		if err := c.Bind(user(i), d.UserPassword); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	t.Logf("%d connections after %v", pool, time.Since(started))
	s.waitMetric(active("directory"), pool)

	rtt := fmt.Sprintf("nowconnect_tunnel_rtt_seconds_count{agent=%q}", agentID)
	uptime := fmt.Sprintf("nowconnect_tunnel_uptime_seconds{agent=%q}", agentID)
	pings, up := s.metric(rtt), s.metric(uptime)
	sent := s.metric(`nowconnect_tcp_bytes_total{connector="directory",direction="c2a"}`)
	s.eventually("the pings of ten minutes", func() bool {
		m := s.scrape()
		return m[rtt] > pings+float64(2*periods*s.first.links) && m[uptime] > up+3*caddyTimeout.Seconds()
	})
	if n := s.metric(`nowconnect_tcp_bytes_total{connector="directory",direction="c2a"}`); n != sent {
		t.Fatalf("%v bytes went to the directory: the connections were not idle", n-sent)
	}
	if n := s.metric(active("directory")); n != pool {
		t.Errorf("%v connections are left", n)
	}
	if up := s.metric(uptime); up < 3*caddyTimeout.Seconds() {
		t.Errorf("the links came up anew %v s ago", up)
	}
	for i, c := range conns {
		who, err := c.WhoAmI(nil)
		if err != nil || who.AuthzID != "dn:"+user(i) {
			t.Fatalf("connection %d: %v, %v", i, who, err)
		}
		if e := search(t, c, subtree(d.PeopleDN, "(uid=u4)")); len(e) != 1 {
			t.Fatalf("connection %d: %d entries", i, len(e))
		}
	}
	if n := s.metric(`nowconnect_tcp_connections_total{connector="directory"}`); n != pool {
		t.Errorf("%v connections were made", n)
	}
}

// ldapNotice is a Notice of Disconnection as it goes over the wire.
func ldapNotice(code byte, text string) string {
	const oid = "1.3.6.1.4.1.1466.20036"
	body := "\x0a\x01" + string(rune(code)) + "\x04\x00\x04" + string(rune(len(text))) + text + "\x8a" + string(rune(len(oid))) + oid
	message := "\x02\x01\x00\x78" + string(rune(len(body))) + body
	return "\x30" + string(rune(len(message))) + message
}

// What clients make of a notice: OpenLDAP's tools do not tell its text, they
// say that the server cannot be contacted. go-ldap fails what is under way as
// it does when a server closes, and its last error tells of message 0, which is
// what an unsolicited notification has.
func TestLDAPNotices(t *testing.T) {
	silent := testpeer.Silent(t)
	ldapConnector := func(name, target string, more ...string) connector {
		return connector{name: name, target: target, lines: append(more, "protocol ldap")}
	}
	s := startSite(t, siteOptions{process: true, hub: []string{"drain_timeout 100ms"}, connectors: []connector{
		ldapConnector("denied", silent.Addr, "allow_cidrs 192.0.2.0/24"),
		ldapConnector("no_agent", ""),
		ldapConnector("connect_failed", testpeer.Refuse(t)),
		ldapConnector("limit", silent.Addr, "max_sessions 1"),
		ldapConnector("shutdown", silent.Addr),
	}})
	s.dial("limit")
	s.waitMetric(active("limit"), 1)

	for reason, want := range map[string]string{
		"denied":         ldapNotice(50, "NowConnect: access denied"),
		"no_agent":       ldapNotice(52, "NowConnect: no agent connected"),
		"connect_failed": ldapNotice(52, "NowConnect: directory unreachable"),
		"limit":          ldapNotice(51, "NowConnect: connection limit reached"),
	} {
		t.Run(reason, func(t *testing.T) {
			s := s.in(t)
			// One that waits for the server, and one that has sent a request.
			quiet, busy := s.dial(reason), s.dial(reason)
			if _, err := busy.Write(rootDSE); err != nil {
				t.Fatal(err)
			}
			seesNotice(t, quiet, want)
			seesNotice(t, busy, want)
			_, errs, code := tool(t, nil, "", "ldapsearch", "-x", "-H", "ldap://"+s.addr(reason), "-b", "", "-s", "base")
			if code == 0 || !strings.Contains(errs, "Can't contact LDAP server (-1)") {
				t.Errorf("ldapsearch: %d %q", code, errs)
			}
			goLDAPSeesNotice(t, dialLDAP(t, "ldap://"+s.addr(reason)))
			s.waitMetric(closed(reason, reason), 4)
		})
	}

	t.Run("shutdown", func(t *testing.T) {
		s := s.in(t)
		quiet, busy, pooled := s.dial("shutdown"), s.dial("shutdown"), dialLDAP(t, "ldap://"+s.addr("shutdown"))
		if _, err := busy.Write(rootDSE); err != nil {
			t.Fatal(err)
		}
		type result struct {
			errs string
			code int
		}
		command := make(chan result, 1)
		go func() {
			defer close(command)
			_, errs, code := tool(t, nil, "", "ldapsearch", "-x", "-H", "ldap://"+s.addr("shutdown"), "-b", "", "-s", "base")
			command <- result{errs, code}
		}()
		s.waitMetric(active("shutdown"), 4)
		s.eventually("the directory has them all", func() bool { return silent.Open() == 4+1 })
		s.child.Signal(syscall.SIGTERM)
		want := ldapNotice(52, "NowConnect: shutting down")
		seesNotice(t, quiet, want)
		seesNotice(t, busy, want)
		goLDAPSeesNotice(t, pooled)
		if r := <-command; r.code == 0 || !strings.Contains(r.errs, "Can't contact LDAP server (-1)") {
			t.Errorf("ldapsearch: %d %q", r.code, r.errs)
		}
		if code := s.child.Wait(soon); code != 0 {
			t.Errorf("the hub's exit status is %d", code)
		}
	})
}

// rootDSE is a search request for the root DSE.
var rootDSE = []byte("\x30\x25\x02\x01\x01\x63\x20\x04\x00\x0a\x01\x00\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\x87\x0bobjectClass\x30\x00")

// seesNotice checks that a client gets the notice, whole, and then FIN.
func seesNotice(t *testing.T, c io.Reader, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != want {
		t.Errorf("a client gets %q and %v, not %q and FIN", got, err, want)
	}
}

func goLDAPSeesNotice(t *testing.T, c *ldap.Conn) {
	t.Helper()
	_, err := c.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, 0, 0, 0, false, "(objectClass=*)", nil, nil))
	var le *ldap.Error
	switch {
	case err == nil:
		t.Error("go-ldap's search succeeds")
	case errors.As(err, &le) && le.ResultCode == ldap.ErrorNetwork: // the notice came before the request
	case strings.Contains(err.Error(), "unable to read LDAP response packet: EOF"):
	default:
		t.Errorf("go-ldap's search: %v", err)
	}
	ok := eventually(func() bool {
		last := c.GetLastError()
		return last != nil && strings.Contains(last.Error(), "received unexpected message 0") && c.IsClosing()
	})
	if !ok {
		t.Errorf("go-ldap's last error: %v, closing: %v", c.GetLastError(), c.IsClosing())
	}
}
