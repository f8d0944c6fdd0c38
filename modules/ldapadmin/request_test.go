package ldapadmin

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// readRequest puts a request through what reads them.
func readRequest(method, target, contentType, body string, header ...string) (asked, *problem) {
	h := &Handler{MaxBody: 1 << 10, MaxMembers: 4}
	h.setDefaults()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	q := &request{Request: r}
	var err error
	if q.target, err = route("/ldap", method, r.URL); err != nil {
		return asked{}, routeProblem(err)
	}
	return h.read(httptest.NewRecorder(), q)
}

const (
	set = "/ldap/groups/cn=g/members"
	one = set + "/uid=u"
)

func TestReadRequest(t *testing.T) {
	a, p := readRequest("PATCH", set+"?dry_run=true", "application/json; charset=utf-8", ` {"remove":["c"],"add":["a","b\u00e9"]} `,
		"If-Match", `"x"`, "Idempotency-Key", "k 1")
	if p != nil {
		t.Fatal(p)
	}
	if !slices.Equal(a.adds, []string{"a", "bé"}) || !slices.Equal(a.removes, []string{"c"}) || !a.dryRun() ||
		a.change.IfMatch != `"x"` || a.key != "k 1" {
		t.Errorf("%+v", a)
	}
	if a, p = readRequest("GET", set+"?cursor=x&limit=5", "", "", "If-Match", "ignored"); p != nil || a.read.Cursor != "x" || a.read.Limit != 5 {
		t.Errorf("%+v %v", a, p)
	}
	if a, p = readRequest("PUT", set+"?force=true&dry_run=false", "application/json", `{"members":[]}`); p != nil || !a.replace.Force || a.dryRun() {
		t.Errorf("%+v %v", a, p)
	}
}

func TestReadRequestRefuses(t *testing.T) {
	const js = "application/json"
	for _, tt := range []struct {
		method, target, contentType, body string
		status                            int
		code                              string
	}{
		{"GET", set + "?limit=0", "", "", 400, codeBadQuery},
		{"GET", set + "?limit=10001", "", "", 400, codeBadQuery},
		{"GET", set + "?dry_run=true", "", "", 400, codeBadQuery},
		{"GET", set, "", "x", 400, codeBadBody},
		{"PUT", one + "?dryrun=true", "", "", 400, codeBadQuery}, // must not write
		{"PUT", one + "?dry_run=1", "", "", 400, codeBadQuery},
		{"PUT", one + "?dry_run", "", "", 400, codeBadQuery},
		{"PUT", one + "?dry_run=true&dry_run=false", "", "", 400, codeBadQuery},
		{"PUT", one + "?dry_run=%zz", "", "", 400, codeBadQuery},
		{"PUT", one + "?force=true", "", "", 400, codeBadQuery},
		{"PUT", one, js, "{}", 400, codeBadBody},
		{"DELETE", one, "", "x", 400, codeBadBody},
		{"PATCH", set, "", `{"add":["a"]}`, 415, codeMediaType},
		{"PATCH", set, "text/plain", `{"add":["a"]}`, 415, codeMediaType},
		{"PATCH", set, js, `{"add":["` + strings.Repeat("a", 1<<10) + `"]}`, 413, codeTooLarge},
		{"PATCH", set, js, `{"add":["a","b","c"],"remove":["d","e"]}`, 413, codeTooLarge},
		{"PATCH", set, js, `{"add":["a","b","c","d","e"]}`, 413, codeTooLarge},
		{"PUT", set, js, `{"members":["a","b","c","d","e","f"]}`, 413, codeTooLarge},
		{"PATCH", set, js, ``, 400, codeBadBody},
		{"PATCH", set, js, `[]`, 400, codeBadBody},
		{"PATCH", set, js, `null`, 400, codeBadBody},
		{"PATCH", set, js, `{}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":[],"remove":[]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":null}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":[null]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":"a"}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":[1]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"Add":["a"]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":["a"],"add":["b"]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":["a"],"replace":["b"]}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":["a"]}{}`, 400, codeBadBody},
		{"PATCH", set, js, `{"add":["a"]`, 400, codeBadBody},
		{"PUT", set, js, `{"members":["a"]}`, 428, codeNeedIfMatch},
		{"PUT", set + "?force=true", js, `{}`, 400, codeBadBody},
		{"PUT", set + "?force=true", js, `{"add":["a"]}`, 400, codeBadBody},
	} {
		_, p := readRequest(tt.method, tt.target, tt.contentType, tt.body)
		if p == nil || p.Status != tt.status || p.Code != tt.code {
			t.Errorf("%s %s %s: %v, want %d %s", tt.method, tt.target, tt.body, p, tt.status, tt.code)
		}
	}
	if _, p := readRequest("PUT", set, js, `{"members":[]}`, "If-Match", `"x"`); p == nil || p.Code != codeEmptySet {
		t.Errorf("an empty set: %v", p)
	}
	for _, tag := range []string{`x`, `""x`, `"a","b"`, `*`, `W/"a"`, `"`, `"` + strings.Repeat("a", 300) + `"`} {
		if _, p := readRequest("PUT", one, "", "", "If-Match", tag); p == nil || p.Code != codeBadHeader {
			t.Errorf("If-Match %s: %v", tag, p)
		}
	}
	for _, key := range []string{"", "a\tb", "é", strings.Repeat("k", maxKey+1)} {
		if _, p := readRequest("PUT", one, "", "", "Idempotency-Key", key); p == nil || p.Code != codeBadHeader {
			t.Errorf("Idempotency-Key %q: %v", key, p)
		}
	}
	if _, p := readRequest("PUT", one, "", "", "Idempotency-Key", "a", "Idempotency-Key", "b"); p == nil || p.Status != http.StatusBadRequest {
		t.Errorf("two keys: %v", p)
	}
}

// Who sends a body slowly does not hold a place for longer than a request may
// take.
func TestSlowBodyIsRefused(t *testing.T) {
	h := &Handler{Timeout: caddy.Duration(100 * time.Millisecond)}
	h.setDefaults()
	got := make(chan *problem, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, p := h.read(w, &request{Request: r, target: target{op: opPatch}})
		got <- p
	}))
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "PATCH "+set+" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-got:
		if p == nil || p.Status != http.StatusBadRequest || p.Code != codeBadBody {
			t.Errorf("%v", p)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it still waits for the body")
	}
}
