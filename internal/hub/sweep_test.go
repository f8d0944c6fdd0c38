package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/rules"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

const sweepSessions = 10_000

// crowd opens n sessions of as many clients through a real link, with pipes in
// place of sockets at both ends, so that no limit of the machine is in the way.
// It returns when all are open.
func (w *world) crowd(n int) chan Outcome {
	w.t.Helper()
	w.agent(login{id: "a1", serve: func(s *tunnel.Session) {
		a, b := net.Pipe()
		w.wg.Go(func() { // the service: says nothing, and leaves when the session does
			_, _ = b.Read(make([]byte, 1))
			_ = b.Close()
		})
		s.Accept(tunnel.Endpoint{Conn: a}, tunnel.SessionConfig{})
	}})
	out := make(chan Outcome, n)
	for i := range n {
		_, conn := net.Pipe()
		cl := &Client{Connector: "dir", Conn: conn, Listener: "127.0.0.1:389",
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1000)}
		w.wg.Go(func() { out <- w.h.ServeClient(context.Background(), cl) })
		if i%100 == 99 { // as the link can take them
			w.placed(i + 1)
		}
	}
	w.placed(n)
	return out
}

func (w *world) placed(n int) {
	w.t.Helper()
	eventually(w.t, "all sessions are open", func() bool { return w.metric("nowconnect_open_seconds", "connector", "dir") == float64(n) })
}

// counted counts the answers that a Decider has given.
type counted struct {
	authz.BatchDecider
	answers atomic.Int64
}

func (c *counted) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	defer c.answers.Add(1)
	return c.BatchDecider.Decide(ctx, r)
}

func (c *counted) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	defer c.answers.Add(int64(len(rs)))
	return c.BatchDecider.DecideBatch(ctx, rs)
}

// await waits until so many were given.
func (c *counted) await(tb testing.TB, n int64) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); c.answers.Load() < n; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("%d answers of %d", c.answers.Load(), n)
		}
	}
}

// ruleBook is a policy as an operator would write it.
func ruleBook(tb testing.TB, more ...rules.Rule) authz.BatchDecider {
	tb.Helper()
	book := []rules.Rule{
		{ID: "blocked", Effect: rules.EffectDeny, Sources: []string{"10.1.255.0/24", "192.0.2.0/24"}},
		{ID: "web", Effect: rules.EffectAllow, Connectors: []string{"web"}, Sources: []string{"10.0.0.0/8"}},
		{ID: "office", Effect: rules.EffectAllow, Sources: []string{"10.0.0.0/8"}, Agents: []string{"a1", "a2"},
			Times: []rules.Time{{Hours: []string{"00:00-24:00"}}}},
	}
	set, err := rules.Compile(nil, rules.Source{Rules: append(more, book...)})
	if err != nil {
		tb.Fatal(err)
	}
	return ruleSet{set}
}

type ruleSet struct{ *rules.Set }

func (s ruleSet) Decide(_ context.Context, r *authz.Request) authz.Decision { return s.Set.Decide(r) }

func (s ruleSet) DecideBatch(_ context.Context, rs []*authz.Request) []authz.Decision {
	out := make([]authz.Decision, len(rs))
	for i, r := range rs {
		out[i] = s.Set.Decide(r)
	}
	return out
}

// remote is a PDP behind HTTP that takes lists, and its client. Each call takes
// as long as a round trip to another site would.
type remote struct{ url string }

const remoteRTT = 20 * time.Millisecond

func newRemote(b *testing.B) remote {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var questions []authz.Request
		if err := json.NewDecoder(r.Body).Decode(&questions); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		time.Sleep(remoteRTT)
		answers := make([]bool, len(questions))
		for i, q := range questions {
			answers[i] = q.Subject.ID != ""
		}
		_ = json.NewEncoder(w).Encode(answers)
	}))
	b.Cleanup(s.Close)
	return remote{s.URL}
}

func (p remote) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	return p.DecideBatch(ctx, []*authz.Request{r})[0]
}

