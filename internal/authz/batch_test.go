package authz

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// batch is an engine that takes lists. Subjects that end in 3 are denied.
type batch struct {
	calls, single, asked atomic.Int32
	answer               func(ctx context.Context, rs []*Request) []Decision // nil: by subject
}

func bySubject(r *Request) Decision {
	if r.Subject.ID[len(r.Subject.ID)-1] == '3' {
		return Decision{Outcome: Deny, Reason: r.Subject.ID}
	}
	return Decision{Outcome: Allow, Reason: r.Subject.ID}
}

func (b *batch) Decide(_ context.Context, r *Request) Decision {
	b.single.Add(1)
	return bySubject(r)
}

func (b *batch) DecideBatch(ctx context.Context, rs []*Request) []Decision {
	b.calls.Add(1)
	b.asked.Add(int32(len(rs)))
	if b.answer != nil {
		return b.answer(ctx, rs)
	}
	out := make([]Decision, len(rs))
	for i, r := range rs {
		out[i] = bySubject(r)
	}
	return out
}

func clients(n int) []*Request {
	var rs []*Request
	for i := range n {
		rs = append(rs, connect(fmt.Sprintf("10.0.%d.%d", i/100, i%100), 1))
	}
	return rs
}

func wantBySubject(t *testing.T, rs []*Request, got []Decision) {
	t.Helper()
	if len(got) != len(rs) {
		t.Fatalf("%d answers to %d questions", len(got), len(rs))
	}
	for i, d := range got {
		if want := bySubject(rs[i]); d.Outcome != want.Outcome || d.Reason != want.Reason {
			t.Errorf("%s got %+v", rs[i].Subject.ID, d)
		}
	}
}

func TestGuardAsksTogether(t *testing.T) {
	e := new(batch)
	g := NewGuard(e, GuardConfig{AllowTTL: time.Hour, DenyTTL: time.Hour, MaxBatch: 30})
	rs := clients(100)
	wantBySubject(t, rs, g.DecideBatch(t.Context(), rs))
	if e.calls.Load() != 4 || e.asked.Load() != 100 {
		t.Errorf("%d calls about %d", e.calls.Load(), e.asked.Load())
	}
	// What is remembered is not asked again, and who is twice is asked once.
	more := append(clients(100), connect("10.9.9.1", 1), connect("10.9.9.1", 2), connect("10.9.9.2", 1))
	got := g.DecideBatch(t.Context(), more)
	wantBySubject(t, more, got)
	if e.calls.Load() != 5 || e.asked.Load() != 102 || !got[0].Cached || got[101].Cached {
		t.Errorf("%d calls about %d", e.calls.Load(), e.asked.Load())
	}
	// One question is an ordinary one.
	wantBySubject(t, clients(1), g.DecideBatch(t.Context(), clients(1)))
	g.Flush()
	wantBySubject(t, clients(1), g.DecideBatch(t.Context(), clients(1)))
	if e.single.Load() != 1 || e.calls.Load() != 5 {
		t.Errorf("%d single calls, %d batches", e.single.Load(), e.calls.Load())
	}
}

// An engine that takes no lists is asked one by one, within the same bounds.
func TestGuardAsksOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := takes(100 * time.Millisecond)
		g := NewGuard(e, GuardConfig{MaxCalls: 8, Timeout: time.Second})
		started := time.Now()
		for _, d := range g.DecideBatch(t.Context(), clients(40)) {
			expect(t, d, Allow, false)
		}
		e.want(t, 40)
		if e.most.Load() != 8 || time.Since(started) != 500*time.Millisecond {
			t.Errorf("%d at once, %s", e.most.Load(), time.Since(started))
		}
	})
}

func TestBatchAndSingleShareOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		e := new(batch)
		e.answer = func(_ context.Context, rs []*Request) []Decision {
			<-gate
			return make([]Decision, len(rs)) // errors
		}
		g := NewGuard(e, GuardConfig{Timeout: time.Hour})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { g.DecideBatch(t.Context(), clients(5)) })
			synctest.Wait()
		}
		wg.Go(func() { g.Decide(t.Context(), clients(2)[1]) })
		synctest.Wait()
		close(gate)
		wg.Wait()
		if e.calls.Load() != 1 || e.single.Load() != 0 || len(g.flights) != 0 {
			t.Errorf("%d batches, %d single calls, %d left", e.calls.Load(), e.single.Load(), len(g.flights))
		}
	})
}

func TestBatchThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(context.Context, []*Request) []Decision
		want   Kind
	}{
		"too few": {func(context.Context, []*Request) []Decision { return []Decision{{Outcome: Allow}} }, KindDecode},
		"none":    {func(context.Context, []*Request) []Decision { return nil }, KindDecode},
		"panics":  {func(context.Context, []*Request) []Decision { panic("oh no") }, KindPanic},
		"late": {func(ctx context.Context, rs []*Request) []Decision {
			<-ctx.Done()
			return make([]Decision, len(rs))
		}, KindTimeout},
		"forgets its deadline": {func(context.Context, []*Request) []Decision {
			time.Sleep(time.Minute)
			return nil
		}, KindTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := NewGuard(&batch{answer: c.answer}, GuardConfig{AllowTTL: time.Hour, Timeout: 200 * time.Millisecond})
			started := time.Now()
			for _, d := range g.DecideBatch(t.Context(), clients(20)) {
				if KindOf(d) != c.want {
					t.Errorf("%s: %+v", name, d)
				}
			}
			if time.Since(started) > 200*time.Millisecond {
				t.Errorf("%s: after %s", name, time.Since(started))
			}
			time.Sleep(time.Hour)
		})
	}
}

// A batch is one call for the breaker: it opens after as many failed calls, and
// one answer within a batch shows that the engine lives.
func TestBreakerCountsBatches(t *testing.T) {
	fail := Fail(KindUnavailable, errors.New("503"))
	all := func(_ context.Context, rs []*Request) []Decision {
		out := make([]Decision, len(rs))
		for i := range out {
			out[i] = fail
		}
		return out
	}
	e := &batch{answer: func(ctx context.Context, rs []*Request) []Decision {
		out := all(ctx, rs)
		out[1] = Decision{Outcome: Deny}
		return out
	}}
	g := NewGuard(e, GuardConfig{BreakerFailures: 2, BreakerPause: time.Hour})
	for range 5 {
		if d := g.DecideBatch(t.Context(), clients(3))[0]; KindOf(d) != KindUnavailable {
			t.Fatalf("%+v", d)
		}
	}
	e.answer = all
	for i, want := range []Kind{KindUnavailable, KindUnavailable, KindBreakerOpen, KindBreakerOpen} {
		if d := g.DecideBatch(t.Context(), clients(3))[2]; KindOf(d) != want {
			t.Errorf("%d: %+v, want %s", i, d, want)
		}
	}
}

func TestChainAsksTogether(t *testing.T) {
	first, second := new(batch), new(batch)
	second.answer = func(_ context.Context, rs []*Request) []Decision {
		out := make([]Decision, len(rs))
		for i, r := range rs {
			out[i] = Decision{Outcome: Allow, Reason: r.Subject.ID, MaxBytes: 7}
			if r.Subject.ID == "10.0.0.1" {
				out[i] = Fail(KindTimeout, errors.New("late"))
			}
		}
		return out
	}
	rs := clients(20)
	got := Chain(first, second).(BatchDecider).DecideBatch(t.Context(), rs)
	if first.asked.Load() != 20 || second.asked.Load() != 18 { // 3 and 13 are denied
		t.Errorf("asked %d and %d", first.asked.Load(), second.asked.Load())
	}
	for i, d := range got {
		switch i {
		case 3, 13:
			expect(t, d, Deny, false)
		case 1:
			if KindOf(d) != KindTimeout {
				t.Errorf("%+v", d)
			}
		default:
			expect(t, d, Allow, false)
			if d.Reason != rs[i].Subject.ID || d.MaxBytes != 7 {
				t.Errorf("%s got %+v", rs[i].Subject.ID, d)
			}
		}
	}
	for _, d := range Chain().(BatchDecider).DecideBatch(t.Context(), rs[:2]) {
		if !errors.Is(d.Err, errNobody) {
			t.Errorf("nobody decides: %+v", d)
		}
	}
}

func TestChainJoinsObligations(t *testing.T) {
	allows := func(d Decision) Decider {
		d.Outcome = Allow
		return DeciderFunc(func(context.Context, *Request) Decision { return d })
	}
	c := Chain(allows(Decision{MaxDuration: 5, MaxBytes: 10, Lease: 7}), allows(Decision{MaxDuration: 9}), allows(Decision{MaxBytes: 3, Engine: "last"}))
	d := c.Decide(t.Context(), connect("192.0.2.1", 1))
	if d != (Decision{Outcome: Allow, MaxDuration: 5, MaxBytes: 3, Lease: 7, Engine: "last"}) {
		t.Errorf("%+v", d)
	}
}

func TestDecideAllWithoutBatch(t *testing.T) {
	e := takes(time.Millisecond)
	for _, n := range []int{0, 1, 3, 50} {
		if out := DecideAll(t.Context(), e, clients(n)); len(out) != n || n > 0 && out[n-1].Outcome != Allow {
			t.Errorf("%d: %+v", n, out)
		}
	}
	if e.most.Load() > eachAtOnce {
		t.Errorf("%d at once", e.most.Load())
	}
}
