package authzen

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/authz"
)

const secret = "a-bearer-token-for-tests"

// pdp is a PDP that does what a test says.
type pdp struct {
	*httptest.Server
	calls atomic.Int32
	do    atomic.Pointer[http.HandlerFunc]
}

func newPDP(t *testing.T, do http.HandlerFunc, start func(*httptest.Server)) *pdp {
	t.Helper()
	p := new(pdp)
	p.do.Store(&do)
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.calls.Add(1)
		(*p.do.Load())(w, r)
	}))
	start(p.Server)
	t.Cleanup(p.Close)
	return p
}

func (p *pdp) set(do http.HandlerFunc) { p.do.Store(&do) }

func answers(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// try provisions a module.
func try(t *testing.T, a *AuthZEN) error {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = a.Cleanup() })
	return a.Provision(ctx)
}

func provision(t *testing.T, a *AuthZEN) *AuthZEN {
	t.Helper()
	if err := try(t, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// ask is a question about one client; port is what a cache must overlook.
func ask(a *AuthZEN, ip string, port int) authz.Decision {
	return a.Decide(context.Background(), request(ip, port))
}

func request(ip string, port int) *authz.Request {
	return &authz.Request{
		Subject:  authz.Entity{Type: "ip", ID: ip},
		Action:   authz.Action{Name: authz.ActionConnect},
		Resource: authz.Entity{Type: "connector", ID: "addomain"},
		Context:  map[string]any{"cid": fmt.Sprint("s-", port), "source_ip": ip, "source_port": port, "hub": "hub-1"},
	}
}

func TestQuestionOnTheWire(t *testing.T) {
	t.Setenv("NC_TEST_PDP_TOKEN", secret+"\n")
	var got *http.Request
	var body []byte
	p := newPDP(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		answers(200, `{"decision":true}`)(w, r)
	}, (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL + "/access/v1/evaluation", BearerToken: "{env.NC_TEST_PDP_TOKEN}"})
	if d := ask(a, "192.0.2.1", 4711); d.Outcome != authz.Allow || d.Err != nil || d.Lease != 0 {
		t.Fatalf("%+v", d)
	}
	if got.Method != "POST" || got.URL.Path != "/access/v1/evaluation" || got.Header.Get("Content-Type") != "application/json" ||
		got.Header.Get("Authorization") != "Bearer "+secret || len(got.Header.Get("X-Request-ID")) < 20 {
		t.Errorf("%s %s %v", got.Method, got.URL, got.Header)
	}
	if _, sent := got.Header["Idempotency-Key"]; sent {
		t.Error("Idempotency-Key was sent")
	}
	want := `{"subject":{"type":"ip","id":"192.0.2.1"},"action":{"name":"connect"},"resource":{"type":"connector","id":"addomain"},` +
		`"context":{"cid":"s-4711","hub":"hub-1","source_ip":"192.0.2.1","source_port":4711}}`
	if string(body) != want {
		t.Errorf("sent %s", body)
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   authz.Outcome
		says   string // part of the reason or the error
		kind   authz.Kind
	}{
		"allow":                       {200, `{"decision":true}`, authz.Allow, "", ""},
		"allow with a reason":         {200, `{"decision":true,"context":{"reason":"rule-7"}}`, authz.Allow, "rule-7", ""},
		"deny":                        {200, `{"decision":false}`, authz.Deny, "", ""},
		"deny with reasons":           {200, `{"decision":false,"context":{"id":"0","reason_admin":{"en":"after hours"},"reason_user":{"en":"no"}}}`, authz.Deny, "after hours", ""},
		"deny with an odd context":    {200, `{"decision":false,"context":{"reason":17,"reason_admin":{"403":null}}}`, authz.Deny, "", ""},
		"unknown members":             {200, `{"decision":true,"evaluations":[],"x":{"decision":false}}`, authz.Allow, "", ""},
		"null context":                {200, `{"decision":true,"context":null}`, authz.Allow, "", ""},
		"no obligations":              {200, `{"decision":true,"context":{"obligations":[]}}`, authz.Allow, "", ""},
		"unknown obligation":          {200, `{"decision":true,"context":{"obligations":[{"id":"1","type":"step-up","acr_value":"x"}]}}`, authz.Deny, "step-up", ""},
		"obligation without type":     {200, `{"decision":true,"context":{"obligations":[{"id":"stepup"}]}}`, authz.Deny, "stepup", ""},
		"obligation without name":     {200, `{"decision":true,"context":{"obligations":[{}]}}`, authz.Deny, "without a name", ""},
		"obligations of another form": {200, `{"decision":true,"context":{"obligations":{"mfa":true}}}`, authz.Deny, "not readable", ""},
		"known beside unknown":        {200, `{"decision":true,"context":{"obligations":[{"type":"max_bytes","bytes":9},{"type":"x"}]}}`, authz.Deny, "fulfil: x", ""},
		"malformed obligation":        {200, `{"decision":true,"context":{"obligations":[{"type":"max_bytes","bytes":"9"}]}}`, authz.Deny, "max_bytes: no member bytes", ""},
		"obligations of a denial":     {200, `{"decision":false,"context":{"obligations":[{"id":"1"}]}}`, authz.Deny, "", ""},
		"garbage":                     {200, "<html>hello</html>", authz.Error, "not a JSON object", authz.KindDecode},
		"binary garbage":              {200, "\x00\xff\xfe", authz.Error, "not a JSON object", authz.KindDecode},
		"empty":                       {200, "", authz.Error, "not a JSON object", authz.KindDecode},
		"cut off":                     {200, `{"decision":true`, authz.Error, "not a JSON object", authz.KindDecode},
		"more behind":                 {200, `{"decision":true}{"decision":false}`, authz.Error, "not a JSON object", authz.KindDecode},
		"list":                        {200, `[{"decision":true}]`, authz.Error, "not a JSON object", authz.KindDecode},
		"true":                        {200, `true`, authz.Error, "not a JSON object", authz.KindDecode},
		"no decision":                 {200, `{"result":true}`, authz.Error, "no member decision", authz.KindDecode},
		"another case":                {200, `{"Decision":true}`, authz.Error, "no member decision", authz.KindDecode},
		"text":                        {200, `{"decision":"true"}`, authz.Error, "neither true nor false", authz.KindDecode},
		"number":                      {200, `{"decision":1}`, authz.Error, "neither true nor false", authz.KindDecode},
		"null":                        {200, `{"decision":null}`, authz.Error, "neither true nor false", authz.KindDecode},
		"context is text":             {200, `{"decision":true,"context":"obligations"}`, authz.Error, "context", authz.KindDecode},
		"ttl is text":                 {200, `{"decision":true,"context":{"ttl":"soon"}}`, authz.Error, "time to live", authz.KindDecode},
		"huge":                        {200, `{"decision":true,"x":"` + strings.Repeat("x", 64<<10) + `"}`, authz.Error, "larger than 65536", authz.KindDecode},
		"created":                     {201, `{"decision":true}`, authz.Error, "status 201", authz.KindRejected},
		"400":                         {400, "missing\nattribute", authz.Error, "status 400: missing attribute", authz.KindRejected},
		"401":                         {401, `{"decision":true}`, authz.Error, "status 401", authz.KindRejected},
		"403":                         {403, `{"decision":false}`, authz.Error, "status 403", authz.KindRejected},
		"404":                         {404, `{"code":"undefined_document"}`, authz.Error, "undefined_document", authz.KindRejected},
		"429":                         {429, "", authz.Error, "status 429", authz.KindUnavailable},
		"500":                         {500, `{"decision":true}`, authz.Error, "status 500", authz.KindUnavailable},
		"503":                         {503, strings.Repeat("x", 1<<20), authz.Error, "status 503", authz.KindUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPDP(t, answers(c.status, c.body), (*httptest.Server).Start)
			a := provision(t, &AuthZEN{Endpoint: p.URL, Timeout: caddy.Duration(10 * time.Second)})
			for i := range int32(2) {
				d := ask(a, "192.0.2.1", int(i))
				said := d.Reason
				if d.Err != nil {
					said = d.Err.Error()
				}
				if d.Outcome != c.want || authz.KindOf(d) != c.kind || !strings.Contains(said, c.says) || len(said) > 400 {
					t.Errorf("%s (%s) %q", d.Outcome, authz.KindOf(d), said)
				}
				if (c.want == authz.Error) != (d.Err != nil) || d.Cached != (i == 1 && c.want != authz.Error) {
					t.Errorf("%+v", d)
				}
			}
		})
	}
}

