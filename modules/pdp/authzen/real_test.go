//go:build unix

package authzen_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// realPDP is a policy server that is not ours.
type realPDP struct {
	endpoint string
	options  string // further ones of pdp authzen
	// allow makes it allow clients in this network, and nobody else, from the
	// moment that it returns.
	allow func(network string)
}

// A real PDP allows, denies, changes its mind and dies, over a real Caddy with a
// real agent.
func exercise(t *testing.T, pdp realPDP, kill func()) {
	h := hubtest.New(t)
	generation := 0
	load := func(options string) {
		t.Helper()
		generation++ // what does not differ is not loaded
		options = fmt.Sprintf("%s\n%s\nmax_calls %d", pdp.options, options, 50+generation)
		h.Load(h.Caddyfile(app(pdp.endpoint, options), hubtest.Layer4, hubtest.Site))
	}
	pdp.allow("127.0.0.0/8")
	load("timeout 20s\ncache_ttl off\ndeny_ttl off")
	h.Agent(nil)

	var live []*net.TCPConn
	for range 5 {
		c := h.Dial()
		hubtest.RoundTrip(t, c, "hello")
		live = append(live, c)
	}
	// Judged again, and allowed again, live sessions do not notice.
	load("timeout 20s\ncache_ttl off\ndeny_ttl off")
	hubtest.Eventually(t, "the live sessions are judged again", func() bool { return h.Metric(allowed) == 10 })
	for _, c := range live {
		hubtest.RoundTrip(t, c, "still here")
	}

	// A policy that changes refuses who comes, and cuts who is there.
	pdp.allow("192.0.2.0/24")
	h.Refused()
	hubtest.Eventually(t, "the denial is counted", func() bool { return h.Metric(denied) == 1 })
	if status, answer := h.AdminDo("POST", "/nowconnect/reevaluate", "application/json", "{}"); status != 200 || !strings.Contains(answer, `"judging": 5`) {
		t.Errorf("reevaluate: %d %s", status, answer)
	}
	for i, c := range live {
		if _, err := c.Read(make([]byte, 1)); !testpeer.IsReset(err) {
			t.Errorf("live session %d under a policy that denies it: %v", i, err)
		}
	}
	hubtest.Eventually(t, "the sessions are gone", func() bool {
		return h.Metric(`nowconnect_sessions_closed_total{connector="echo",reason="denied"}`) == 6
	})
	if v := h.Metric(failures); v != 0 {
		t.Errorf("%v decisions were errors", v)
	}

	// And it opens the door again.
	pdp.allow("127.0.0.1/32")
	hubtest.RoundTrip(t, h.Dial(), "hello again")

	if kill == nil {
		return
	}
	// A PDP that is gone lets nobody in.
	load("timeout 2s\ncache_ttl off\ndeny_ttl off")
	kill()
	h.Refused()
	hubtest.Eventually(t, "the error is counted", func() bool { return h.Metric(failures) > 0 && h.Metric(listener) > 0 })
}

const opaPolicy = `package nowconnect
decision := {"decision": net.cidr_contains("%s", input.context.source_ip), "context": {"reason": "opa"}}
decisions := {"evaluations": [d | some q in input.evaluations; d := decision with input as q]}
half := {"decision": true} if input.subject.id == "192.0.2.1"
`

func TestOPA(t *testing.T) {
	policy := func(network string) string { return fmt.Sprintf(opaPolicy, network) }
	opa := testpeer.OPA(t, testpeer.OPAOptions{Files: map[string]string{"nowconnect.rego": policy("192.0.2.0/24")}})
	exercise(t, realPDP{
		endpoint: opa.URL + "/v0/data/nowconnect/decision",
		options:  "batch_endpoint " + opa.URL + "/v0/data/nowconnect/decisions",
		allow:    func(network string) { opa.Write("nowconnect.rego", policy(network)) },
	}, opa.Process.Kill)
}

// What OPA answers when a rule is not what the hub needs is an error, and
// nobody gets in.
func TestOPAThatCannotAnswer(t *testing.T) {
	opa := testpeer.OPA(t, testpeer.OPAOptions{Files: map[string]string{
		"nowconnect.rego": fmt.Sprintf(opaPolicy, "127.0.0.0/8"),
		"conflict.rego":   "package conflict\ndecision := x if some x in [{\"decision\": true}, {\"decision\": false}]\n",
	}})
	h := hubtest.New(t)
	started := false
	errors := 0.0
	for _, c := range []struct{ path, says string }{
		{"/v0/data/nowconnect/half", "status 404"},              // no value for this question
		{"/v0/data/nowconnect/nothing", "status 404"},           // no such rule
		{"/v0/data/conflict/decision", "eval_conflict_error"},   // two values
		{"/v0/data/nowconnect", "neither true nor false"},       // the package
		{"/v1/data/nowconnect/decision", "no member decision"},  // wants {"input": …}
		{"/v0/data/nowconnect/decisions", "no member decision"}, // the batch rule
	} {
		h.Load(h.Caddyfile(app(opa.URL+c.path, "timeout 20s"), hubtest.Layer4, hubtest.Site))
		if !started {
			h.Agent(nil)
			started = true
		}
		asked := opa.Asked()
		h.Refused()
		errors++
		hubtest.Eventually(t, c.path+" is an error", func() bool { return h.Metric(failures) == errors && h.Metric(listener) == errors })
		hubtest.Eventually(t, c.says, func() bool { return strings.Contains(h.Logged(), c.says) })
		if n := opa.Asked() - asked; n != 1 {
			t.Errorf("%s: asked %d times", c.path, n)
		}
	}
	if v := h.Metric(allowed) + h.Metric(denied); v != 0 {
		t.Errorf("%v decisions were made", v)
	}
}

