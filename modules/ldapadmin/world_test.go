package ldapadmin_test

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/go-ldap/ldap/v3"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// The caller and its password, hashed at the lowest cost.
const (
	caller     = "idm"
	password   = "idm-secret"
	callerHash = "$2a$04$DiaWuk84wahqJwzBHriEpuTxyKtCpFJZVkZYCM4gT587NeYw1LkjC"
)

// seed has groups for what the tests do with them.
const seed = `
dn: cn=team,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: team
member: uid=u1,ou=people,dc=example,dc=org
member: uid=u2,ou=people,dc=example,dc=org
member: uid=u3,ou=people,dc=example,dc=org

dn: cn=a/b\, Zürich,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: a/b, Zürich
member: uid=u1,ou=people,dc=example,dc=org

dn: cn=unix,ou=groups,dc=example,dc=org
objectClass: posixGroup
cn: unix
gidNumber: 1000
memberUid: u1

dn: cn=whole,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: whole
member: uid=u1,ou=people,dc=example,dc=org
member: uid=u2,ou=people,dc=example,dc=org
member: uid=u3,ou=people,dc=example,dc=org
member: uid=u4,ou=people,dc=example,dc=org
member: uid=u5,ou=people,dc=example,dc=org

dn: cn=locked,ou=people,dc=example,dc=org
objectClass: groupOfNames
cn: locked
member: uid=u1,ou=people,dc=example,dc=org

dn: ou=group-like,ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: group-like
`

// options shape a world.
type options struct {
	app   string   // further lines of the nowconnect block; empty: pdp allow_all
	lines []string // of ldap_admin, after those that lead to the directory
	to    []string // lines that lead to the directory; empty: the connector, StartTLS
	front string   // what stands in front; empty: basic_auth
}

// world is a directory behind an agent, and a hub with the API in front.
type world struct {
	*hubtest.Hub
	d *testpeer.Directory
	o options
	t *testing.T
}

// newDirectory starts OpenLDAP with what the tests need in it.
func newDirectory(t *testing.T) *testpeer.Directory {
	t.Helper()
	return testpeer.Slapd(t, testpeer.SlapdOptions{TLS: true, Seed: []string{seed}})
}

func start(t *testing.T, o options) *world {
	t.Helper()
	w := &world{Hub: hubtest.New(t), d: newDirectory(t), o: o, t: t}
	w.Write("ldap.password", w.d.ServicePassword+"\n")
	w.Load(w.caddyfile())
	w.agent()
	return w
}

func (w *world) agent() (stop func()) {
	return w.Agent(func(c *agent.Config) {
		c.DrainTimeout = 10 * time.Millisecond // idle sessions are not waited for
		for name, addr := range map[string]string{"directory": w.d.Addr, "ldaps": w.d.TLSAddr} {
			host, port, _ := strings.Cut(addr, ":")
			p, _ := strconv.Atoi(port)
			c.Targets[name] = agent.Target{Host: host, Port: p}
		}
	})
}

func (w *world) caddyfile() string {
	app := "agent_auth token {\n\t\t\tagent premise-1 {file.$DIR/token}\n\t\t}\n" +
		cmp.Or(w.o.app, "\t\tpdp allow_all") +
		"\n\t\tconnector echo {\n\t\t\tagents premise-1\n\t\t}\n\t\tconnector directory {\n\t\t\tagents premise-1\n\t\t}\n\t\tconnector ldaps {\n\t\t\tagents premise-1\n\t\t}"
	to := w.o.to
	if to == nil {
		to = []string{"connector directory", "tls starttls", "server_name localhost"}
	}
	lines := append(append([]string{}, to...),
		"tls_ca "+w.d.CA.File, "bind_dn "+w.d.ServiceDN, "bind_password {file.$DIR/ldap.password}")
	lines = append(lines, w.o.lines...)
	if !strings.Contains(strings.Join(lines, "\n"), "groups_below") {
		lines = append(lines, "groups_below "+w.d.GroupsDN, "groups_below cn=locked,"+w.d.PeopleDN,
			"group cn=whole,"+w.d.GroupsDN+" {\n\t\t\treplace\n\t\t\tmax_removals 40%\n\t\t}")
	}
	if !strings.Contains(strings.Join(lines, "\n"), "members_below") {
		lines = append(lines, "members_below "+w.d.PeopleDN)
	}
	front := cmp.Or(w.o.front, "basic_auth /ldap/* {\n\t\t"+caller+" "+callerHash+"\n\t}")
	return w.Caddyfile(app, "\tmetrics", "http://$HTTP {\n\tbind 127.0.0.1\n\tnowconnect_agent /tunnel\n\tnowconnect_health\n\tnowconnect_metrics /metrics\n\t"+
		front+"\n\tldap_admin {\n\t\t"+strings.Join(lines, "\n\t\t")+"\n\t}\n}")
}

// reload puts a changed configuration in force.
func (w *world) reload(edit func(*options)) {
	w.t.Helper()
	edit(&w.o)
	w.Load(w.caddyfile())
}

func (w *world) group(name string) string { return "cn=" + name + "," + w.d.GroupsDN }

// path is that of a group's members, or of one.
func path(group string, member ...string) string {
	p := "/ldap/groups/" + url.PathEscape(group) + "/members"
	for _, m := range member {
		p += "/" + url.PathEscape(m)
	}
	return p
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	body   string
}