func TestOriginalDialect(t *testing.T) {
	var body []byte
	p := newPDP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ = io.ReadAll(r.Body)
		answers(200, `{"allow":true,"ttl_sec":30}`)(w, r)
	}, (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, Dialect: dialectV1, AgentID: "premise-1", Audience: "nowconnect"})
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow || d.Lease != 30*time.Second {
		t.Errorf("%+v", d)
	}
	want := `{"subject":{"agent_id":"premise-1"},"action":"connect","resource":{"type":"connector","id":"addomain"},"context":{"replica_id":"hub-1","aud":"nowconnect"}}`
	if string(body) != want {
		t.Errorf("sent %s", body)
	}
	// The subject is the agent that would serve the client, unless one is named.
	a = provision(t, &AuthZEN{Endpoint: p.URL, Dialect: dialectV1})
	r := request("192.0.2.1", 1)
	if d := a.Decide(t.Context(), r); authz.KindOf(d) != authz.KindRejected || !strings.Contains(d.Err.Error(), "no agent to ask about") {
		t.Errorf("%+v", d)
	}
	r.Context["agent"] = "premise-2"
	if d := a.Decide(t.Context(), r); d.Outcome != authz.Allow || !strings.Contains(string(body), `{"agent_id":"premise-2"}`) {
		t.Errorf("%+v after %s", d, body)
	}
	for answer, want := range map[string]authz.Outcome{
		`{"allow":false,"ttl_sec":30}`: authz.Deny,
		`{"allow":true,"ttl_sec":"x"}`: authz.Error,
		`{"decision":true}`:            authz.Error,
		`{}`:                           authz.Error,
	} {
		p.set(answers(200, answer))
		a := provision(t, &AuthZEN{Endpoint: p.URL, Dialect: dialectV1, AgentID: "premise-1"})
		if d := ask(a, "192.0.2.1", 1); d.Outcome != want {
			t.Errorf("%s: %+v", answer, d)
		}
	}
}

