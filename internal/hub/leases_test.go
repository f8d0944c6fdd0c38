package hub

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func graced(k *Connector, d time.Duration) *Connector {
	k.Grace = d
	return k
}

// script is a Decider whose answer a test changes while sessions live.
type script struct {
	mu     sync.Mutex
	answer authz.Decision
	asked  atomic.Int32
}

func says(d authz.Decision) *script { return &script{answer: d} }

func (s *script) say(d authz.Decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = d
}

func (s *script) Decide(context.Context, *authz.Request) authz.Decision {
	s.asked.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answer
}

func leased(d time.Duration) authz.Decision {
	return authz.Decision{Outcome: authz.Allow, Reason: "leased", Lease: d}
}

var down = authz.Decision{Err: errors.New("pdp is down")}

func TestLeaseIsRenewed(t *testing.T) {
	d := says(leased(100 * time.Millisecond))
	w := newWorld(t, config(with(dir("a1"), d)))
	w.agent(login{id: "a1"})
	c := w.dial()
	eventually(t, "it is judged again and again", func() bool { return d.asked.Load() >= 4 })
	c.mustEcho()
	d.say(allow()) // without end
	eventually(t, "the last lease ends", func() bool {
		w.h.mu.Lock()
		defer w.h.mu.Unlock()
		for s := range w.h.connectors["dir"].sessions {
			if p := s.permit; p.lease != 0 || p.due != 0 || p.queued {
				return false
			}
		}
		return true
	})
	n := d.asked.Load()
	time.Sleep(300 * time.Millisecond)
	if d.asked.Load() != n {
		t.Error("a permit without end is judged again")
	}
	c.mustEcho()
	c.leave()
}

// due reports whether something will wake the hub.
func (w *world) due() bool {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	return len(w.h.leases.heap) > 0
}

// What ends with its lease was revoked; what ends with a change of policy,
// denied.
func TestLeaseThatIsNotRenewed(t *testing.T) {
	d := says(leased(100 * time.Millisecond))
	w := newWorld(t, config(with(dir("a1"), d)))
	w.agent(login{id: "a1"})
	c := w.dial()
	d.say(deny())
	o := c.want(wire.ReasonRevoked)
	if !strings.Contains(o.Message, "not renewed: test") || o.Decision.Outcome != authz.Deny {
		t.Errorf("%+v", o)
	}
	wantRST(t, c)
	w.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "revoked")
	if w.due() {
		t.Error("an ended session is on the list")
	}
}

// A PDP that is down does not end sessions before the grace is over.
func TestGrace(t *testing.T) {
	for name, c := range map[string]struct {
		grace, atLeast time.Duration
	}{
		"some": {600 * time.Millisecond, 600 * time.Millisecond},
		"none": {-1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := says(leased(100 * time.Millisecond))
			w := newWorld(t, config(graced(with(dir("a1"), d), c.grace)))
			w.agent(login{id: "a1"})
			cl := w.dial()
			d.say(down)
			began, asked := time.Now(), d.asked.Load()
			o := cl.want(wire.ReasonPDPError)
			if took := time.Since(began); took < c.atLeast || took > c.atLeast+10*time.Second {
				t.Errorf("after %s", took)
			}
			if again := d.asked.Load() - asked; c.grace > 0 && again < 3 || c.grace < 0 && again != 1 {
				t.Errorf("asked %d times meanwhile", again)
			}
			if o.Message != "pdp is down" {
				t.Errorf("message %q", o.Message)
			}
			w.wantMetric(1, "nowconnect_listener_errors_total", "connector", "dir", "type", "pdp")
		})
	}
}

