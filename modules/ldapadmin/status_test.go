package ldapadmin_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func TestRefusals(t *testing.T) {
	w := start(t, options{lines: []string{"max_body 2KiB", "max_members 3"}})
	u, team := w.d.UserDN, w.group("team")
	patch := func(body string) request { return request{method: "PATCH", path: path(team), body: body} }
	for _, tt := range []struct {
		name   string
		r      request
		status int
		code   string
	}{
		{"no such group", request{method: "GET", path: path(w.group("nobody"))}, 404, "group_not_found"},
		{"no such group to add to", request{method: "PUT", path: path(w.group("nobody"), u(1))}, 404, "group_not_found"},
		{"no such resource", request{method: "GET", path: "/ldap/groups", off: true}, 404, "no_such_resource"},
		{"group elsewhere", request{method: "GET", path: path("cn=x," + w.d.PeopleDN)}, 403, "forbidden"},
		{"group that only looks right", request{method: "GET", path: path(`cn=x,ou=evil\,ou=groups,dc=example,dc=org`)}, 403, "forbidden"},
		{"member elsewhere", request{method: "PUT", path: path(team, w.d.AdminDN)}, 403, "forbidden"},
		{"member that only looks right", request{method: "PUT", path: path(team, `uid=x,ou=evil\,ou=people,dc=example,dc=org`)}, 403, "forbidden"},
		{"our account may not", request{method: "PUT", path: path("cn=locked,"+w.d.PeopleDN, u(4))}, 403, "denied"},
		{"no group", request{method: "GET", path: path("ou=group-like," + w.d.GroupsDN)}, 409, "not_a_group"},
		{"last member", request{method: "DELETE", path: path(`cn=a/b\, Zürich,`+w.d.GroupsDN, u(1))}, 409, "last_member"},
		{"no such member", request{method: "PUT", path: path(team, "uid=ghost,"+w.d.PeopleDN)}, 422, "member_not_found"},
		{"group is no DN", request{method: "GET", path: path("staff")}, 400, "invalid"},
		{"member is no DN", request{method: "PUT", path: path(team, "u1")}, 400, "invalid"},
		{"empty RDNs", request{method: "GET", path: path("cn=team,,dc=org")}, 400, "invalid"},
		{"a SID", request{method: "PUT", path: path(team, "<SID=S-1-5-11>")}, 400, "invalid"},
		{"hex form", request{method: "PUT", path: path(team, "uid=#04027531,"+w.d.PeopleDN)}, 400, "invalid"},
		{"a semicolon", request{method: "PUT", path: path(team, "uid=u4;"+w.d.PeopleDN)}, 400, "invalid"},
		{"a line break", request{method: "PUT", path: path(team, "uid=u4,"+w.d.PeopleDN+"\r\nmember: x")}, 400, "invalid"},
		{"a NUL", request{method: "PUT", path: path(team, "uid=u4\x00,"+w.d.PeopleDN)}, 400, "invalid"},
		{"encoded twice", request{method: "GET", path: "/ldap/groups/cn%253Dteam/members"}, 400, "bad_path"},
		{"two lists", patch(`{"add":["` + u(4) + `"],"remove":["` + strings.ToUpper(u(4)) + `"]}`), 400, "invalid"},
		{"a word of its own", request{method: "PATCH", path: path(team), body: `{"ADD":["x"]}`, off: true}, 400, "bad_body"},
		{"unknown parameter", request{method: "PUT", path: path(team, u(4)) + "?dryrun=true"}, 400, "bad_query"},
		{"bad header", request{method: "PUT", path: path(team, u(4)), header: []string{"If-Match", "*"}}, 400, "bad_header"},
		{"method", request{method: "POST", path: path(team), off: true}, 405, "method_not_allowed"},
		{"large body", patch(`{"add":["` + strings.Repeat("x", 4<<10) + `"]}`), 413, "too_large"},
		{"many members", patch(`{"add":["` + u(4) + `","` + u(5) + `","` + u(6) + `","` + u(7) + `"]}`), 413, "too_large"},
		{"media type", request{method: "PATCH", path: path(team), body: `{"add":["x"]}`, header: []string{"Content-Type", "text/plain"}, off: true}, 415, "media_type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := *w
			in.t = t
			p := in.do(tt.r).problem(t, tt.status, tt.code)
			if p.Detail == "" || p.Title == "" || p.Type != "about:blank" {
				t.Errorf("%+v", p)
			}
		})
	}
	if got := len(w.members(team)); got != 3 {
		t.Errorf("%d members", got)
	}
	p := w.do(request{method: "PUT", path: path("cn=locked,"+w.d.PeopleDN, u(4))}).problem(t, 403, "denied")
	if p.LDAPCode == nil || *p.LDAPCode != 50 || p.LDAPName != "insufficientAccessRights" {
		t.Errorf("%+v", p)
	}
}

