package nowconnect_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// from connects a client that has the given address. On Linux all of 127/8 is
// this machine.
func from(h *hubtest.Hub, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", h.LDAP)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

func needsLoopbackNet(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.9.9:0")
	if err != nil {
		t.Skip("this system has no other loopback address than 127.0.0.1")
	}
	_ = ln.Close()
}

func withPDP(h *hubtest.Hub, pdp, globals string) string {
	return h.Caddyfile(strings.Replace(hubtest.Basic, "pdp allow_all", pdp, 1), hubtest.Layer4+"\n"+globals, hubtest.Site)
}

const (
	active  = `nowconnect_tcp_active_connections{connector="echo"}`
	cut     = `nowconnect_sessions_closed_total{connector="echo",reason="denied"}`
	pdpErr  = `nowconnect_pdp_decisions_total{connector="echo",result="error"}`
	pdpFail = `nowconnect_listener_errors_total{connector="echo",type="pdp"}`
)

// A thousand sessions live. Two changes of policy, one of the rules file and one
// of the configuration, end those that they deny and no other.
func TestPolicyReloadUnderThousandSessions(t *testing.T) {
	needsLoopbackNet(t)
	h := hubtest.New(t)
	all := "allow all {\n\tsource 127.0.0.0/8\n}\n"
	path := h.Write("rules", all)
	policy := "pdp rules {\nfile " + path + "\npoll_interval 20ms\n%s}"
	h.Load(withPDP(h, fmt.Sprintf(policy, ""), ""))
	h.Agent(nil)
	const n = 1000
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := from(h, fmt.Sprintf("127.0.%d.%d", 1+i/250, 1+i%250))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
		hubtest.RoundTrip(t, c, "hello")
	}
	// alive checks that sessions go on from the given index, and those before
	// it, as far as they did until now, have ended.
	ended := 0
	alive := func(first int) {
		t.Helper()
		hubtest.Eventually(t, "the denied sessions end", func() bool { return h.Metric(active) <= float64(n-first) })
		for i, c := range conns {
			if i >= first {
				hubtest.RoundTrip(t, c, "still here")
			} else if i < ended {
				continue
			} else if _, err := c.Read(make([]byte, 1)); !testpeer.IsReset(err) {
				t.Errorf("session %d, which is denied: %v", i, err)
			}
		}
		ended = first
		if a, d := h.Metric(active), h.Metric(cut); a != float64(n-first) || d != float64(first) {
			t.Errorf("%v live, %v cut", a, d)
		}
	}
	if err := os.WriteFile(path+".new", []byte(all+"deny file {\n\tsource 127.0.1.0/24\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	alive(250)
	h.Load(withPDP(h, fmt.Sprintf(policy, "deny config {\n\tsource 127.0.2.0/24\n}\n"), ""))
	alive(500)
	for _, rule := range []string{"file", "config"} {
		if k := strings.Count(h.Logged(), `"phase":"reeval","cid"`); k < n {
			t.Errorf("%d lines about sessions that were judged again", k)
		}
		if k := strings.Count(h.Logged(), `"close_reason":"denied","message":"`+rule+`"`); k != 250 {
			t.Errorf("%d sessions ended by rule %s", k, rule)
		}
	}
}

// Local rules come first: what they deny the PDP never hears of.
func TestPDPsAreAskedInOrder(t *testing.T) {
	needsLoopbackNet(t)
	h := hubtest.New(t)
	var asked sync.Map
	var allow atomic.Bool
	allow.Store(true)
	pdp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Subject, Resource struct {
				ID         string
				Properties map[string]any
			}
			Context map[string]any
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		asked.Store(q.Subject.ID, q)
		if q.Resource.Properties["agent"] != "premise-1" || q.Context["agent"] != "premise-1" || q.Subject.Properties["source_ip"] != q.Subject.ID {
			t.Errorf("asked about %+v", q)
		}
		_ = json.NewEncoder(w).Encode(map[string]bool{"decision": allow.Load()})
	}))
	t.Cleanup(pdp.Close)
	h.Load(withPDP(h, "pdp rules {\nallow some {\n\tsource 127.0.1.0/24\n}\n}\npdp authzen "+pdp.URL+" {\ncache_ttl off\ndeny_ttl off\n}", ""))
	h.Agent(nil)
	try := func(addr string) error {
		c, err := from(h, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	}
	if err := try("127.0.1.1"); err != nil {
		t.Errorf("both allow: %v", err)
	}
	if err := try("127.0.2.1"); !testpeer.IsReset(err) {
		t.Errorf("the rules deny: %v", err)
	}
	allow.Store(false)
	if err := try("127.0.1.2"); !testpeer.IsReset(err) {
		t.Errorf("the PDP denies: %v", err)
	}
	for addr, want := range map[string]bool{"127.0.1.1": true, "127.0.2.1": false, "127.0.1.2": true} {
		if _, ok := asked.Load(addr); ok != want {
			t.Errorf("the PDP was asked about %s: %t", addr, ok)
		}
	}
	for _, want := range []string{`"outcome":"deny","decision_id"`, `"engine":"rules"`, `"engine":"authzen"`} {
		hubtest.Eventually(t, want, func() bool { return strings.Contains(h.Logged(), want) })
	}
}

