package groupapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// scripted answers requests one after the other and remembers them.
type scripted struct {
	mu      sync.Mutex
	answers []http.HandlerFunc
	got     []*http.Request
	bodies  []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.got, s.bodies = append(s.got, r), append(s.bodies, string(b))
	next := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	s.mu.Unlock()
	next(w, r)
}

// requests are those so far.
func (s *scripted) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func says(status int, mediaType, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func hangUp(w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		c.Close()
	}
}

// talk makes a client of a scripted server that waits for nothing.
func talk(t *testing.T, answers ...http.HandlerFunc) (*Client, *scripted, *[]time.Duration) {
	t.Helper()
	s := &scripted{answers: answers}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	c, err := NewClient(server.URL+"/ldap/", server.Client(), func(r *http.Request) error { r.SetBasicAuth("u", "p"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	waits := new([]time.Duration)
	c.wait = func(ctx context.Context, d time.Duration) error { *waits = append(*waits, d); return ctx.Err() }
	return c, s, waits
}

const (
	fine    = `{"group":"cn=g","dry_run":false,"results":[{"member":"uid=u","outcome":"added","changed":null,"attempts":1}]}`
	busy    = `{"type":"about:blank","title":"Service Unavailable","status":503,"code":"unavailable","detail":"gone"}`
	refused = `{"type":"about:blank","title":"Forbidden","status":403,"code":"denied","detail":"no","ldap_code":50,"ldap_name":"insufficientAccessRights"}`
)

func TestClientRepeatsWhatMayBeRepeated(t *testing.T) {
	c, s, waits := talk(t, says(503, TypeProblem, busy, "Retry-After", "7"), hangUp, says(504, TypeProblem, strings.Replace(busy, "503", "504", 1), "Retry-After", "1"),
		says(200, TypeJSON, fine))
	a, err := c.Patch(t.Context(), "cn=a/b,dc=x", Patch{Add: []string{"uid=u"}}, WriteOptions{DryRun: true, IfMatch: `"e"`})
	if err != nil || len(a.Results) != 1 || a.Results[0].Changed != nil || a.Results[0].Outcome != Added {
		t.Fatalf("%+v %v", a, err)
	}
	// The transport by itself repeats what was hung up on, thanks to the key.
	if len(s.requests()) != 4 || (*waits)[0] != 7*time.Second {
		t.Errorf("%d requests, waited %v", len(s.requests()), *waits)
	}
	for i, r := range s.requests() {
		user, _, _ := r.BasicAuth()
		if r.URL.EscapedPath() != "/ldap/groups/cn=a%2Fb%2Cdc=x/members" || r.URL.RawQuery != "dry_run=true" || s.bodies[i] != `{"add":["uid=u"]}` ||
			r.Header.Get("If-Match") != `"e"` || r.Header.Get("Content-Type") != TypeJSON || user != "u" ||
			r.Header.Get(HeaderIdempotencyKey) == "" || r.Header.Get(HeaderIdempotencyKey) != s.requests()[0].Header.Get(HeaderIdempotencyKey) {
			t.Errorf("request %d: %s %s %v", i, r.URL, s.bodies[i], r.Header)
		}
	}
	if _, err := c.Patch(t.Context(), "cn=g", Patch{Add: []string{"uid=u"}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if s.requests()[4].Header.Get(HeaderIdempotencyKey) == s.requests()[0].Header.Get(HeaderIdempotencyKey) {
		t.Error("another change has the same key")
	}
}

func TestClientGivesUp(t *testing.T) {
	for name, tt := range map[string]struct {
		answer   http.HandlerFunc
		requests int
		want     string
	}{
		"refused":              {says(403, TypeProblem, refused), 1, "no (403 denied); the directory said 50 insufficientAccessRights"},
		"busy":                 {says(503, TypeProblem, busy, "Retry-After", "1"), maxTries, "gone (503 unavailable)"},
		"no time to come back": {says(503, TypeProblem, busy), 1, "gone (503 unavailable)"},
		"hangs up":             {hangUp, maxTries, "EOF"},
		"nonsense":             {says(200, TypeJSON, "nonsense"), 1, "decode the answer"},
		"nonsense problem":     {says(400, TypeProblem, "nonsense"), 1, "makes no sense"},
		"somebody else":        {says(401, "text/html", "<html>"), 1, "(401 not_from_api)"},
		"somebody else's 200":  {says(200, "text/html", "<html>"), 1, "(200 not_from_api)"},
		"redirect":             {says(302, "text/html", "", "Location", "http://evil.example/"), 1, "(302 not_from_api)"},
	} {
		c, s, _ := talk(t, tt.answer)
		c.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		_, err := c.Remove(t.Context(), "cn=g", "uid=u", WriteOptions{})
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(s.requests()) != tt.requests {
			t.Errorf("%s: %v after %d requests", name, err, len(s.requests()))
		}
	}
	c, s, _ := talk(t, hangUp)
	c.Once()
	if _, err := c.Add(t.Context(), "cn=g", "uid=u", WriteOptions{}); err == nil || len(s.requests()) != 1 {
		t.Errorf("once: %v after %d requests", err, len(s.requests()))
	}
	c, _, _ = talk(t, hangUp)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.IsMember(ctx, "cn=g", "uid=u"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestClientReadsAllPages(t *testing.T) {
	page := func(etag, next string, members ...string) http.HandlerFunc {
		b, _ := json.Marshal(Page{Group: "cn=g", Members: members, Total: 3, NextCursor: next})
		return says(200, TypeJSON, string(b), "ETag", etag)
	}
	c, s, _ := talk(t, page(`"1"`, "c 1", "a", "b"), page(`"1"`, "", "c"))
	var got []string
	etag, err := c.All(t.Context(), "cn=g", func(p *Page) { got = append(got, p.Members...) })
	if err != nil || etag != `"1"` || !slices.Equal(got, []string{"a", "b", "c"}) || s.requests()[1].URL.Query().Get("cursor") != "c 1" {
		t.Errorf("%q %s %v", got, etag, err)
	}
	c, _, _ = talk(t, page(`"1"`, "c", "a"), page(`"2"`, "", "c"))
	if _, err := c.All(t.Context(), "cn=g", func(*Page) {}); err == nil || !strings.Contains(err.Error(), "changed while it was read") {
		t.Errorf("%v", err)
	}
}

func TestClientRefusesURLs(t *testing.T) {
	for _, base := range []string{"", "hub.example.com/ldap", "ftp://x/ldap", "https://", "https://user:secret@x/ldap", "https://x/?a=b", "https://x/#y", "https://user:secret@%zz"} {
		_, err := NewClient(base, http.DefaultClient, nil)
		if err == nil || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%q: %v", base, err)
		}
	}
}