func (p remote) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	out := make([]authz.Decision, len(rs))
	body, err := json.Marshal(rs)
	if err != nil {
		return out
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return out
	}
	defer resp.Body.Close()
	var answers []bool
	if json.NewDecoder(resp.Body).Decode(&answers) == nil && len(answers) == len(rs) {
		for i, ok := range answers {
			if ok {
				out[i].Outcome = authz.Allow
			}
		}
	}
	return out
}

// oneByOne hides that an engine takes lists.
func oneByOne(d authz.Decider) authz.Decider {
	return authz.DeciderFunc(d.Decide)
}

// BenchmarkSweep judges 10 000 live sessions again after a change of policy.
func BenchmarkSweep(b *testing.B) {
	flushed := authz.GuardConfig{Timeout: 10 * time.Second} // no cache: the policy has changed
	for name, policy := range map[string]func() authz.BatchDecider{
		"rules":        func() authz.BatchDecider { return ruleBook(b) },
		"remote":       func() authz.BatchDecider { return authz.NewGuard(oneByOne(newRemote(b)), flushed) },
		"remote-batch": func() authz.BatchDecider { return authz.NewGuard(newRemote(b), flushed) },
	} {
		b.Run(name, func(b *testing.B) {
			live := &counted{BatchDecider: ruleBook(b)}
			w := newWorld(b, crowded(live))
			out := w.crowd(sweepSessions)
			d := &counted{BatchDecider: policy()}
			b.ResetTimer()
			for i := range b.N {
				w.h.Apply(crowded(d))
				d.await(b, int64(i+1)*sweepSessions)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/sweepSessions, "µs/session")
			http.DefaultClient.CloseIdleConnections()
			if len(out) > 0 {
				b.Fatalf("%d sessions have ended: %+v", len(out), <-out)
			}
		})
	}
}

// BenchmarkSweepEnds takes the permits of 10 000 live sessions back.
func BenchmarkSweepEnds(b *testing.B) {
	for range b.N {
		b.StopTimer()
		w := newWorld(b, crowded(ruleBook(b)))
		out := w.crowd(sweepSessions)
		b.StartTimer()
		w.h.Apply(crowded(ruleBook(b, rules.Rule{ID: "lockdown", Effect: rules.EffectDeny})))
		for range sweepSessions {
			if o := <-out; o.Reason != wire.ReasonDenied {
				b.Fatalf("%+v", o)
			}
		}
		b.StopTimer()
		w.h.Close()
		b.StartTimer()
	}
}

// crowded is a configuration with room for 10 000 sessions.
func crowded(d authz.Decider) *Config {
	c := config(with(dir("a1"), d))
	c.MaxSessions, c.AgentMemory = 2*sweepSessions, 64<<30
	return c
}

// BenchmarkLeases renews 10 000 leases of a minute, as often as they run out.
func BenchmarkLeases(b *testing.B) {
	d := &counted{BatchDecider: leasing{ruleBook(b)}}
	w := newWorld(b, crowded(d))
	w.crowd(sweepSessions)
	b.ResetTimer()
	for range b.N {
		w.h.mu.Lock()
		for len(w.h.leases.heap) < sweepSessions {
			// An answer of the round before is counted before its lease is back; one
			// that is missed here would be waited for as long as a lease lasts.
			w.h.mu.Unlock()
			time.Sleep(50 * time.Microsecond)
			w.h.mu.Lock()
		}
		for _, s := range w.h.leases.heap {
			s.permit.due = 1 // all at once, which jitter prevents
		}
		before := d.answers.Load()
		w.h.mu.Unlock()
		go w.h.wake()
		d.await(b, before+sweepSessions)
	}
}

type leasing struct{ authz.BatchDecider }

func (l leasing) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	out := l.BatchDecider.DecideBatch(ctx, rs)
	for i := range out {
		out[i].Lease = time.Minute
	}
	return out
}

func (l leasing) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	return l.DecideBatch(ctx, []*authz.Request{r})[0]
}
