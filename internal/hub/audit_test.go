package hub

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// audited makes the hub write its audit where a test can read it.
func (w *world) audited(allows float64) *observer.ObservedLogs {
	core, logs := observer.New(zapcore.DebugLevel)
	w.h.SetAudit(zap.New(core), allows)
	return logs
}

// line waits for the only line of that message whose fields are as wanted.
func line(t *testing.T, logs *observer.ObservedLogs, message string, want map[string]any) map[string]any {
	t.Helper()
	var found []map[string]any
	match := func() bool {
		found = nil
	lines:
		for _, e := range logs.FilterMessage(message).All() {
			m := e.ContextMap()
			for k, v := range want {
				if m[k] != v {
					continue lines
				}
			}
			found = append(found, m)
		}
		return len(found) > 0
	}
	eventually(t, message, match)
	if len(found) != 1 {
		t.Fatalf("%d lines %q with %v", len(found), message, want)
	}
	return found[0]
}

func wantFields(t *testing.T, m map[string]any, want map[string]any) {
	t.Helper()
	for k, v := range want {
		if m[k] != v {
			t.Errorf("%s is %v, want %v", k, m[k], v)
		}
	}
}

func TestAuditTellsAllPhases(t *testing.T) {
	d := says(authz.Decision{Outcome: authz.Allow, Reason: "rule-1", Policy: "v1", Engine: "rules", MaxBytes: 1 << 30, MaxDuration: time.Hour})
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	logs := w.audited(1)
	w.agent(login{id: "a1"})
	cl := w.dial()
	cid := w.h.Sessions("")[0].Session
	m := line(t, logs, "decision", map[string]any{"phase": "accept"})
	wantFields(t, m, map[string]any{
		"cid": cid, "connector": "dir", "client": "10.0.0.1:1001", "listener": "127.0.0.1:389", "subject_type": "ip", "subject": "10.0.0.1",
		"action": "connect", "resource_type": "connector", "resource": "dir", "agent": "a1", "outcome": "allow", "decision_id": cid + ".1",
		"engine": "rules", "policy": "v1", "reason": "rule-1", "cached": false, "max_bytes": int64(1 << 30), "max_duration": time.Hour,
	})
	if m["latency"].(time.Duration) <= 0 || m["lease"] != nil || m["error"] != nil {
		t.Errorf("%v", m)
	}

	d.say(authz.Decision{Outcome: authz.Allow, Reason: "rule-2", ID: "pdp-77", Lease: time.Hour, Cached: true})
	w.h.PolicyChanged(cfg, "dir")
	wantFields(t, line(t, logs, "decision", map[string]any{"phase": "reeval"}),
		map[string]any{"cid": cid, "agent": "a1", "decision_id": "pdp-77", "reason": "rule-2", "cached": true, "lease": time.Hour})

	w.h.Revoke(Match{Session: cid}, "ticket 7")
	wantFields(t, line(t, logs, "decision", map[string]any{"phase": "revoke"}),
		map[string]any{"cid": cid, "agent": "a1", "outcome": "deny", "engine": "operator", "reason": "revoked by an operator (cid " + cid + "): ticket 7"})

	cl.want(wire.ReasonRevoked)
	m = line(t, logs, "session ended", nil)
	wantFields(t, m, map[string]any{
		"cid": cid, "connector": "dir", "subject": "10.0.0.1", "agent": "a1", "close_reason": "revoked", "bytes_c2a": int64(4), "bytes_a2c": int64(4),
		"outcome": "allow", "decision_id": "pdp-77", "reason": "rule-2",
	})
	if m["duration"].(time.Duration) <= 0 {
		t.Errorf("%v", m)
	}
	if logs.Len() != 4 {
		t.Errorf("%d lines", logs.Len())
	}
}