// hang answers nothing before the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.ReadAll(r.Body) // else the server does not notice
	<-r.Context().Done()
}

func slowBody(w http.ResponseWriter, r *http.Request) {
	_, _ = io.ReadAll(r.Body)
	_, _ = io.WriteString(w, `{"decision":`)
	for r.Context().Err() == nil {
		_, _ = io.WriteString(w, " ")
		w.(http.Flusher).Flush()
		time.Sleep(5 * time.Millisecond)
	}
}

func TestTimeout(t *testing.T) {
	for name, do := range map[string]http.HandlerFunc{"no answer": hang, "slow body": slowBody} {
		t.Run(name, func(t *testing.T) {
			p := newPDP(t, do, (*httptest.Server).Start)
			a := provision(t, &AuthZEN{Endpoint: p.URL, Timeout: caddy.Duration(100 * time.Millisecond)})
			started := time.Now()
			d := ask(a, "192.0.2.1", 1)
			if took := time.Since(started); d.Outcome != authz.Error || authz.KindOf(d) != authz.KindTimeout || took < 100*time.Millisecond || took > 5*time.Second {
				t.Errorf("%+v after %s", d, took)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	a := provision(t, &AuthZEN{Endpoint: "http://" + l.Addr().String() + "/?key=" + secret})
	d := ask(a, "192.0.2.1", 1)
	if d.Outcome != authz.Error || authz.KindOf(d) != authz.KindTransport || strings.Contains(d.Err.Error(), secret) {
		t.Errorf("%+v", d)
	}
}

// A PDP that closes its idle connections costs no answer.
func TestIdleConnectionClosedByThePDP(t *testing.T) {
	p := newPDP(t, answers(200, `{"decision":true}`), (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, CacheTTL: -1})
	for i := range 20 {
		if d := ask(a, "192.0.2.1", i); d.Outcome != authz.Allow {
			t.Fatalf("%+v", d)
		}
		p.CloseClientConnections()
	}
}

func TestFlappingPDP(t *testing.T) {
	p := newPDP(t, answers(500, ""), (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, CacheTTL: -1, Timeout: caddy.Duration(10 * time.Second)})
	core, logs := observer.New(zap.InfoLevel)
	a.logger = zap.New(core)
	for range 2 {
		before := p.calls.Load()
		p.set(answers(500, ""))
		for range 5 {
			if d := ask(a, "192.0.2.1", 1); authz.KindOf(d) != authz.KindUnavailable {
				t.Fatalf("%+v", d)
			}
		}
		d := ask(a, "192.0.2.1", 1)
		if authz.KindOf(d) != authz.KindBreakerOpen || p.calls.Load() != before+5 {
			t.Fatalf("%+v after %d calls", d, p.calls.Load()-before)
		}
		p.set(answers(200, `{"decision":true}`))
		deadline := time.Now().Add(20 * time.Second)
		for ask(a, "192.0.2.1", 1).Outcome != authz.Allow {
			if time.Now().After(deadline) {
				t.Fatal("does not heal")
			}
			time.Sleep(20 * time.Millisecond)
		}
		if n := p.calls.Load() - before; n != 6 {
			t.Errorf("%d calls, want 5 failures and a probe", n)
		}
	}
	if logs.FilterMessageSnippet("the PDP fails").Len() != 2 || logs.FilterMessageSnippet("answers again").Len() != 2 {
		t.Errorf("logged %v", logs.All())
	}
}

// 200 clients that wait are one question if they are one client, and as many at
// one time as allowed if they are not.
func TestManyClientsFewCalls(t *testing.T) {
	var now, most atomic.Int32
	do := func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(50 * time.Millisecond)
		answers(200, `{"decision":true}`)(w, r)
	}
	p := newPDP(t, do, (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, MaxCalls: 16, Timeout: caddy.Duration(20 * time.Second)})
	everybody := func(ip func(i int) string) {
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if d := ask(a, ip(i), i); d.Outcome != authz.Allow {
					t.Errorf("%+v", d)
				}
			})
		}
		wg.Wait()
	}
	everybody(func(int) string { return "192.0.2.1" })
	if n := p.calls.Load(); n != 1 {
		t.Errorf("%d calls for one client", n)
	}
	everybody(func(i int) string { return fmt.Sprint("198.51.100.", i) })
	if n := p.calls.Load(); n != 201 || most.Load() > 16 {
		t.Errorf("%d calls for 200 clients, %d at one time", n-1, most.Load())
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Setenv("NC_TEST_PDP_TOKEN", secret)
	other := newPDP(t, answers(200, `{"decision":true}`), (*httptest.Server).Start)
	for _, status := range []int{301, 302, 303, 307, 308} {
		p := newPDP(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, status) }, (*httptest.Server).Start)
		a := provision(t, &AuthZEN{Endpoint: p.URL, BearerToken: "{env.NC_TEST_PDP_TOKEN}"})
		d := ask(a, "192.0.2.1", 1)
		if d.Outcome != authz.Error || authz.KindOf(d) != authz.KindRejected || other.calls.Load() != 0 {
			t.Errorf("%d: %+v", status, d)
		}
	}
}