// A PDP that hangs, asked about 200 clients at once: it has no more calls at a
// time than it is allowed, all clients are refused in time, and both counters
// tell of each.
func TestPDPDownFailsClosed(t *testing.T) {
	needsLoopbackNet(t)
	h := hubtest.New(t)
	var calls, now, most atomic.Int32
	pdp := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(pdp.Close)
	h.Load(withPDP(h, "pdp authzen "+pdp.URL+" {\ntimeout 1s\nmax_calls 16\n}", ""))
	h.Agent(nil)
	crowd := func(addr func(i int) string) {
		t.Helper()
		const n = 200
		errors, listener := h.Metric(pdpErr), h.Metric(pdpFail)
		calls.Store(0)
		most.Store(0)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				started := time.Now()
				c, err := from(h, addr(i))
				if err == nil {
					defer c.Close()
					if _, err = io.WriteString(c, "hello"); err == nil { // a reset is told once
						_, err = c.Read(make([]byte, 1))
					}
				}
				if took := time.Since(started); !testpeer.IsReset(err) || took > 20*time.Second {
					t.Errorf("%v after %s; want a reset", err, took)
				}
			})
		}
		wg.Wait()
		for series, before := range map[string]float64{pdpErr: errors, pdpFail: listener} {
			hubtest.Eventually(t, series+" rises by one for each", func() bool { return h.Metric(series) == before+n })
		}
	}
	// Of one client there is one question.
	crowd(func(int) string { return "127.0.1.1" })
	if c := calls.Load(); c < 1 || c > 5 { // until the breaker opens
		t.Errorf("%d calls about one client", c)
	}
	hubtest.Eventually(t, "the calls are over", func() bool { return now.Load() == 0 })
	crowd(func(i int) string { return fmt.Sprintf("127.0.2.%d", 1+i) })
	// The server may learn that a call was given up after the next has begun.
	if m := most.Load(); m > 2*16 {
		t.Errorf("%d calls at once, with max_calls 16", m)
	}
	if h.Metric(active) != 0 {
		t.Error("somebody is in")
	}
}

// The audit goes to a file of its own by what Caddy can do for any log.
func TestAuditHasItsOwnSink(t *testing.T) {
	h := hubtest.New(t)
	h.Write("rules", "allow loop {\n\tsource 127.0.0.1\n}\n")
	path := h.Dir + "/audit.log"
	h.Load(withPDP(h, h.Expand("pdp rules {\nfile $DIR/rules\n}\naudit {\nsample_allows 1\n}"),
		"log audit {\noutput file "+path+" {\nroll_disabled\n}\nformat json\ninclude nowconnect.audit\n}"))
	h.Agent(nil)
	c := session(t, h)
	_ = c.Close()
	var lines []map[string]any
	hubtest.Eventually(t, "both lines are in the file", func() bool {
		b, _ := os.ReadFile(path)
		lines = nil
		for line := range strings.Lines(string(b)) {
			lines = append(lines, hubtest.JSON[map[string]any](t, line))
		}
		return len(lines) >= 2
	})
	if len(lines) != 2 {
		t.Fatalf("%d lines: %v", len(lines), lines)
	}
	for i, want := range []map[string]any{
		{"msg": "decision", "phase": "accept", "outcome": "allow", "reason": "loop", "engine": "rules", "cached": false, "agent": "premise-1", "resource": "echo"},
		{"msg": "session ended", "close_reason": "fin", "bytes_c2a": 5.0, "bytes_a2c": 5.0, "agent": "premise-1", "reason": "loop"},
	} {
		for k, v := range want {
			if lines[i][k] != v {
				t.Errorf("line %d: %s is %v, want %v", i, k, lines[i][k], v)
			}
		}
		if lines[i]["logger"] != "nowconnect.audit" || lines[i]["ts"] == nil || lines[i]["policy"] == nil || lines[i]["decision_id"] == nil {
			t.Errorf("line %d: %v", i, lines[i])
		}
	}
	if lines[0]["cid"] != lines[1]["cid"] || lines[0]["decision_id"] != lines[1]["decision_id"] {
		t.Errorf("the two lines are about different things: %v", lines)
	}
	if _, ok := lines[0]["latency"].(float64); !ok {
		t.Errorf("latency is %v", lines[0]["latency"])
	}
}