// Denials and errors are written whatever is sampled, and however many there
// are; only the line about the refused connection is held back.
func TestAuditHoldsBackNoDenial(t *testing.T) {
	narrow := dir("a1")
	narrow.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for name, c := range map[string]struct {
		k    *Connector
		want map[string]any
	}{
		"denied":      {with(dir("a1"), denyAll()), map[string]any{"outcome": "deny", "reason": "test"}},
		"error":       {with(dir("a1"), says(authz.Fail(authz.KindTimeout, errors.New("late")))), map[string]any{"outcome": "error", "error": "late", "error_kind": "timeout"}},
		"allow_cidrs": {narrow, map[string]any{"outcome": "deny", "engine": "allow_cidrs", "reason": "source address is not in allow_cidrs"}},
		"fail open":   {with(dir("a1"), says(authz.Decision{Outcome: authz.Allow, Reason: "on_error allow", Err: errors.New("late")})), map[string]any{"outcome": "allow", "error": "late"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(c.k))
			logs := w.audited(0)
			const n = 100
			for range n {
				recv(t, w.client("dir", "10.0.0.1:1").out)
			}
			lines := logs.FilterMessage("decision").All()
			if len(lines) != n {
				t.Fatalf("%d lines about %d decisions", len(lines), n)
			}
			m := lines[n-1].ContextMap()
			wantFields(t, m, c.want)
			if m["phase"] != "accept" || m["decision_id"] == nil || lines[0].Level != zapcore.WarnLevel {
				t.Errorf("%v", m)
			}
			if refused := logs.FilterMessage("connection refused").Len(); refused < 10 || refused == n {
				t.Errorf("%d lines about refused connections", refused)
			}
		})
	}
}

// allow_cidrs denies live sessions too.
func TestAuditTellsOfCIDRsThatChange(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	logs := w.audited(0)
	w.agent(login{id: "a1"})
	cl := w.dial()
	narrow := dir("a1")
	narrow.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	w.h.Apply(config(narrow))
	cl.want(wire.ReasonDenied)
	wantFields(t, line(t, logs, "decision", nil), map[string]any{"phase": "reeval", "outcome": "deny", "engine": "allow_cidrs", "agent": "a1"})
	line(t, logs, "session ended", map[string]any{"close_reason": "denied"})
}

func TestAuditSamplesAllows(t *testing.T) {
	d := says(allow())
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	const n = 400
	for _, part := range []float64{0, 0.25, 1} {
		logs := w.audited(part)
		for range n {
			w.dial().leave()
		}
		if ends := logs.FilterMessage("session ended").Len(); ends != n {
			t.Errorf("%v: %d ends", part, ends)
		}
		// Five standard deviations.
		got, want := float64(logs.FilterMessage("decision").Len()), part*n
		if math.Abs(got-want) > 5*math.Sqrt(n*part*(1-part)) {
			t.Errorf("%v: %v allows of %d", part, got, n)
		}
	}
	// A session is in the sample or not, with all that is decided about it.
	logs := w.audited(0.5)
	cl := w.dial()
	for i := range 5 {
		w.h.PolicyChanged(cfg, "dir")
		eventually(t, "it is judged", func() bool { return int(d.asked.Load()) == 3*n+2+i })
	}
	cl.leave()
	if k := logs.FilterMessage("decision").Len(); k != 0 && k != 6 {
		t.Errorf("%d of its 6 allows", k)
	}
}

// What others wrote is bounded, and stays text.
func TestAuditBoundsWords(t *testing.T) {
	long := strings.Repeat("ä", 10_000)
	w := newWorld(t, config(with(dir("a1"), says(authz.Decision{Outcome: authz.Deny, Reason: long, Policy: long, ID: long, Engine: long, Err: errors.New(long)}))))
	logs := w.audited(1)
	_, conn := tcpPair(t)
	w.h.ServeClient(context.Background(), &Client{Connector: "dir", Conn: conn, Addr: netip.MustParseAddrPort("10.0.0.1:1"),
		SNI: long, Subject: &authz.Entity{Type: "certificate", ID: long}})
	if logs.Len() != 2 {
		t.Fatalf("%d lines", logs.Len())
	}
	for _, e := range logs.All() {
		for k, v := range e.ContextMap() {
			if s, ok := v.(string); ok && (len(s) > maxWords+3 || !utf8.ValidString(s)) {
				t.Errorf("%s has %d bytes", k, len(s))
			}
		}
	}
	for _, s := range []string{"", "short", strings.Repeat("x", maxWords), strings.Repeat("\xff", maxWords+1), strings.Repeat("\x80", maxWords+9)} {
		if got := truncate(s); len(s) <= maxWords && got != s || !utf8.ValidString(got) && utf8.ValidString(s) || len(got) > 3*maxWords+3 {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}

func TestUnknownConnectorIsAudited(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	logs := w.audited(1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.clientCtx(ctx, "nosuch", "10.0.0.1:1").want(wire.ReasonNoAgent)
	wantFields(t, line(t, logs, "connection refused", nil), map[string]any{"connector": "nosuch", "close_reason": "no_agent"})
}