// request is one to the API. The zero value of what is left out is sensible.
type request struct {
	method, path string
	body         string   // JSON
	header       []string // names and values
	nobody       bool     // without a credential
	off          bool     // off the document: the request is one that it does not allow
}

// do sends a request and holds both it and its answer against the document.
func (w *world) do(r request) reply {
	w.t.Helper()
	got, err := w.try(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) try(r request) (reply, error) {
	req, err := http.NewRequest(r.method, "http://"+w.HTTP+r.path, strings.NewReader(r.body))
	if err != nil {
		return reply{}, err
	}
	if r.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(r.header); i += 2 {
		req.Header.Set(r.header[i], r.header[i+1])
	}
	if !r.nobody {
		req.SetBasicAuth(caller, password)
	}
	got, resp, err := w.exchange(req, r.body)
	if err != nil {
		return reply{}, err
	}
	resp.Body = io.NopCloser(strings.NewReader(got.body))
	req.Body = io.NopCloser(strings.NewReader(r.body))
	if !r.nobody || strings.HasPrefix(resp.Header.Get("Content-Type"), groupapi.TypeProblem) {
		validate(w.t, r, req, resp)
	}
	return got, nil
}

// exchange sends a request and reads its answer.
func (w *world) exchange(req *http.Request, body string) (reply, *http.Response, error) {
	resp, err := client.Do(req)
	for range 3 { // a reload closes what the old server had accepted and not yet read
		if err == nil {
			break
		}
		req.Body = io.NopCloser(strings.NewReader(body))
		resp, err = client.Do(req)
	}
	if err != nil {
		return reply{}, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b)}, resp, err
}

func (w *world) send(req *http.Request) reply {
	w.t.Helper()
	got, _, err := w.exchange(req, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}

// document is the validator of the OpenAPI document, from its file.
var document = sync.OnceValue(func() validator.Validator {
	b, err := os.ReadFile("openapi.json")
	if err != nil {
		panic(err)
	}
	d, err := libopenapi.NewDocument(b)
	if err != nil {
		panic(err)
	}
	v, errs := validator.NewValidator(d)
	if len(errs) > 0 {
		panic(errs[0])
	}
	return v
})

// seen counts answers by operation and status.
var seen sync.Map

func validate(t *testing.T, r request, req *http.Request, resp *http.Response) {
	t.Helper()
	if r.off && (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed) {
		return // what is not there is not described
	}
	if ok, errs := document().GetResponseBodyValidator().ValidateResponseBody(req, resp); !ok {
		for _, e := range errs {
			t.Errorf("%s %s: %d: the answer is off the document: %v", r.method, r.path, resp.StatusCode, e)
		}
	}
	if !r.off {
		if ok, errs := document().ValidateHttpRequest(req); !ok {
			for _, e := range errs {
				t.Errorf("%s %s: the request is off the document: %v", r.method, r.path, e)
			}
		}
	}
	seen.Store(r.method+" "+shape(r.path)+" "+strconv.Itoa(resp.StatusCode), true)
}

// shape is a path with its names taken out.
func shape(path string) string {
	p, _, _ := strings.Cut(path, "?")
	parts := strings.Split(strings.TrimPrefix(p, "/ldap"), "/")
	if len(parts) > 2 && parts[1] == "groups" {
		parts[2] = "{group}"
	}
	if len(parts) > 4 {
		parts[4] = "{member}"
	}
	return strings.Join(parts, "/")
}

// answer decodes the answer to a write, which must have this status.
func (r reply) answer(t *testing.T, status int) groupapi.Answer {
	t.Helper()
	return decode[groupapi.Answer](t, r, status)
}

// problem decodes a problem, which must have this status and code.
func (r reply) problem(t *testing.T, status int, code string) groupapi.Problem {
	t.Helper()
	p := decode[groupapi.Problem](t, r, status)
	if p.Code != code || p.Status != status || r.header.Get("Content-Type") != groupapi.TypeProblem {
		t.Errorf("%s %s, want the code %s", r.header.Get("Content-Type"), r.body, code)
	}
	if status >= 500 && r.header.Get("Retry-After") == "" {
		t.Errorf("%d without Retry-After: %s", status, r.body)
	}
	return p
}

func decode[T any](t *testing.T, r reply, status int) T {
	t.Helper()
	var v T
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%v in %s", err, r.body)
	}
	return v
}

// members reads a group at the directory itself.
func (w *world) members(group string) []string {
	w.t.Helper()
	c, err := ldap.DialURL(w.d.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	res, err := c.Search(ldap.NewSearchRequest(group, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 10, false,
		"(objectClass=*)", []string{"member", "memberUid"}, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	return append(res.Entries[0].GetAttributeValues("member"), res.Entries[0].GetAttributeValues("memberUid")...)
}

// outcome is a result in short: outcome, changed, code.
func outcome(r groupapi.Result) string {
	changed := "null"
	if r.Changed != nil {
		changed = strconv.FormatBool(*r.Changed)
	}
	return strings.TrimSpace(string(r.Outcome) + " " + changed + " " + r.Code)
}

func outcomes(a groupapi.Answer) []string {
	out := []string{}
	for _, r := range a.Results {
		out = append(out, outcome(r))
	}
	return out
}