const cerbosPolicy = `apiVersion: api.cerbos.dev/v1
resourcePolicy:
  resource: connector
  version: default
  rules:
    - actions: ["connect"]
      effect: EFFECT_ALLOW
      roles: ["*"]
      condition:
        match:
          expr: request.principal.id.inIPAddrRange("%s")
`

func TestCerbos(t *testing.T) {
	policy := func(network string) string { return fmt.Sprintf(cerbosPolicy, network) }
	cerbos := testpeer.Cerbos(t, map[string]string{"connector.yaml": policy("192.0.2.0/24")})
	allow := func(network string) {
		t.Helper()
		want := fmt.Sprintf(`{"decision":%v}`, strings.HasPrefix(network, "127."))
		cerbos.Write("connector.yaml", policy(network))
		hubtest.Eventually(t, "Cerbos has the policy", func() bool {
			resp, err := http.Post(cerbos.URL+"/access/v1/evaluation", "application/json", strings.NewReader(
				`{"subject":{"type":"ip","id":"127.0.0.1"},"action":{"name":"connect"},"resource":{"type":"connector","id":"echo"},"context":{"hub":"test"}}`))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return err == nil && string(b) == want
		})
	}
	t.Run("discovery", func(t *testing.T) {
		exercise(t, realPDP{options: "discover " + cerbos.URL, allow: allow}, nil)
	})
	t.Run("endpoint", func(t *testing.T) {
		exercise(t, realPDP{endpoint: cerbos.URL + "/access/v1/evaluation", allow: allow}, cerbos.Process.Kill)
	})
}

// A permit is a lease: without any reload, a policy that changes cuts who is
// there when their lease runs out, all in one question, and what a permit is
// bound to is kept.
func TestOPAPermitsAreLeases(t *testing.T) {
	policy := func(network, context string) string {
		return fmt.Sprintf(`package nowconnect
decision := {"decision": net.cidr_contains("%s", input.context.source_ip), "context": %s}
decisions := {"evaluations": [d | some q in input.evaluations; d := decision with input as q]}
`, network, context)
	}
	opa := testpeer.OPA(t, testpeer.OPAOptions{Files: map[string]string{"nowconnect.rego": policy("127.0.0.0/8", `{"ttl": 1}`)}})
	h := hubtest.New(t)
	h.Load(h.Caddyfile(app(opa.URL+"/v0/data/nowconnect/decision", "batch_endpoint "+opa.URL+"/v0/data/nowconnect/decisions\ntimeout 20s\ncache_ttl off\ndeny_ttl off"),
		hubtest.Layer4, hubtest.Site))
	h.Agent(nil)
	ended := func(n float64) {
		t.Helper()
		hubtest.Eventually(t, "they are revoked", func() bool {
			return h.Metric(`nowconnect_sessions_closed_total{connector="echo",reason="revoked"}`) == n
		})
	}
	var live []*net.TCPConn
	for range 20 {
		c := h.Dial()
		hubtest.RoundTrip(t, c, "hello")
		live = append(live, c)
	}
	hubtest.Eventually(t, "leases are renewed", func() bool { return h.Metric(allowed) >= 60 })
	for _, c := range live {
		hubtest.RoundTrip(t, c, "still here")
	}
	opa.Write("nowconnect.rego", policy("192.0.2.0/24", `{"ttl": 1}`))
	for i, c := range live {
		if _, err := c.Read(make([]byte, 1)); !testpeer.IsReset(err) {
			t.Errorf("session %d, whose lease is not renewed: %v", i, err)
		}
	}
	ended(20)
	if v := h.Metric(failures); v != 0 {
		t.Errorf("%v decisions were errors", v)
	}
	// Leases are spread, so there is more than one batch; and fewer questions
	// than answers.
	if asked, answered := opa.Asked(), h.Metric(allowed)+h.Metric(denied); float64(asked) >= answered {
		t.Errorf("%v answers to %d questions", answered, asked)
	}

	opa.Write("nowconnect.rego", policy("127.0.0.0/8", `{"obligations": [{"type": "max_bytes", "id": "1", "bytes": 1000}]}`))
	c := h.Dial()
	hubtest.RoundTrip(t, c, strings.Repeat("x", 400))
	if _, err := io.WriteString(c, strings.Repeat("x", 400)); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(c); !testpeer.IsReset(err) {
		t.Errorf("a session beyond its max_bytes: %v", err)
	}
	opa.Write("nowconnect.rego", policy("127.0.0.0/8", `{"obligations": [{"type": "max_duration", "id": "1", "seconds": 1}]}`))
	c = h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	if _, err := c.Read(make([]byte, 1)); !testpeer.IsReset(err) {
		t.Errorf("a session beyond its max_duration: %v", err)
	}
	ended(22)
}
