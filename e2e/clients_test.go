package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// cause is a row of docs/reference/clients.md.
type cause struct {
	name      string // the row's first cell
	connector string
	reason    string
	fin       bool // a client without notice sees FIN and no RST
	code      int
	codeName  string
	text      string
	target    string
	lines     []string
	// act ends the live sessions; nil when the hub refuses the client by itself.
	act func(s *site)
}

// row is what the page has to say about it.
func (c cause) row() string {
	plain := "RST"
	if c.fin {
		plain = "FIN"
	}
	return fmt.Sprintf("| %s | `%s` | %s | %d %s | `%s` |", c.name, c.reason, plain, c.code, c.codeName, c.text)
}

func (c cause) notice() string { return ldapNotice(byte(c.code), c.text) }

const (
	denied      = 50
	busy        = 51
	unavailable = 52
)

var codeNames = map[int]string{denied: "insufficientAccessRights", busy: "busy", unavailable: "unavailable"}

func causes(t *testing.T) []cause {
	t.Helper()
	silent := testpeer.Silent(t).Addr
	without := func(name string) func(*site) {
		return func(s *site) {
			s.reload(func(o *siteOptions) {
				o.connectors = slices.DeleteFunc(slices.Clone(o.connectors), func(c connector) bool { return strings.HasPrefix(c.name, name) })
			})
		}
	}
	rules := func(source string) string { return "pdp rules {\nallow some {\nsource " + source + "\n}\n}" }
	cs := []cause{
		{name: "the client's address is not in `allow_cidrs`", connector: "cidrs", reason: "denied", code: denied, text: "access denied",
			lines: []string{"allow_cidrs 192.0.2.0/24"}},
		{name: "policy denies", connector: "policy", reason: "denied", code: denied, text: "access denied", lines: []string{rules("192.0.2.0/24")}},
		{name: "policy denies when it judges the live session again", connector: "again", reason: "denied", code: denied, text: "access denied",
			lines: []string{rules("127.0.0.0/8")}, act: func(s *site) {
				s.reload(func(o *siteOptions) {
					for i, c := range o.connectors {
						if strings.HasPrefix(c.name, "again") {
							o.connectors[i].lines = append([]string{rules("192.0.2.0/24")}, c.lines[1:]...)
						}
					}
				})
			}},
		{name: "the connector was removed from the configuration", connector: "removed", reason: "revoked", code: denied, text: "access revoked",
			act: without("removed")},
		{name: "a permit is not renewed, or its `max_duration` or `max_bytes` is reached", connector: "bound", reason: "revoked", code: denied, text: "access revoked",
			lines: []string{"pdp rules {\nallow some {\nsource 127.0.0.0/8\nmax_duration 1s\n}\n}"}},
		{name: "the policy decision point gives no answer", connector: "pdp", reason: "pdp_error", code: unavailable, text: "policy unavailable",
			lines: []string{"pdp authzen http://" + testpeer.Refuse(t) + "/access/v1/evaluation"}},
		{name: "a limit is reached", connector: "limit", reason: "limit", code: busy, text: "connection limit reached", lines: []string{"max_sessions 1"}},
		{name: "no agent is connected", connector: "nobody", reason: "no_agent", code: unavailable, text: "no agent connected", target: "none"},
		{name: "the directory refuses the agent", connector: "refuses", reason: "connect_failed", code: unavailable, text: "directory unreachable",
			target: testpeer.Refuse(t)},
		{name: "the directory does not answer the agent", connector: "hole", reason: "connect_timeout", code: unavailable, text: "directory unreachable",
			target: testpeer.Blackhole(t), lines: []string{"connect_timeout 300ms"}},
		{name: "the link to the agent breaks", connector: "lost", reason: "link_lost", code: unavailable, text: "link to agent lost",
			lines: []string{"agents " + agent2ID}},
		{name: "`idle_timeout`", connector: "idle", reason: "idle", fin: true, code: unavailable, text: "idle timeout", lines: []string{"idle_timeout 500ms"}},
		{name: "what is left when `drain_timeout` ends, at the hub or the agent", connector: "drain", reason: "shutdown", fin: true, code: unavailable, text: "shutting down",
			act: func(s *site) {
				if status, answer := s.adminDo(http.MethodPost, "/nowconnect/drain", "application/json", `{"timeout":"50ms"}`); status != http.StatusOK {
					s.t.Errorf("drain: %d %s", status, answer)
				}
			}},
		{name: "a new client of a hub that drains", connector: "drain", reason: "draining", fin: true, code: unavailable, text: "shutting down"},
	}
	for i := range cs {
		cs[i].codeName, cs[i].text = codeNames[cs[i].code], "NowConnect: "+cs[i].text
		if cs[i].target == "" {
			cs[i].target = silent
		}
	}
	return cs
}