// One caller that sends as much as it can, while the directory is stuck, leaves
// room for others, and all together stay within the bound of the handler.
func TestRequestsAreBounded(t *testing.T) {
	const others = "other"
	w := start(t, options{
		front: "basic_auth /ldap/* {\n\t\t" + caller + " " + callerHash + "\n\t\t" + others + " " + callerHash + "\n\t}",
		lines: []string{"max_requests 3", "max_requests_per_caller 2"},
	})
	read := func(user string) (reply, error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+w.HTTP+path(w.group("team")), nil)
		if err != nil {
			return reply{}, err
		}
		req.SetBasicAuth(user, password)
		r, _, err := w.exchange(req, "")
		return r, err
	}
	if r, err := read(others); err != nil || r.status != 200 {
		t.Fatalf("%d %s %v", r.status, r.body, err)
	}
	w.d.Process.Freeze()
	t.Cleanup(func() { w.d.Process.Thaw() })
	answers := make(chan reply, 10)
	send := func(user string, n int) {
		for range n {
			go func() {
				r, err := read(user)
				if err != nil {
					t.Error(err)
				}
				answers <- r
			}()
		}
	}
	refused := func(n int, why string) {
		t.Helper()
		for range n {
			r := <-answers
			p := r.problem(t, 503, "busy")
			if p.Detail != why+" are being served" && p.Detail != why+" of this caller are being served" {
				t.Errorf("%q, want %s", p.Detail, why)
			}
		}
	}
	send(caller, 6)
	refused(4, "max_requests_per_caller")
	send(others, 2)
	refused(1, "max_requests")
	w.d.Process.Thaw()
	for range 3 {
		if r := <-answers; r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	// And the places are free again.
	for _, user := range []string{caller, caller, caller, others} {
		if r, err := read(user); err != nil || r.status != 200 {
			t.Errorf("%d %s %v", r.status, r.body, err)
		}
	}
}

// Names with everything in them arrive as they are.
func TestNamesWithEverything(t *testing.T) {
	w := start(t, options{})
	odd := `cn=a/b\, Zürich,` + w.d.GroupsDN
	if got := outcomes(w.do(request{method: "PUT", path: path(odd, w.d.UserDN(2))}).answer(t, 200)); got[0] != "added true" {
		t.Errorf("%q", got)
	}
	if got := w.members(odd); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if m := decode[groupapi.Membership](t, w.do(request{method: "GET", path: path(odd, strings.ToUpper(w.d.UserDN(2)))}), 200); !m.IsMember {
		t.Errorf("%+v", m)
	}
	unix := w.group("unix")
	if got := outcomes(w.do(request{method: "PUT", path: path(unix, "u2")}).answer(t, 200)); got[0] != "added true" {
		t.Errorf("%q", got)
	}
	if got := strings.Join(w.members(unix), " "); got != "u1 u2" {
		t.Errorf("%q", got)
	}
}

// What is out of reach is 502 or 503 with Retry-After, and comes back by
// itself.
func TestDirectoryOutOfReach(t *testing.T) {
	w := start(t, options{lines: []string{"timeout 3s"}})
	read := request{method: "GET", path: path(w.group("team"))}
	w.do(read).answer(t, 200)

	w.d.Process.Freeze()
	r := w.do(read)
	w.d.Process.Thaw()
	if r.status != 504 || r.header.Get("Retry-After") == "" {
		t.Errorf("directory that does not answer: %d %s", r.status, r.body)
	}
	hubtest.Eventually(t, "the directory is back", func() bool { return w.do(read).status == 200 })

	w.Write("ldap.password", "wrong\n")
	w.reload(func(o *options) { o.lines = append(o.lines, "max_connections 4") }) // new connections
	w.do(read).problem(t, 502, "account")
	w.Write("ldap.password", w.d.ServicePassword+"\n") // and no reload
	hubtest.Eventually(t, "the new password is taken up", func() bool { return w.do(read).status == 200 })

	w.d.Process.Kill()
	w.reload(func(o *options) { o.lines = []string{"timeout 30s"} }) // enough to have tried several times
	w.do(read).problem(t, 503, "unavailable")
}