func TestOnErrorAllow(t *testing.T) {
	p := newPDP(t, answers(500, ""), (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, OnError: onErrorAllow})
	core, logs := observer.New(zap.WarnLevel)
	a.logger = zap.New(core)
	for i := range 20 {
		d := ask(a, "192.0.2.1", i)
		if d.Outcome != authz.Allow || d.Reason != "on_error allow" || d.Err == nil || d.Cached {
			t.Fatalf("%+v", d)
		}
	}
	if n := logs.FilterMessageSnippet("let a client in").Len(); n < 1 || n > 5 {
		t.Errorf("%d lines about it", n)
	}
	p.set(answers(200, `{"decision":false}`))
	a = provision(t, &AuthZEN{Endpoint: p.URL, OnError: onErrorAllow})
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Deny {
		t.Errorf("a denial became %+v", d)
	}
}

// The token is sent and is nowhere else.
func TestTokenStaysSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPDP(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(500)
		_, _ = io.WriteString(w, "you sent "+r.Header.Get("Authorization"))
	}, (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL, BearerToken: "{file." + file + "}"})
	core, logs := observer.New(zap.DebugLevel)
	a.logger, a.client.logger = zap.New(core), zap.New(core)
	for range 10 {
		d := ask(a, "192.0.2.1", 1)
		if d.Err == nil || strings.Contains(d.Err.Error(), secret) || strings.Contains(d.Reason, secret) {
			t.Errorf("%+v", d)
		}
		if authz.KindOf(d) == authz.KindUnavailable && !strings.Contains(d.Err.Error(), "you sent Bearer [token]") {
			t.Errorf("%v", d.Err)
		}
	}
	p.set(answers(200, `{"decision":true}`))
	stored, err := json.Marshal(a)
	if err != nil || strings.Contains(string(stored), secret) || !strings.Contains(string(stored), "{file.") {
		t.Errorf("%s, %v", stored, err)
	}
	for _, e := range logs.All() {
		if strings.Contains(fmt.Sprint(e.Message, e.ContextMap()), secret) {
			t.Errorf("logged %+v", e)
		}
	}
}

