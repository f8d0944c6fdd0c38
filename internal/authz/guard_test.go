package authz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// connect is what the hub asks about a client.
func connect(ip string, port int) *Request {
	return &Request{
		Subject:  Entity{Type: "ip", ID: ip, Properties: map[string]any{"groups": []string{"a", "b"}, "nested": map[string]any{"x": 1, "y": nil}}},
		Action:   Action{Name: ActionConnect},
		Resource: Entity{Type: "connector", ID: "addomain"},
		Context: map[string]any{
			"time": time.Now().Format(time.RFC3339Nano), "cid": fmt.Sprint("s", port), "source_ip": ip, "source_port": port,
			"listener": "0.0.0.0:389", "hub": "hub-1", "sni": "ldap.example.com",
		},
	}
}

// engine is a Decider whose answer and duration a test sets.
type engine struct {
	mu     sync.Mutex
	answer func(ctx context.Context, r *Request) Decision
	calls  atomic.Int32
	now    atomic.Int32
	most   atomic.Int32
}

func (e *engine) Decide(ctx context.Context, r *Request) Decision {
	e.calls.Add(1)
	n := e.now.Add(1)
	defer e.now.Add(-1)
	for m := e.most.Load(); n > m && !e.most.CompareAndSwap(m, n); m = e.most.Load() {
	}
	e.mu.Lock()
	f := e.answer
	e.mu.Unlock()
	return f(ctx, r)
}

func (e *engine) set(f func(ctx context.Context, r *Request) Decision) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

// says makes an engine that always gives the same answer.
func says(d Decision) *engine {
	return &engine{answer: func(context.Context, *Request) Decision { return d }}
}

// takes makes an engine that allows after a while, unless its context ends.
func takes(d time.Duration) *engine {
	return &engine{answer: func(ctx context.Context, _ *Request) Decision {
		select {
		case <-time.After(d):
			return Decision{Outcome: Allow, Reason: "slow"}
		case <-ctx.Done():
			return Fail(KindTransport, ctx.Err())
		}
	}}
}

func (e *engine) want(t *testing.T, calls int32) {
	t.Helper()
	if got := e.calls.Load(); got != calls {
		t.Errorf("%d calls, want %d", got, calls)
	}
}

func expect(t *testing.T, d Decision, o Outcome, cached bool) {
	t.Helper()
	if d.Outcome != o || d.Cached != cached {
		t.Errorf("%s, cached %t, %q, %v; want %s, cached %t", d.Outcome, d.Cached, d.Reason, d.Err, o, cached)
	}
}

func TestAnswersAreCachedForTheirTime(t *testing.T) {
	for _, c := range []struct {
		answer Decision
		ttl    time.Duration
	}{
		{Decision{Outcome: Allow, Reason: "rule-1", Policy: "v1"}, 5 * time.Second},
		{Decision{Outcome: Deny, Reason: "rule-2"}, 2 * time.Second},
		{Decision{Outcome: Allow, Lease: 3 * time.Second}, 3 * time.Second},
		{Decision{Outcome: Allow, Lease: time.Hour}, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := says(c.answer)
			g := NewGuard(e, GuardConfig{AllowTTL: 5 * time.Second, DenyTTL: 2 * time.Second})
			expect(t, g.Decide(t.Context(), connect("192.0.2.1", 1)), c.answer.Outcome, false)
			time.Sleep(c.ttl - time.Nanosecond)
			d := g.Decide(t.Context(), connect("192.0.2.1", 2))
			expect(t, d, c.answer.Outcome, true)
			if d.Reason != c.answer.Reason || d.Policy != c.answer.Policy {
				t.Errorf("cached %+v", d)
			}
			if c.answer.Lease > 0 && d.Lease != c.answer.Lease-c.ttl+time.Nanosecond {
				t.Errorf("lease %s left of %s", d.Lease, c.answer.Lease)
			}
			e.want(t, 1)
			time.Sleep(time.Nanosecond)
			expect(t, g.Decide(t.Context(), connect("192.0.2.1", 3)), c.answer.Outcome, false)
			e.want(t, 2)
		})
	}
}

