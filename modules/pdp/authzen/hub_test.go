package authzen_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// app is a nowconnect block with connector echo and a PDP.
func app(pdp, options string) string {
	return strings.Replace(hubtest.Basic, "pdp allow_all", "pdp authzen "+pdp+" {\n"+options+"\n}", 1)
}

const (
	allowed  = `nowconnect_pdp_decisions_total{connector="echo",result="allow"}`
	denied   = `nowconnect_pdp_decisions_total{connector="echo",result="deny"}`
	failures = `nowconnect_pdp_decisions_total{connector="echo",result="error"}`
	listener = `nowconnect_listener_errors_total{connector="echo",type="pdp"}`
)

// rises waits for a counter, as a client learns its fate before it is counted.
func rises(t *testing.T, h *hubtest.Hub, series string, from, by float64) {
	t.Helper()
	hubtest.Eventually(t, series+" rises", func() bool { return h.Metric(series) == from+by })
}

// One PDP answers over a real Caddy with a real agent: it allows, denies, fails,
// hangs and dies, and what clients and counters see is in step.
func TestPDPDecidesWhoConnects(t *testing.T) {
	h := hubtest.New(t)
	token := h.Write("pdp.token", "the-token-of-this-test-pdp\n")
	var calls atomic.Int32
	var body atomic.Pointer[string]
	say := func(s string) { body.Store(&s) }
	say(`{"decision":true,"context":{"reason":"rule-7"}}`)
	gate := make(chan struct{})
	var hold atomic.Bool
	pdp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if r.Header.Get("Authorization") != "Bearer the-token-of-this-test-pdp" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.ReadAll(r.Body)
		if hold.Load() {
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		if s := *body.Load(); s == "" {
			w.WriteHeader(http.StatusInternalServerError)
		} else {
			_, _ = io.WriteString(w, s)
		}
	}))
	t.Cleanup(pdp.Close)
	load := func(options string) {
		t.Helper()
		h.Load(h.Caddyfile(app(pdp.URL+"/access/v1/evaluation", "bearer_token {file."+token+"}\n"+options), hubtest.Layer4, hubtest.Site))
	}
	load("timeout 20s")
	h.Agent(nil)

	first := h.Dial()
	hubtest.RoundTrip(t, first, "hello")
	hubtest.RoundTrip(t, h.Dial(), "and again, by what the hub remembers")
	if n := calls.Load(); n != 1 {
		t.Errorf("the PDP was asked %d times", n)
	}
	rises(t, h, allowed, 0, 2)
	if _, config := h.AdminDo("GET", "/config/", "", ""); strings.Contains(config, "the-token-of-this") || !strings.Contains(config, "pdp.token}") {
		t.Errorf("the configuration shows: %s", config)
	}

	// 200 clients that wait hold one call.
	load("timeout 20s\ncache_ttl 10m")
	hubtest.Eventually(t, "the live sessions are judged again", func() bool { return calls.Load() == 2 })
	hubtest.RoundTrip(t, first, "still here")
	load("timeout 20s\ncache_ttl off")
	hubtest.Eventually(t, "and again", func() bool { return calls.Load() >= 3 && h.Metric(allowed) == 6 })
	before := calls.Load()
	hold.Store(true)
	var wg sync.WaitGroup
	var through atomic.Int32
	for range 200 {
		c := h.Dial()
		wg.Go(func() {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
			if n, _ := c.Read(make([]byte, 1)); n == 1 {
				through.Add(1)
			}
			_ = c.Close()
		})
	}
	hubtest.Eventually(t, "all wait", func() bool { return h.Metric(`nowconnect_tcp_active_connections{connector="echo"}`) >= 200 })
	during := calls.Load() - before
	hold.Store(false)
	close(gate)
	wg.Wait()
	if through.Load() != 200 || during != 1 {
		t.Errorf("%d of 200 came through, with %d calls while they waited", through.Load(), during)
	}

	// Denied clients are refused, and so are live sessions when judged anew.
	say(`{"decision":false,"context":{"reason":"not you"}}`)
	n := h.Metric(denied)
	h.Refused()
	hubtest.Eventually(t, "the denial is counted", func() bool { return h.Metric(denied) == n+1 })
	load("timeout 20s")
	if _, err := first.Read(make([]byte, 1)); !testpeer.IsReset(err) {
		t.Errorf("the live session of a client who is denied now: %v", err)
	}
	// The others too: their end must not meet what the PDP does next.
	hubtest.Eventually(t, "every live session is cut", func() bool { return h.Metric(`nowconnect_tcp_active_connections{connector="echo"}`) == 0 })
	hubtest.Eventually(t, "the reason is in the log", func() bool { return strings.Contains(h.Logged(), "not you") })

	// A PDP that fails, hangs or is gone is an error, counted as such.
	say("")
	load("timeout 300ms")
	e, l := h.Metric(failures), h.Metric(listener)
	h.Refused()
	rises(t, h, failures, e, 1)
	rises(t, h, listener, l, 1)

	gate = make(chan struct{})
	hold.Store(true)
	if took := h.Refused(); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("refused after %s", took)
	}
	rises(t, h, failures, e, 2)
	rises(t, h, listener, l, 2)
	hold.Store(false)

	pdp.CloseClientConnections()
	pdp.Close()
	h.Refused()
	rises(t, h, failures, e, 3)
	rises(t, h, listener, l, 3)
	if strings.Contains(h.Logged(), "the-token-of-this") {
		t.Error("the log has the token")
	}

	load("on_error allow")
	hubtest.RoundTrip(t, h.Dial(), "in spite of it")
	if !strings.Contains(h.Logged(), "INSECURE: on_error allow") {
		t.Error("nobody was warned")
	}
	if n := h.Metric(`nowconnect_insecure{module="nowconnect.pdp.authzen",option="on_error allow"}`); n != 1 {
		t.Errorf("nowconnect_insecure is %v", n)
	}
}