func TestWhatDoesNotLoad(t *testing.T) {
	t.Setenv("NC_TEST_EMPTY", " ")
	t.Setenv("NC_TEST_BAD", "two words")
	t.Setenv("NC_TEST_URL", "http://user:"+secret+"@127.0.0.1/")
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	const url = "https://pdp.example.com/access/v1/evaluation"
	for want, a := range map[string]*AuthZEN{
		"either an endpoint or discover":     {},
		"and not both":                       {Endpoint: url, Discover: "https://pdp.example.com"},
		"use https, or say `insecure`":       {Endpoint: "http://pdp.example.com/x"},
		"discover: http:// to another":       {Discover: "http://192.0.2.1"},
		`scheme "ftp"`:                       {Endpoint: "ftp://pdp.example.com"},
		"no host":                            {Endpoint: "/access/v1/evaluation"},
		"not a URL":                          {Endpoint: "https://pdp.example.com/%zz"},
		"a user name or password":            {Endpoint: "{env.NC_TEST_URL}"},
		"a fragment":                         {Endpoint: url + "#x"},
		"NC_TEST_UNSET":                      {Endpoint: "https://{env.NC_TEST_UNSET}/"},
		"has no query":                       {Discover: "https://pdp.example.com?x=y"},
		"must be a placeholder":              {Endpoint: url, BearerToken: secret},
		"{env.NC_TEST_EMPTY} is empty":       {Endpoint: url, BearerToken: "{env.NC_TEST_EMPTY}"},
		"cannot stand in an HTTP header":     {Endpoint: url, BearerToken: "{env.NC_TEST_BAD}"},
		"bearer_token:":                      {Endpoint: url, BearerToken: "{file./does/not/exist}"},
		`dialect "x"`:                        {Endpoint: url, Dialect: "x"},
		"has no batch_endpoint":              {Endpoint: url, BatchEndpoint: off, Dialect: dialectV1, AgentID: "a"},
		"discover tells the batch_endpoint":  {Discover: "https://pdp.example.com", BatchEndpoint: url},
		"batch_endpoint: http:// to another": {Endpoint: url, BatchEndpoint: "http://pdp.example.com/x"},
		"has no discovery":                   {Discover: "https://pdp.example.com", Dialect: dialectV1, AgentID: "a"},
		"are words of dialect nowconnect-v1": {Endpoint: url, Audience: "x"},
		`on_error "stale"`:                   {Endpoint: url, OnError: "stale"},
		"cannot be negative":                 {Endpoint: url, MaxCalls: -1},
		"max_response_size 1":                {Endpoint: url, MaxResponseSize: 1 << 40},
		"needs its key":                      {Endpoint: url, TLS: &TLS{ClientCertificate: junk}},
		"tls: client certificate":            {Endpoint: url, TLS: &TLS{ClientCertificate: junk, ClientKey: junk}},
		"no certificate in":                  {Endpoint: url, TLS: &TLS{CA: []string{junk}}},
		"tls: ca":                            {Endpoint: url, TLS: &TLS{CA: []string{junk + "x"}}},
	} {
		err := try(t, a)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, a := range []*AuthZEN{
		{Endpoint: url}, {Endpoint: "http://localhost:1/"}, {Endpoint: "http://[::1]:1/"}, {Endpoint: "http://127.0.0.1/"},
		{Endpoint: "http://pdp.example.com/", Insecure: true}, {Discover: "https://pdp.example.com/tenant"},
	} {
		if err := try(t, a); err != nil {
			t.Errorf("%+v: %v", a, err)
		}
	}
}