// An answer within the grace is what counts, and the next failure has a grace
// of its own.
func TestGraceHeals(t *testing.T) {
	d := says(leased(100 * time.Millisecond))
	w := newWorld(t, config(graced(with(dir("a1"), d), 5*time.Second)))
	w.agent(login{id: "a1"})
	cl := w.dial()
	failures := func(n float64) func() bool {
		return func() bool {
			return w.metric("nowconnect_pdp_decisions_total", "connector", "dir", "result", "error") >= n
		}
	}
	d.say(down)
	eventually(t, "it is asked again in spite of errors", failures(2))
	cl.mustEcho()
	d.say(leased(100 * time.Millisecond))
	n := d.asked.Load()
	eventually(t, "leases go on", func() bool { return d.asked.Load() >= n+3 })
	w.h.mu.Lock()
	for s := range w.h.connectors["dir"].sessions {
		if s.permit.grace != 0 {
			t.Error("the grace goes on")
		}
	}
	w.h.mu.Unlock()
	cl.mustEcho()
	d.say(deny())
	cl.want(wire.ReasonRevoked)
}

// The cause survives the grace: it was the change of policy that was judged.
func TestDenialAfterAGraceKeepsItsCause(t *testing.T) {
	d := says(allow())
	cfg := config(graced(with(dir("a1"), d), 20*time.Second))
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	cl := w.dial()
	d.say(down)
	w.h.PolicyChanged(cfg, "dir")
	eventually(t, "it is asked", func() bool { return d.asked.Load() >= 2 })
	d.say(deny())
	cl.want(wire.ReasonDenied)
}

// A permit that was given because nobody could be asked is asked about again,
// whatever others who were asked too say about how long it holds.
func TestProvisionalPermitHasALease(t *testing.T) {
	open := says(authz.Decision{Outcome: authz.Allow, Reason: "on_error allow", Err: errors.New("down")})
	for name, d := range map[string]authz.Decider{
		"alone":         open,
		"before rules":  authz.Chain(open, says(allow())),
		"after a lease": authz.Chain(says(leased(time.Hour)), open),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(with(dir("a1"), d)))
			w.agent(login{id: "a1"})
			cl := w.dial()
			w.h.mu.Lock()
			for s := range w.h.connectors["dir"].sessions {
				if left := s.permit.lease - w.h.leases.now(); left <= 0 || left > provisional {
					t.Errorf("it holds for %s", left)
				}
			}
			w.h.mu.Unlock()
			cl.leave()
		})
	}
}

// A reload that shortens the grace holds for sessions that are in one, and does
// not make the hub spin.
func TestGraceIsShortened(t *testing.T) {
	d := says(allow())
	cfg := config(graced(with(dir("a1"), d), time.Hour))
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	cl := w.dial()
	d.say(down)
	w.h.PolicyChanged(cfg, "dir")
	eventually(t, "the grace begins", func() bool { return d.asked.Load() >= 2 })
	cl.mustEcho()
	asked := d.asked.Load()
	w.h.Apply(config(graced(with(dir("a1"), d), -1)))
	cl.want(wire.ReasonPDPError)
	if n := d.asked.Load() - asked; n > 5 {
		t.Errorf("asked %d times", n)
	}
}

func TestMaxDuration(t *testing.T) {
	for name, d := range map[string]authz.Decision{
		"without a lease": {Outcome: authz.Allow, MaxDuration: 400 * time.Millisecond},
		"with leases":     {Outcome: authz.Allow, MaxDuration: 400 * time.Millisecond, Lease: 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(with(dir("a1"), says(d))))
			w.agent(login{id: "a1"})
			cl := w.dial()
			o := cl.want(wire.ReasonRevoked)
			if o.Message != "max_duration 400ms is over" || o.Duration < 400*time.Millisecond {
				t.Errorf("after %s: %s", o.Duration, o.Message)
			}
			wantRST(t, cl)
		})
	}
}

// An engine that hangs holds up no obligation.
func TestMaxDurationWhilePolicyThinks(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1"), d)))
	w.agent(login{id: "a1"})
	cl := w.client("dir", "10.0.0.1:1")
	d.answer <- authz.Decision{Outcome: authz.Allow, MaxDuration: time.Second, Lease: 100 * time.Millisecond}
	cl.mustEcho()
	cl.want(wire.ReasonRevoked)
	if len(d.asked) != 2 {
		t.Errorf("asked %d times", len(d.asked))
	}
}