func TestNothingIsCachedWithoutTTL(t *testing.T) {
	for _, o := range []Outcome{Allow, Deny} {
		e := says(Decision{Outcome: o})
		g := NewGuard(e, GuardConfig{})
		for range 3 {
			expect(t, g.Decide(t.Context(), connect("192.0.2.1", 1)), o, false)
		}
		e.want(t, 3)
	}
}

func TestErrorsAreNeverCached(t *testing.T) {
	for name, d := range map[string]Decision{
		"zero":                 {},
		"error":                Fail(KindUnavailable, errors.New("503")),
		"allowed by its error": {Outcome: Allow, Err: errors.New("on_error allow")},
		"unknown outcome":      {Outcome: 77},
	} {
		e := says(d)
		g := NewGuard(e, GuardConfig{AllowTTL: time.Hour, DenyTTL: time.Hour})
		for range 3 {
			if d := g.Decide(t.Context(), connect("192.0.2.1", 1)); d.Cached {
				t.Errorf("%s: cached", name)
			}
		}
		e.want(t, 3)
	}
}

// One question differs from another in anything but the volatile fields.
func TestKey(t *testing.T) {
	key := func(r *Request) string {
		k := new(keyBuffer)
		if !k.encode(r) {
			t.Fatalf("no canonical form of %+v", r)
		}
		return string(k.bytes)
	}
	base := key(connect("192.0.2.1", 1))
	if key(connect("192.0.2.1", 65000)) != base {
		t.Error("the source port is in the key")
	}
	seen := map[string]string{base: "base"}
	for name, change := range map[string]func(*Request){
		"subject type":     func(r *Request) { r.Subject.Type = "client" },
		"subject id":       func(r *Request) { r.Subject.ID = "192.0.2.2" },
		"subject property": func(r *Request) { r.Subject.Properties["groups"] = []string{"a", "c"} },
		"joined list":      func(r *Request) { r.Subject.Properties["groups"] = []string{"ab"} },
		"any list":         func(r *Request) { r.Subject.Properties["groups"] = []any{"a", "b"} },
		"nested":           func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": 2, "y": nil} },
		"nil to false":     func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": 1, "y": false} },
		"nil to true":      func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": 1, "y": true} },
		"number to text":   func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": "1", "y": nil} },
		"number to float":  func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": 1.0, "y": nil} },
		"number unsigned":  func(r *Request) { r.Subject.Properties["nested"] = map[string]any{"x": uint64(1), "y": nil} },
		"property moved":   func(r *Request) { r.Resource.Properties, r.Subject.Properties = r.Subject.Properties, nil },
		"to the action":    func(r *Request) { r.Action.Properties, r.Subject.Properties = r.Subject.Properties, nil },
		"volatile below":   func(r *Request) { r.Subject.Properties["time"] = "now" },
		"action":           func(r *Request) { r.Action.Name = "read" },
		"resource":         func(r *Request) { r.Resource.ID = "addomain2" },
		"resource type":    func(r *Request) { r.Resource.Type = "service" },
		"listener":         func(r *Request) { r.Context["listener"] = "0.0.0.0:636" },
		"sni":              func(r *Request) { r.Context["sni"] = "" },
		"no sni":           func(r *Request) { delete(r.Context, "sni") },
		"more":             func(r *Request) { r.Context["more"] = int64(1) },
		"agent":            func(r *Request) { r.Context["agent"] = "premise-1" },
	} {
		r := connect("192.0.2.1", 1)
		r.Context = maps.Clone(r.Context)
		change(r)
		k := key(r)
		if other, same := seen[k]; same {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[k] = name
	}
}

func TestWhatHasNoKeyIsAskedEachTime(t *testing.T) {
	for name, v := range map[string]any{
		"unknown type": struct{ X int }{1},
		"in a list":    []any{"a", time.Second},
		"in a map":     map[string]any{"x": []byte("b")},
		"too long":     strings.Repeat("x", maxKey),
	} {
		e := says(Decision{Outcome: Allow})
		g := NewGuard(e, GuardConfig{AllowTTL: time.Hour})
		for range 2 {
			r := connect("192.0.2.1", 1)
			r.Context["odd"] = v
			if d := g.Decide(t.Context(), r); d.Outcome != Allow || d.Cached {
				t.Errorf("%s: %+v", name, d)
			}
		}
		e.want(t, 2)
	}
}

func TestCacheIsBounded(t *testing.T) {
	e := says(Decision{Outcome: Allow})
	g := NewGuard(e, GuardConfig{AllowTTL: time.Hour, CacheSize: 3})
	ask := func(ip string, cached bool) {
		t.Helper()
		expect(t, g.Decide(t.Context(), connect(ip, 1)), Allow, cached)
	}
	ask("192.0.2.1", false)
	ask("192.0.2.2", false)
	ask("192.0.2.3", false)
	ask("192.0.2.1", true)
	ask("192.0.2.4", false) // 2 was used longest ago
	ask("192.0.2.1", true)
	ask("192.0.2.3", true)
	ask("192.0.2.4", true)
	ask("192.0.2.2", false)
	for i := range 1000 {
		ask(fmt.Sprint("198.51.100.", i), false)
	}
	if n := len(g.cache.entries); n != 3 {
		t.Errorf("%d entries", n)
	}
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := takes(100 * time.Millisecond)
		g := NewGuard(e, GuardConfig{AllowTTL: time.Hour})
		go g.Decide(t.Context(), connect("192.0.2.1", 1))
		synctest.Wait()
		g.Flush() // while the question is on its way
		expect(t, g.Decide(t.Context(), connect("192.0.2.1", 1)), Allow, false)
		e.want(t, 2)
		synctest.Wait()
		expect(t, g.Decide(t.Context(), connect("192.0.2.1", 1)), Allow, true)
		g.Flush()
		expect(t, g.Decide(t.Context(), connect("192.0.2.1", 1)), Allow, false)
		e.want(t, 3)
	})
}

func TestManyWhoWaitShareOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := takes(300 * time.Millisecond)
		g := NewGuard(e, GuardConfig{})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { expect(t, g.Decide(t.Context(), connect("192.0.2.1", i)), Allow, false) })
		}
		wg.Wait()
		e.want(t, 1)
		if len(g.flights) != 0 {
			t.Errorf("%d questions are on their way for ever", len(g.flights))
		}
	})
}

// Each waits by its own deadline, and one who leaves takes nobody along.
func TestEachWaitsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := takes(300 * time.Millisecond)
		g := NewGuard(e, GuardConfig{AllowTTL: time.Hour})
		started := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			d := g.Decide(ctx, connect("192.0.2.1", 1))
			if KindOf(d) != KindTimeout || !errors.Is(d.Err, context.DeadlineExceeded) || time.Since(started) != 50*time.Millisecond {
				t.Errorf("%+v after %s", d, time.Since(started))
			}
		})
		wg.Go(func() {
			time.Sleep(100 * time.Millisecond)
			expect(t, g.Decide(t.Context(), connect("192.0.2.1", 2)), Allow, false)
			if time.Since(started) != 300*time.Millisecond {
				t.Errorf("after %s", time.Since(started))
			}
		})
		wg.Wait()
		e.want(t, 1)
	})
}

func TestDeadlineHoldsForAnEngineThatForgetsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{answer: func(context.Context, *Request) Decision {
			time.Sleep(time.Minute)
			return Decision{Outcome: Allow}
		}}
		g := NewGuard(e, GuardConfig{Timeout: 200 * time.Millisecond, AllowTTL: time.Hour})
		started := time.Now()
		d := g.Decide(t.Context(), connect("192.0.2.1", 1))
		if KindOf(d) != KindTimeout || time.Since(started) != 200*time.Millisecond {
			t.Errorf("%+v after %s", d, time.Since(started))
		}
		time.Sleep(time.Hour)
	})
}

func TestCallsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := takes(100 * time.Millisecond)
		g := NewGuard(e, GuardConfig{MaxCalls: 4, Timeout: 250 * time.Millisecond})
		var allowed, limited, late atomic.Int32
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				started := time.Now()
				switch d := g.Decide(t.Context(), connect(fmt.Sprint("192.0.2.", i), 1)); {
				case d.Outcome == Allow:
					allowed.Add(1)
				case KindOf(d) == KindLimit:
					limited.Add(1)
				case KindOf(d) == KindTimeout:
					late.Add(1)
				default:
					t.Errorf("%+v", d)
				}
				if took := time.Since(started); took > 250*time.Millisecond {
					t.Errorf("waited %s", took)
				}
			})
		}
		wg.Wait()
		// Two rounds of four are done in time; the third began too late.
		if allowed.Load() != 8 || limited.Load()+late.Load() != 12 || e.most.Load() != 4 {
			t.Errorf("%d allowed, %d limited, %d late, %d calls at once", allowed.Load(), limited.Load(), late.Load(), e.most.Load())
		}
	})
}

func TestBreakerOpensAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []bool
		down := func(context.Context, *Request) Decision { return Fail(KindUnavailable, errors.New("503")) }
		up := func(context.Context, *Request) Decision { return Decision{Outcome: Deny} }
		e := &engine{answer: down}
		g := NewGuard(e, GuardConfig{BreakerFailures: 3, BreakerPause: time.Second, BreakerChanged: func(open bool) { changes = append(changes, open) }})
		ask := func(want Kind) {
			t.Helper()
			if d := g.Decide(t.Context(), connect("192.0.2.1", 1)); KindOf(d) != want {
				t.Errorf("%s: %v; want %s", d.Outcome, d.Err, want)
			}
		}
		ask(KindUnavailable)
		ask(KindUnavailable)
		e.set(up)
		ask("") // in a row is what counts
		e.set(down)
		for range 3 {
			ask(KindUnavailable)
		}
		e.want(t, 6)
		for range 100 {
			ask(KindBreakerOpen)
		}
		e.want(t, 6)
		time.Sleep(1200 * time.Millisecond)
		ask(KindUnavailable) // the probe
		ask(KindBreakerOpen)
		e.want(t, 7)
		time.Sleep(1200 * time.Millisecond)
		e.set(up)
		ask("") // the probe
		ask("")
		e.want(t, 9)
		if fmt.Sprint(changes) != "[true false]" {
			t.Errorf("told %v", changes)
		}
		// It takes as many failures as before to open it again.
		e.set(down)
		for range 3 {
			ask(KindUnavailable)
		}
		ask(KindBreakerOpen)
	})
}

func TestBreakerSendsOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := says(Fail(KindTransport, errors.New("connection refused")))
		g := NewGuard(e, GuardConfig{BreakerFailures: 1, BreakerPause: time.Second})
		g.Decide(t.Context(), connect("192.0.2.1", 1))
		time.Sleep(1200 * time.Millisecond)
		e.set(takes(100 * time.Millisecond).answer)
		var allowed, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				switch d := g.Decide(t.Context(), connect(fmt.Sprint("192.0.2.", i), 1)); {
				case d.Outcome == Allow:
					allowed.Add(1)
				case KindOf(d) == KindBreakerOpen:
					refused.Add(1)
				}
			})
		}
		wg.Wait()
		if allowed.Load() != 1 || refused.Load() != 49 {
			t.Errorf("%d allowed, %d refused", allowed.Load(), refused.Load())
		}
		e.want(t, 2)
	})
}

