package hub

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestDrainLetsSessionsFinish(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	p := w.agent(login{id: "a1"})
	a, b := w.dial(), w.dial()
	report := make(chan DrainReport, 2)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.wg.Go(func() { report <- w.h.Drain(ctx) })
	eventually(t, "the agent is told", func() bool { return p.Draining() })
	if !w.h.Draining() || !w.h.Status().Draining {
		t.Error("the hub does not say that it drains")
	}
	w.client("dir", "10.0.0.1:1").want(wire.ReasonDraining)
	if _, err := w.shake(&login{id: "a1", slot: 1}); linkReason(t, err) != wire.ReasonDraining {
		t.Errorf("a new agent got %v", err)
	}
	w.wg.Go(func() { report <- w.h.Drain(context.Background()) }) // a second call changes nothing
	a.mustEcho()
	a.leave()
	select {
	case r := <-report:
		t.Fatalf("over before the last session: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	b.mustEcho()
	b.leave()
	for range 2 {
		if r := recv(t, report); r.Finished != 2 || len(r.Cut) != 0 || r.Links != 1 || r.Took <= 0 {
			t.Errorf("report %+v", r)
		}
	}
	if r := linkReason(t, recv(t, p.ended)); r != wire.ReasonShutdown {
		t.Errorf("the agent was told %v", r)
	}
}

func TestDrainCutsWhatIsLeft(t *testing.T) {
	d := newSlow()
	cfg := config(dir("a1"), &Connector{Name: "thinking", Agents: []string{"a1"}, Decider: d})
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	live := w.dial()
	undecided := w.client("thinking", "10.0.0.1:1")
	recv(t, d.asked)
	var names []string
	for _, s := range w.h.Sessions("") {
		names = append(names, s.Session)
	}
	slices.Sort(names)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	r := w.h.Drain(ctx)
	if r.Finished != 0 || !slices.Equal(r.Cut, names) || len(names) != 2 || r.Links != 1 {
		t.Errorf("report %+v, sessions %v", r, names)
	}
	live.want(wire.ReasonShutdown)
	undecided.want(wire.ReasonShutdown)
	wantFIN(t, live) // a shutdown ends in order
	w.wantMetric(0, "nowconnect_tcp_active_connections")
	eventually(t, "the link is out of the books", func() bool { return w.metric("nowconnect_tunnel_links") == 0 })
}

func TestDrainOfAnIdleHub(t *testing.T) {
	w := newWorld(t, nil)
	if r := w.h.Drain(context.Background()); r.Finished != 0 || r.Cut != nil || r.Links != 0 {
		t.Errorf("report %+v", r)
	}
	w.h.Close() // after that is no harm
}

// After Undrain everything is as on the first day: agents, clients, judging of
// live sessions, leases, and another drain.
func TestUndrain(t *testing.T) {
	d := says(leased(time.Minute))
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	if err := w.h.Undrain(); err != nil {
		t.Errorf("in service: %v", err)
	}
	p := w.agent(login{id: "a1"})
	live := w.dial()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	report := make(chan DrainReport)
	w.wg.Go(func() { report <- w.h.Drain(ctx) })
	eventually(t, "it drains", w.h.Draining)
	if err := w.h.Undrain(); !errors.Is(err, ErrDraining) {
		t.Errorf("while it drains: %v", err)
	}
	cancel()
	if r := recv(t, report); len(r.Cut) != 1 || r.Links != 1 {
		t.Errorf("report %+v", r)
	}
	live.want(wire.ReasonShutdown)
	recv(t, p.ended)
	eventually(t, "the link is out of the books", func() bool { return len(w.links("a1")) == 0 })

	if err := w.h.Undrain(); err != nil || w.h.Draining() || w.h.Status().Draining {
		t.Errorf("afterwards: %v", err)
	}
	w.agent(login{id: "a1"})
	d.say(leased(100 * time.Millisecond))
	renewed, judged := w.dial(), w.dial()
	before := d.asked.Load()
	eventually(t, "leases are renewed", func() bool { return d.asked.Load() >= before+4 })
	renewed.mustEcho()
	renewed.leave()
	d.say(deny())
	w.h.PolicyChanged(cfg, "dir")
	if o := recv(t, judged.out); o.Reason != wire.ReasonDenied && o.Reason != wire.ReasonRevoked { // its lease may have been quicker
		t.Errorf("judged: %+v", o)
	}
	d.say(allow())
	last := w.dial()
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if r := w.h.Drain(ctx); len(r.Cut) != 1 || r.Links != 1 {
		t.Errorf("the second report %+v", r)
	}
	last.want(wire.ReasonShutdown)
}

// Who holds a session for later is told, and the drain need not wait for it.
func TestDrainTellsThoseInside(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	dialed, accepted := tcpPair(t)
	told := make(chan struct{})
	out := make(chan Outcome, 1)
	w.wg.Go(func() {
		out <- w.h.ServeClient(context.Background(), &Client{
			Connector: "dir", Conn: accepted, TCP: accepted, Addr: netip.MustParseAddrPort("127.0.0.1:1"),
			OnDrain: func() { close(told); dialed.Close() },
		})
	})
	eventually(t, "it is placed", func() bool { return w.links("a1")[0].Sessions == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if r := w.h.Drain(ctx); r.Finished != 1 || len(r.Cut) != 0 || r.Took > 5*time.Second {
		t.Errorf("report %+v", r)
	}
	recv(t, told)
	recv(t, out)
}