// Every cause of DESIGN's table, as real clients see it, and as the page says.
func TestWhatClientsSee(t *testing.T) {
	cs := causes(t)
	page, err := os.ReadFile(filepath.Join(testpeer.ModuleRoot(t), "docs", "reference", "clients.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "<!-- checked: causes -->\n")
	table, _, _ := strings.Cut(rest, "<!-- end -->")
	rows := strings.Split(strings.TrimSpace(table), "\n")[2:]

	o := siteOptions{hub: []string{agent2Auth()}}
	for _, c := range cs {
		if c.target == "none" {
			c.target = ""
		}
		if c.reason != "draining" {
			o.connectors = append(o.connectors, connector{name: c.connector, target: c.target, lines: append(slices.Clone(c.lines), "protocol ldap")},
				connector{name: c.connector + "-plain", target: c.target, lines: c.lines})
		}
	}
	s := startSite(t, o)
	wire := testpeer.TCPProxy(t, s.https)
	s.agent(func(c *agent.Config) { byProxy(wire)(c); s.asAgent2(c) })
	for i, c := range cs {
		switch c.connector {
		case "limit":
			s.dial("limit")
			s.dial("limit-plain")
			s.waitMetric(active("limit"), 1)
			s.waitMetric(active("limit-plain"), 1)
		case "lost":
			c.act = func(*site) { wire.CutRST() }
		}
		t.Run(c.connector+" "+c.reason, func(t *testing.T) {
			see(s.in(t), c)
			if i >= len(rows) || rows[i] != c.row() {
				t.Errorf("the page does not say\n%s", c.row())
			}
		})
	}
	if len(rows) != len(cs) {
		t.Errorf("the page has %d rows, there are %d causes", len(rows), len(cs))
	}
}

// see brings a cause about before the eyes of four clients.
func see(s *site, c cause) {
	t := s.t
	before, beforePlain := s.metric(closed(c.connector, c.reason)), s.metric(closed(c.connector+"-plain", c.reason))
	url := "ldap://" + s.addr(c.connector)
	live := func(n float64) {
		if c.act != nil {
			s.waitMetric(active(c.connector), n)
		}
	}
	raw, goLDAP := s.dial(c.connector), dialLDAP(t, url)
	live(2)
	var clients sync.WaitGroup
	clients.Go(func() {
		seesNotice(t, raw, c.notice())
		raw.Close() // else the hub waits for it a second
	})
	clients.Go(func() {
		goLDAPSeesNotice(t, goLDAP)
		goLDAP.Close()
	})
	clients.Go(func() {
		_, errs, code := tool(t, nil, "", "ldapsearch", "-d", "1", "-x", "-H", url, "-b", "", "-s", "base")
		if code != 254 && code != 255 || !strings.Contains(errs, "Can't contact LDAP server (-1)") {
			t.Errorf("ldapsearch: exit status %d, %q", code, errs)
		}
		if want := fmt.Sprintf("res_errno: %d, res_error: <%s>", c.code, c.text); !strings.Contains(errs, want) {
			t.Errorf("ldapsearch does not understand the notice: no %q in %q", want, errs)
		}
	})
	plain, err := net.DialTimeout("tcp", s.addr(c.connector+"-plain"), soon)
	if err == nil {
		defer plain.Close()
	}
	if c.act != nil {
		live(3)
		s.waitMetric(active(c.connector+"-plain"), 1)
		c.act(s)
	}
	clients.Wait()
	if err == nil {
		err = end(t, plain, soon)
	}
	if c.fin && err != nil || !c.fin && !testpeer.IsReset(err) {
		t.Errorf("a client without notice sees %v", err)
	}
	if c.connector != "removed" { // its series are gone with it
		s.waitMetric(closed(c.connector, c.reason), before+3)
		s.waitMetric(closed(c.connector+"-plain", c.reason), beforePlain+1)
	}
}

// What the page says that go-ldap's errors read.
func TestGoLDAPErrorsReadAsThePageSays(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(testpeer.ModuleRoot(t), "docs", "reference", "clients.md"))
	if err != nil {
		t.Fatal(err)
	}
	s := startSite(t, siteOptions{noAgent: true, connectors: []connector{{name: "nobody", lines: []string{"protocol ldap"}}}})
	c := dialLDAP(t, "ldap://"+s.addr("nobody"))
	said := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(string(page), err.Error()) {
			t.Errorf("go-ldap says %q, the page does not", err)
		}
	}
	r := ldap.NewSearchRequest("", ldap.ScopeBaseObject, 0, 0, 0, false, "(objectClass=*)", nil, nil)
	_, err = c.Search(r)
	said(err)
	s.eventually("go-ldap notices", func() bool { return c.IsClosing() && c.GetLastError() != nil })
	// Whether it adds true or false is a matter of which it noticed first.
	last, _, _ := strings.Cut(c.GetLastError().Error(), ", ")
	said(fmt.Errorf("GetLastError: %s", last))
	_, err = c.Search(r)
	said(err)
	if errors.Is(err, io.EOF) {
		t.Error("the second search waits for an answer")
	}
}