// A failure that began before the breaker closed does not open it again.
func TestBreakerIgnoresOldNews(t *testing.T) {
	b := breaker{threshold: 1, pause: time.Nanosecond}
	old, _ := b.admit()
	first, _ := b.admit()
	b.report(first, sick)
	time.Sleep(time.Millisecond)
	probe, ok := b.admit()
	if !ok {
		t.Fatal("no probe")
	}
	b.report(old, healthy) // proves nothing about now
	if _, ok := b.admit(); ok {
		t.Error("closed by old news")
	}
	b.report(probe, healthy)
	b.report(old, sick)
	if _, ok := b.admit(); !ok {
		t.Error("opened by old news")
	}
}

// One client whose questions the engine rejects shuts nobody else out.
func TestRejectedQuestionsDoNotOpenTheBreaker(t *testing.T) {
	e := says(Fail(KindRejected, errors.New("400")))
	g := NewGuard(e, GuardConfig{BreakerFailures: 2})
	for range 20 {
		if d := g.Decide(t.Context(), connect("192.0.2.1", 1)); KindOf(d) != KindRejected {
			t.Fatalf("%+v", d)
		}
	}
}

func TestPanicOfTheEngineIsAnError(t *testing.T) {
	e := &engine{answer: func(context.Context, *Request) Decision { panic("oh no") }}
	var told string
	g := NewGuard(e, GuardConfig{MaxCalls: 1, Panicked: func(v any, stack []byte) { told = fmt.Sprint(v, " ", len(stack) > 0) }})
	for range 3 { // the place is given back
		d := g.Decide(t.Context(), connect("192.0.2.1", 1))
		if KindOf(d) != KindPanic || !strings.Contains(d.Err.Error(), "oh no") || strings.Contains(d.Err.Error(), "goroutine") {
			t.Errorf("%+v", d)
		}
	}
	if told != "oh no true" {
		t.Errorf("told %q", told)
	}
}

func TestGuardUnderFire(t *testing.T) {
	e := &engine{answer: func(_ context.Context, r *Request) Decision {
		if strings.HasSuffix(r.Subject.ID, "3") {
			return Decision{Outcome: Deny, Reason: r.Subject.ID}
		}
		return Decision{Outcome: Allow, Reason: r.Subject.ID}
	}}
	g := NewGuard(e, GuardConfig{AllowTTL: time.Millisecond, DenyTTL: time.Millisecond, CacheSize: 5, Timeout: 30 * time.Second})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 1000 {
				ip := fmt.Sprint("192.0.2.", (i+j)%10)
				d := g.Decide(t.Context(), connect(ip, j))
				if d.Reason != ip || (d.Outcome == Deny) != strings.HasSuffix(ip, "3") {
					t.Errorf("%s got %+v", ip, d)
				}
				if j%100 == 0 {
					g.Flush()
				}
			}
		})
	}
	wg.Wait()
}

func TestCachedDecisionDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	g := NewGuard(says(Decision{Outcome: Allow, Lease: time.Hour}), GuardConfig{AllowTTL: time.Hour})
	r := connect("192.0.2.1", 1)
	ctx := t.Context()
	g.Decide(ctx, r)
	if n := testing.AllocsPerRun(10_000, func() {
		if !g.Decide(ctx, r).Cached {
			t.Fatal("not cached")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCachedDecision(b *testing.B) {
	g := NewGuard(says(Decision{Outcome: Allow}), GuardConfig{AllowTTL: time.Hour})
	r := connect("192.0.2.1", 1)
	r.Subject.Properties = nil // as the hub asks about a client without a certificate
	g.Decide(b.Context(), r)
	b.ReportAllocs()
	for b.Loop() {
		if !g.Decide(b.Context(), r).Cached {
			b.Fatal("not cached")
		}
	}
}

func BenchmarkUncachedDecision(b *testing.B) {
	g := NewGuard(says(Decision{Outcome: Allow}), GuardConfig{})
	r := connect("192.0.2.1", 1)
	b.ReportAllocs()
	for b.Loop() {
		g.Decide(b.Context(), r)
	}
}