func TestNoAgent(t *testing.T) {
	w := &world{Hub: hubtest.New(t), o: options{}, t: t}
	w.d = newDirectory(t)
	w.Write("ldap.password", w.d.ServicePassword+"\n")
	w.o.lines = []string{"timeout 30s"}
	w.Load(w.caddyfile())
	read := request{method: "GET", path: path(w.group("team"))}
	w.do(read).problem(t, 503, "unavailable")
	if !strings.Contains(w.Logged(), "no agent that may serve the connector is connected") {
		t.Error("the log does not say that there is no agent")
	}
	stop := w.agent()
	hubtest.Eventually(t, "it works with an agent", func() bool { return w.do(read).status == 200 })
	stop()
}

// A configuration that does not fit the directory is in the log before the
// first request, and one that does is too.
func TestSelfCheck(t *testing.T) {
	w := start(t, options{})
	hubtest.Eventually(t, "the directory is checked", func() bool { return len(w.logged("directory checked")) > 1 })
	if bad := w.logged("the directory is not as the configuration says"); len(bad) > 0 {
		t.Errorf("%v", bad)
	}
	w.reload(func(o *options) { o.lines = []string{"members_below ou=nowhere,dc=example,dc=org"} })
	hubtest.Eventually(t, "the mistake is found", func() bool {
		bad := w.logged("the directory is not as the configuration says")
		return len(bad) == 1 && bad[0]["what"] == "member_base" && bad[0]["target"] == "ou=nowhere,dc=example,dc=org" && bad[0]["level"] == "error"
	})
}

// The doctor tells an operator the same at any time, and of what is in force.
func TestDoctor(t *testing.T) {
	w := start(t, options{})
	ask := func() (ok bool, found map[string]nowconnect.Finding) {
		t.Helper()
		status, body := w.AdminDo("GET", "/nowconnect/doctor", "", "")
		if status != 200 || strings.Contains(body, w.d.ServicePassword) {
			t.Fatalf("%d %s", status, body)
		}
		d := hubtest.JSON[struct {
			OK       bool
			Findings []nowconnect.Finding
		}](t, body)
		found = make(map[string]nowconnect.Finding)
		for _, f := range d.Findings {
			found[f.Place+" "+f.What+" "+f.Target] = f
		}
		return d.OK, found
	}
	_, found := ask()
	for _, name := range []string{
		"directory agent premise-1", "directory connect directory", "directory schema cn=Subschema", "directory member_base " + w.d.PeopleDN,
		"directory group " + w.d.GroupsDN, "directory group cn=whole," + w.d.GroupsDN,
	} {
		if f, there := found[name]; !there || !f.OK {
			t.Errorf("%s: %+v in %v", name, f, found)
		}
	}
	if f := found["directory connect directory"]; !strings.Contains(f.Detail, "openldap") {
		t.Errorf("%+v", f)
	}

	w.reload(func(o *options) {
		o.lines = []string{"members_below ou=nowhere,dc=example,dc=org", "groups_below cn=absent," + w.d.GroupsDN}
	})
	ok, found := ask()
	for name, want := range map[string]string{
		"directory member_base ou=nowhere,dc=example,dc=org": "noSuchObject",
		"directory group cn=absent," + w.d.GroupsDN:          "noSuchObject",
	} {
		if f := found[name]; ok || f.OK || !strings.Contains(f.Detail, want) {
			t.Errorf("%s: %+v in %v", name, f, found)
		}
	}
	if _, old := found["directory member_base "+w.d.PeopleDN]; old {
		t.Errorf("the configuration from before is looked at: %v", found)
	}

	w.Write("ldap.password", "wrong\n")
	w.reload(func(o *options) { o.lines = []string{"max_connections 4"} }) // new connections
	ok, found = ask()
	if f := found["directory connect directory"]; ok || f.OK || !strings.Contains(f.Detail, "invalidCredentials") {
		t.Errorf("with a wrong password: %+v in %v", f, found)
	}
}

// No secret is in a log or in the configuration that Caddy shows.
func TestSecretsStaySecret(t *testing.T) {
	w := start(t, options{})
	w.do(request{method: "PUT", path: path(w.group("team"), w.d.UserDN(4))}).answer(t, 200)
	_, config := w.AdminDo("GET", "/config/", "", "")
	if !strings.Contains(config, "ldap_admin") {
		t.Fatalf("no configuration: %s", config)
	}
	for name, text := range map[string]string{"/config/": config, "the log": w.Logged()} {
		for _, secret := range []string{w.d.ServicePassword, password} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %q", name, secret)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(w.Dir, "ldap.password")); err != nil {
		t.Error(err)
	}
}
