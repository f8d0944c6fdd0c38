package ldapadmin_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// documented lists operations with their statuses, as seen counts them.
func documented(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		t.Fatal(err)
	}
	var all []string
	for path, methods := range spec.Paths {
		for method, raw := range methods {
			if method == "parameters" {
				continue
			}
			var op struct {
				Responses map[string]any `json:"responses"`
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatal(err)
			}
			for status := range op.Responses {
				all = append(all, strings.ToUpper(method)+" "+path+" "+status)
			}
		}
	}
	slices.Sort(all)
	return all
}

// call is an operation of the document.
type call struct {
	method string
	set    bool // on the whole set, else on one member
}

var (
	calls  = []call{{"GET", true}, {"PATCH", true}, {"PUT", true}, {"GET", false}, {"PUT", false}, {"DELETE", false}}
	writes = []call{{"PATCH", true}, {"PUT", true}, {"PUT", false}, {"DELETE", false}}
)

// on makes the request of an operation about a group and members.
func (c call) on(group string, members ...string) request {
	r := request{method: c.method, path: path(group)}
	list, _ := json.Marshal(members)
	switch {
	case !c.set:
		r.path = path(group, members[0])
	case c.method == "PATCH":
		r.body = `{"add":` + string(list) + `}`
	case c.method == "PUT":
		r.path += "?force=true"
		r.body = `{"members":` + string(list) + `}`
	}
	return r
}

// Every operation of the document is made to give each of its statuses, and
// each answer is held against it. A fault of the service, 500, cannot be
// ordered.
func TestEveryOperationAndStatus(t *testing.T) {
	w := start(t, options{lines: []string{"max_body 4KiB"}})
	u, whole := w.d.UserDN, w.group("whole")
	expect := func(status int, r request) {
		t.Helper()
		if got, err := w.try(r); err != nil || got.status != status {
			t.Errorf("%s %s: %d, want %d: %s %v", r.method, r.path, got.status, status, got.body, err)
		}
	}
	with := func(r request, header ...string) request { r.header = append(r.header, header...); return r }
	expect(200, request{method: "GET", path: "/ldap/openapi.json"})
	for _, c := range calls {
		expect(200, c.on(whole, u(1), u(2), u(3)))
		bad := c.on(whole, u(1))
		bad.path = strings.Replace(bad.path, "/groups/", "/groups/%2541", 1)
		expect(400, bad)
		expect(403, c.on("cn=x,"+w.d.PeopleDN, u(1)))
		expect(404, c.on(w.group("nobody"), u(1)))
		expect(409, c.on("ou=group-like,"+w.d.GroupsDN, u(1)))
	}
	ghost := "uid=ghost," + w.d.PeopleDN
	for _, c := range writes {
		expect(412, with(c.on(whole, u(1), u(2), u(3)), "If-Match", `"another"`))
		key := "key of " + c.method + strconv.FormatBool(c.set)
		expect(200, with(c.on(whole, u(1), u(2), u(3)), "Idempotency-Key", key))
		expect(422, with(c.on(whole, u(2), u(1), u(3)), "Idempotency-Key", key))
		if !c.set {
			continue
		}
		expect(207, c.on(whole, u(1), u(2), u(6), ghost)) // 6 is new
		expect(413, c.on(whole, strings.Repeat("x", 8<<10)))
		text := with(c.on(whole, u(1)), "Content-Type", "text/plain")
		text.off = true
		expect(415, text)
	}
	without := call{"PUT", true}.on(whole, u(1))
	without.path = path(whole)
	expect(428, without)

	all := func(status int) {
		t.Helper()
		var wg sync.WaitGroup
		for _, c := range calls {
			wg.Go(func() { expect(status, c.on(whole, u(1), u(2), u(3))) })
		}
		wg.Wait()
	}
	w.reload(func(o *options) { o.lines = append(o.lines, "timeout 1s") })
	w.d.Process.Freeze()
	all(504)
	w.d.Process.Thaw()

	w.Write("ldap.password", "wrong\n")
	w.reload(func(o *options) { o.lines = nil }) // new connections
	all(502)
	w.Write("ldap.password", w.d.ServicePassword+"\n")
	w.d.Process.Kill()
	w.reload(func(o *options) { o.lines = []string{"timeout 30s"} })
	all(503)
	w.reload(func(o *options) { o.front = "basic_auth /elsewhere {\n\t\t" + caller + " " + callerHash + "\n\t}" })
	expect(401, request{method: "GET", path: "/ldap/openapi.json"})
	for _, c := range calls {
		expect(401, c.on(whole, u(1)))
	}

	for _, want := range documented(t) {
		if _, ok := seen.Load(want); !ok && !strings.HasSuffix(want, " "+strconv.Itoa(http.StatusInternalServerError)) {
			t.Errorf("not seen: %s", want)
		}
	}
}

// The document that is served is the one in the file, with the prefix of the
// configuration.
func TestDocumentIsServed(t *testing.T) {
	w := start(t, options{lines: []string{"path_prefix /api/v1/directory"}, front: "basic_auth /api/* {\n\t\t" + caller + " " + callerHash + "\n\t}"})
	want, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	got := w.plain("GET", "/api/v1/directory/openapi.json")
	if got.status != 200 || got.body != strings.Replace(string(want), `"url": "/ldap"`, `"url": "/api/v1/directory"`, 1) || got.body == string(want) {
		t.Errorf("%d %.300s", got.status, got.body)
	}
	if got := w.plain("GET", strings.Replace(path(w.group("team")), "/ldap", "/api/v1/directory", 1)); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := w.plain("GET", path(w.group("team"))); got.status != 200 || got.body != "" {
		t.Errorf("elsewhere it goes on to the next handler, which is Caddy's empty 200: %d %s", got.status, got.body)
	}
}

// plain sends a request that the document is not about.
func (w *world) plain(method, path string) reply {
	w.t.Helper()
	req, err := http.NewRequest(method, "http://"+w.HTTP+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.SetBasicAuth(caller, password)
	return w.send(req)
}

// Holding answers against the document is worth something only if it can fail.
func TestTheDocumentRefuses(t *testing.T) {
	req, err := http.NewRequest("GET", "http://x"+path("cn=g,dc=x", "uid=u,dc=x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		status    int
		mediaType string
		body      string
		ok        bool
	}{
		{200, "application/json", `{"group":"cn=g","member":"uid=u","is_member":true}`, true},
		{200, "application/json", `{"group":"cn=g","member":"uid=u"}`, false},
		{200, "application/json", `{"group":"cn=g","member":"uid=u","is_member":"yes"}`, false},
		{200, "application/json", `{"group":"cn=g","member":"uid=u","is_member":true,"more":1}`, false},
		{200, "text/plain", `{"group":"cn=g","member":"uid=u","is_member":true}`, false},
		{418, "application/problem+json", `{"type":"about:blank","title":"x","status":418,"code":"busy"}`, false},
		{404, "application/problem+json", `{"type":"about:blank","title":"x","status":404,"code":"group_not_found"}`, true},
		{404, "application/problem+json", `{"type":"about:blank","title":"x","status":404,"code":"a_new_word"}`, false},
	} {
		resp := &http.Response{
			StatusCode: tt.status, Header: http.Header{"Content-Type": {tt.mediaType}}, Body: io.NopCloser(strings.NewReader(tt.body)), Request: req,
		}
		if ok, errs := document().GetResponseBodyValidator().ValidateResponseBody(req, resp); ok != tt.ok {
			t.Errorf("%d %s %s: %v %v", tt.status, tt.mediaType, tt.body, ok, errs)
		}
	}
}
