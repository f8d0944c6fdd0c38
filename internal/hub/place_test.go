package hub

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// byAgent allows the agents that it lists, and remembers whom it was asked about.
type byAgent struct {
	allows []string
	mu     sync.Mutex
	asked  []any
}

func (b *byAgent) Decide(_ context.Context, r *authz.Request) authz.Decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	agent := r.Context["agent"]
	b.asked = append(b.asked, agent)
	if r.Resource.Properties["agent"] != agent {
		return authz.Decision{}
	}
	if a, _ := agent.(string); slices.Contains(b.allows, a) {
		return authz.Decision{Outcome: authz.Allow, Reason: a}
	}
	return authz.Decision{Outcome: authz.Deny, Reason: "not this agent"}
}

func (b *byAgent) wantAsked(t *testing.T, want ...any) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.asked, want) {
		t.Errorf("asked about %v, want %v", b.asked, want)
	}
}

func first(agents ...string) *Connector {
	k := dir(agents...)
	k.Balance = BalanceFirst
	return k
}

// full makes the agent's links refuse sessions.
func (w *world) full(agent string) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.h.agents[agent].budget.SetMax(1)
}

// The permit is for the agent that serves: when another has to step in, policy
// is asked about that one.
func TestFailoverAsksAgain(t *testing.T) {
	for name, c := range map[string]struct {
		allows []string
		reason wire.Reason
		agent  string
	}{
		"both may":          {[]string{"a1", "a2"}, wire.ReasonFin, "a2"},
		"only the first":    {[]string{"a1"}, wire.ReasonDenied, ""},
		"the second, alone": {[]string{"a2"}, wire.ReasonDenied, ""}, // policy does not choose
	} {
		t.Run(name, func(t *testing.T) {
			d := &byAgent{allows: c.allows}
			w := newWorld(t, config(with(first("a1", "a2"), d)))
			w.agent(login{id: "a1"})
			w.agent(login{id: "a2"})
			w.full("a1")
			cl := w.client("dir", "10.0.0.1:1")
			if c.reason == wire.ReasonFin {
				cl.mustEcho()
				cl.CloseWrite()
			}
			o := cl.want(c.reason)
			if o.Agent != c.agent || c.agent != "" && o.Decision.Reason != c.agent {
				t.Errorf("%+v", o)
			}
			if slices.Contains(c.allows, "a1") {
				d.wantAsked(t, "a1", "a2")
			} else {
				d.wantAsked(t, "a1")
			}
		})
	}
}

func TestNoAgentConnected(t *testing.T) {
	d := &byAgent{allows: []string{"a1"}}
	w := newWorld(t, config(with(first("a1", "a2"), d)))
	w.client("dir", "10.0.0.1:1").want(wire.ReasonNoAgent)
	d.wantAsked(t, "a1")
	d.allows = nil
	w.client("dir", "10.0.0.1:1").want(wire.ReasonDenied) // and learns nothing about agents
}

func TestConnectorWithoutAgents(t *testing.T) {
	w := newWorld(t, config(dir()))
	w.client("dir", "10.0.0.1:1").want(wire.ReasonNoAgent)
}

// An agent that comes while policy thinks is not too late, whichever it is.
func TestAgentComesWhilePolicyThinks(t *testing.T) {
	for _, agent := range []string{"a1", "a2"} {
		t.Run(agent, func(t *testing.T) {
			d := newSlow()
			w := newWorld(t, config(with(first("a1", "a2"), d)))
			cl := w.client("dir", "10.0.0.1:1")
			recv(t, d.asked)
			w.agent(login{id: agent})
			d.answer <- allow()
			d.answer <- allow()
			cl.mustEcho()
			if o := cl.leave(); o.Agent != agent {
				t.Errorf("%+v", o)
			}
			if again := len(d.asked); again != map[string]int{"a1": 0, "a2": 1}[agent] {
				t.Errorf("asked %d times more", again)
			}
		})
	}
}

// A live session is judged with the agent that it has.
func TestJudgedWithItsAgent(t *testing.T) {
	d := &byAgent{allows: []string{"a1", "a2"}}
	cfg := config(with(first("a1", "a2"), d))
	w := newWorld(t, cfg)
	w.agent(login{id: "a2"})
	on2 := w.dial()
	w.agent(login{id: "a1"})
	on1 := w.dial()
	d.mu.Lock()
	d.allows = []string{"a1"}
	d.mu.Unlock()
	w.h.PolicyChanged(cfg, "dir")
	on2.want(wire.ReasonDenied)
	on1.mustEcho()
	on1.leave()
}

// A link that ends while policy thinks takes nobody along when the agent has
// another.
func TestLinkEndsWhilePolicyThinks(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1"), d)))
	p := w.agent(login{id: "a1"})
	cl := w.client("dir", "10.0.0.1:1")
	recv(t, d.asked)
	w.agent(login{id: "a1", slot: 1})
	p.conn.Close()
	recv(t, p.hub)
	d.answer <- allow()
	cl.mustEcho()
	cl.leave()
}

// Sessions that wait for policy count where they would go: a slow one does not
// send them all to one agent.
func TestWaitingSessionsAreSpread(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1", "a2"), d)))
	w.agent(login{id: "a1"})
	w.agent(login{id: "a2"})
	var clients []*client
	chosen := map[any]int{}
	for range 10 {
		clients = append(clients, w.client("dir", "10.0.0.1:1"))
		chosen[recv(t, d.asked).Context["agent"]]++
	}
	if chosen["a1"] != 5 || chosen["a2"] != 5 {
		t.Errorf("asked about %v", chosen)
	}
	for range clients {
		d.answer <- allow()
	}
	served := map[string]int{}
	for _, c := range clients {
		c.mustEcho()
		served[c.leave().Agent]++
	}
	if served["a1"] != 5 || served["a2"] != 5 {
		t.Errorf("served by %v", served)
	}
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	for id, a := range w.h.agents {
		if a.coming != 0 {
			t.Errorf("%d are still coming to %s", a.coming, id)
		}
	}
}
