package hub

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// turnstile is an engine that takes lists, slowly, and sees how it is asked.
type turnstile struct {
	now, most, longest, asked atomic.Int32
	lease                     time.Duration
}

func (e *turnstile) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	return e.DecideBatch(ctx, []*authz.Request{r})[0]
}

func (e *turnstile) DecideBatch(_ context.Context, rs []*authz.Request) []authz.Decision {
	raise(&e.most, e.now.Add(1))
	defer e.now.Add(-1)
	raise(&e.longest, int32(len(rs)))
	if len(rs) > 1 {
		time.Sleep(5 * time.Millisecond)
	}
	e.asked.Add(int32(len(rs)))
	out := make([]authz.Decision, len(rs))
	for i := range out {
		out[i] = authz.Decision{Outcome: authz.Allow, Lease: e.lease}
	}
	return out
}

func raise(v *atomic.Int32, to int32) {
	for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}

// However many sessions are judged again, and for whatever reason, few
// goroutines do it, and an idle session costs none for its lease.
func TestFewJudgeMany(t *testing.T) {
	const n = 800
	before := runtime.NumGoroutine()
	w := newWorld(t, crowded(authz.AllowAll))
	out := w.crowd(n)
	e := &turnstile{lease: 2 * time.Second}
	cfg := crowded(e)
	w.h.Apply(cfg)
	eventually(t, "all are judged by the new policy", func() bool { return e.asked.Load() >= n })
	if e.most.Load() > judgesPerConnector || e.longest.Load() > judgeAtOnce || e.longest.Load() < 2 {
		t.Errorf("%d calls at once, about %d sessions at most", e.most.Load(), e.longest.Load())
	}
	// Per session: one here, one at the agent, and the test's service.
	eventually(t, "the judges have gone, and each session has a lease", func() bool {
		w.h.mu.Lock()
		defer w.h.mu.Unlock()
		c := w.h.connectors["dir"]
		return runtime.NumGoroutine() <= before+3*n+30 && c.judges == 0 && len(c.queue) == 0 && len(w.h.leases.heap) == n
	})
	eventually(t, "all leases are renewed", func() bool { return e.asked.Load() >= 2*n })
	if e.most.Load() > judgesPerConnector {
		t.Errorf("%d calls at once", e.most.Load())
	}
	if len(out) > 0 {
		t.Errorf("a session has ended: %+v", <-out)
	}
}

// A policy that hangs holds up only what it decides about.
func TestHungPolicyHoldsUpNoOther(t *testing.T) {
	gate := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(gate) }) }
	hung := authz.DeciderFunc(func(context.Context, *authz.Request) authz.Decision {
		<-gate
		return allow()
	})
	good := says(leased(100 * time.Millisecond))
	w := newWorld(t, config(dir("a1"), &Connector{Name: "web", Agents: []string{"a1"}, Decider: good}))
	t.Cleanup(open)
	w.agent(login{id: "a1", connectors: []string{"dir", "web"}})
	var stuck []*client
	for range 20 {
		stuck = append(stuck, w.dial())
	}
	cl := w.client("web", "10.0.0.1:1")
	cl.mustEcho()
	w.h.Apply(config(with(dir("a1"), hung), &Connector{Name: "web", Agents: []string{"a1"}, Decider: good}))
	n := good.asked.Load()
	eventually(t, "the other's leases are renewed", func() bool { return good.asked.Load() > n+2 })
	good.say(deny())
	cl.want(wire.ReasonRevoked)
	open()
	for _, c := range stuck {
		c.mustEcho()
		c.leave()
	}
}

// A policy engine without a time limit of its own holds no client for ever.
func TestPolicyThatNeverAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.h.Apply(config(with(dir("a1"), authz.DeciderFunc(func(ctx context.Context, _ *authz.Request) authz.Decision {
			<-ctx.Done()
			return authz.Fail(authz.KindTimeout, ctx.Err())
		}))))
		b.join(Identity{}, nil)
		began := time.Now()
		b.call("dir").want(wire.ReasonPDPError)
		if took := time.Since(began); took != judgeTimeout {
			t.Errorf("after %v", took)
		}
	})
}