// Not a byte more than max_bytes passes, in whichever direction the bytes go.
func TestMaxBytes(t *testing.T) {
	const limit = 100_000
	flood := strings.Repeat("x", 1<<20)
	for name, target := range map[string]func(c net.Conn, got *atomic.Int64){
		"to the target": func(c net.Conn, got *atomic.Int64) {
			n, _ := io.Copy(io.Discard, c)
			got.Add(n)
		},
		"from the target": func(c net.Conn, _ *atomic.Int64) { _, _ = io.WriteString(c, flood) },
		"both ways": func(c net.Conn, got *atomic.Int64) {
			n, _ := io.Copy(c, c)
			got.Add(n)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(with(dir("a1"), says(authz.Decision{Outcome: authz.Allow, MaxBytes: limit}))))
			var passed atomic.Int64
			done := make(chan struct{}, 2)
			w.agent(login{id: "a1", target: w.serve(func(c net.Conn) {
				defer func() { done <- struct{}{} }()
				defer c.Close()
				target(c, &passed)
			})})
			cl := w.client("dir", "10.0.0.1:1")
			if name != "from the target" {
				w.wg.Go(func() { _, _ = io.WriteString(cl, flood) })
			}
			w.wg.Go(func() {
				defer func() { done <- struct{}{} }()
				n, _ := io.Copy(io.Discard, cl)
				passed.Add(n)
			})
			if o := cl.want(wire.ReasonRevoked); o.Message != "max_bytes 100000 are used up" {
				t.Errorf("message %q", o.Message)
			}
			recv(t, done)
			recv(t, done)
			// What was on its way when the end came may be lost to the reset.
			if n := passed.Load(); n > limit {
				t.Errorf("%d bytes have passed, of %d", n, limit)
			}
		})
	}
}

// What a later decision allows counts from the session's beginning.
func TestMaxBytesSetLater(t *testing.T) {
	d := says(allow())
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	over, within := w.dial(), w.dial()
	over.mustEcho() // 16 bytes in all, against 8
	d.say(authz.Decision{Outcome: authz.Allow, MaxBytes: 15})
	w.h.PolicyChanged(cfg, "dir")
	over.want(wire.ReasonRevoked)
	within.leave()
}

// Sessions that came together are not judged together.
func TestLeasesAreSpread(t *testing.T) {
	h := newWorld(t, config(dir("a1"))).h
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	var first, last time.Duration
	for range 1000 {
		s := &session{conn: h.connectors["dir"], started: now}
		h.grantLocked(s, leased(time.Minute), now)
		left := s.permit.lease - now.Sub(h.leases.born)
		if left > time.Minute || left < 54*time.Second {
			t.Fatalf("a lease of a minute is renewed after %s", left)
		}
		if first == 0 || left < first {
			first = left
		}
		last = max(last, left)
	}
	if last-first < 4*time.Second {
		t.Errorf("all between %s and %s", first, last)
	}
	for len(h.leases.heap) > 0 {
		h.leases.remove(h.leases.heap[0])
	}
}

func TestLeasesKeepTheirOrder(t *testing.T) {
	l := leases{born: time.Now()}
	sessions := make([]*session, 300)
	for i := range sessions {
		sessions[i] = new(session)
	}
	for range 10_000 {
		s := sessions[rand.N(len(sessions))]
		l.set(s, time.Duration(rand.N(1000)))
		if rand.N(10) == 0 {
			l.next(time.Duration(rand.N(1000)))
		}
	}
	listed := 0
	for _, s := range sessions {
		if s.permit.due != 0 {
			listed++
			if l.heap[s.permit.index] != s {
				t.Fatal("lost its place")
			}
		}
	}
	if listed != len(l.heap) {
		t.Fatalf("%d of %d are listed", len(l.heap), listed)
	}
	var before time.Duration
	for len(l.heap) > 0 {
		due := l.heap[0].permit.due
		if due < before {
			t.Fatalf("%v after %v", due, before)
		}
		before = due
		if l.next(due-1) != nil || l.next(due) == nil {
			t.Fatal("not due when it is due")
		}
	}
}
