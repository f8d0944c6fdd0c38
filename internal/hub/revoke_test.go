package hub

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestRevoke(t *testing.T) {
	for name, c := range map[string]struct {
		match func(cids []string) Match
		ended []int // which of the four
	}{
		"nothing":             {func([]string) Match { return Match{} }, nil},
		"cid":                 {func(cids []string) Match { return Match{Session: cids[1]} }, []int{1}},
		"unknown cid":         {func([]string) Match { return Match{Session: "no-such"} }, nil},
		"connector":           {func([]string) Match { return Match{Connector: "dir"} }, []int{0, 1, 2}},
		"agent":               {func([]string) Match { return Match{Agent: "a2"} }, []int{3}},
		"unknown agent":       {func([]string) Match { return Match{Agent: "a3"} }, nil},
		"address":             {func([]string) Match { return Match{Source: netip.MustParsePrefix("10.0.0.1/32")} }, []int{0, 3}},
		"network":             {func([]string) Match { return Match{Source: netip.MustParsePrefix("10.0.0.0/8")} }, []int{0, 1, 3}},
		"IPv6 network":        {func([]string) Match { return Match{Source: netip.MustParsePrefix("2001:db8::/32")} }, []int{2}},
		"everybody with IPv4": {func([]string) Match { return Match{Source: netip.MustParsePrefix("0.0.0.0/0")} }, []int{0, 1, 3}},
		"all must hold": {func([]string) Match {
			return Match{Connector: "dir", Agent: "a1", Source: netip.MustParsePrefix("10.0.0.1/32")}
		}, []int{0}},
		"all cannot hold": {func(cids []string) Match { return Match{Session: cids[0], Agent: "a2"} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, config(dir("a1"), &Connector{Name: "web", Agents: []string{"a2"}}))
			w.agent(login{id: "a1"})
			w.agent(login{id: "a2", connectors: []string{"web"}})
			clients := []*client{w.client("dir", "10.0.0.1:1"), w.client("dir", "[::ffff:10.0.0.2]:1"),
				w.client("dir", "[2001:db8::1]:1"), w.client("web", "10.0.0.1:2")}
			addresses := []string{"10.0.0.1:1", "[::ffff:10.0.0.2]:1", "[2001:db8::1]:1", "10.0.0.1:2"}
			cids := make([]string, len(clients))
			for i, cl := range clients {
				cl.mustEcho()
				for _, s := range w.h.Sessions("") {
					if s.Client == addresses[i] {
						cids[i] = s.Session
					}
				}
			}
			var want []string
			for _, i := range c.ended {
				want = append(want, cids[i])
			}
			got := w.h.Revoke(c.match(cids), "")
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("ended %v, want %v", got, want)
			}
			for i, cl := range clients {
				if slices.Contains(c.ended, i) {
					cl.want(wire.ReasonRevoked)
					wantRST(t, cl)
				} else {
					cl.mustEcho()
					cl.leave()
				}
			}
			if again := w.h.Revoke(c.match(cids), ""); len(again) != 0 {
				t.Errorf("the second time it ends %v", again)
			}
		})
	}
}

// Nobody slips through between the question and the answer, whatever that is.
func TestRevokeWhilePolicyThinks(t *testing.T) {
	for name, answer := range map[string]authz.Decision{"allow": allow(), "deny": deny(), "leased": leased(1)} {
		t.Run(name, func(t *testing.T) {
			d := newSlow()
			w := newWorld(t, config(with(dir("a1"), authz.DeciderFunc(func(_ context.Context, r *authz.Request) authz.Decision {
				return d.Decide(context.Background(), r) // forgets that it was cancelled
			}))))
			w.agent(login{id: "a1"})
			cl := w.client("dir", "10.0.0.1:1")
			r := recv(t, d.asked)
			ended := w.h.Revoke(Match{Source: netip.MustParsePrefix("10.0.0.1/32")}, "ticket 7")
			if len(ended) != 1 || ended[0] != r.Context["cid"] {
				t.Errorf("ended %v", ended)
			}
			d.answer <- answer
			o := cl.want(wire.ReasonRevoked)
			if o.BytesC2A != 0 || o.BytesA2C != 0 || o.Message != "revoked by an operator (source 10.0.0.1/32): ticket 7" {
				t.Errorf("%+v", o)
			}
			wantRST(t, cl)
			if w.due() {
				t.Error("a revoked session is on the list")
			}
		})
	}
}

// A session that policy is being asked about belongs to the agent that the
// question is about, also when it is the next one's turn.
func TestRevokeByAgentWhilePolicyThinks(t *testing.T) {
	d := newSlow()
	w := newWorld(t, config(with(dir("a1", "a2"), d)))
	first := w.agent(login{id: "a1"})
	w.agent(login{id: "a2"})
	cl := w.client("dir", "10.0.0.1:1")
	recv(t, d.asked)
	if ended := w.h.Revoke(Match{Agent: "a2"}, ""); len(ended) != 0 {
		t.Errorf("another agent's: ended %v", ended)
	}
	first.Close(wire.ReasonShutdown, "")
	eventually(t, "the first is gone", func() bool { return len(w.links("a1")) == 0 })
	d.answer <- allow()
	recv(t, d.asked) // about the second
	if ended := w.h.Revoke(Match{Agent: "a1"}, ""); len(ended) != 0 {
		t.Errorf("the one before: ended %v", ended)
	}
	if ended := w.h.Revoke(Match{Agent: "a2"}, ""); len(ended) != 1 {
		t.Errorf("its own: ended %v", ended)
	}
	cl.want(wire.ReasonRevoked)
	wantRST(t, cl)
}

// Clients that come while others are revoked are either gone or never were.
func TestRevokeUnderLoad(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1"})
	for range 20 {
		var clients []*client
		for range 10 {
			clients = append(clients, w.client("dir", "10.0.0.1:1"))
		}
		eventually(t, "all are in the books", func() bool { return len(w.h.Sessions("")) == 10 })
		if n := len(w.h.Revoke(Match{Connector: "dir"}, "")); n != 10 {
			t.Errorf("%d ended", n)
		}
		for _, c := range clients {
			c.want(wire.ReasonRevoked)
		}
	}
}

func TestPolicyChanged(t *testing.T) {
	dirPolicy, webPolicy := says(allow()), says(allow())
	cfg := config(with(dir("a1"), dirPolicy), &Connector{Name: "web", Agents: []string{"a1"}, Decider: webPolicy})
	w := newWorld(t, cfg)
	w.agent(login{id: "a1", connectors: []string{"dir", "web"}})
	a, b := w.client("dir", "10.0.0.1:1"), w.client("web", "10.0.0.1:2")
	a.mustEcho()
	b.mustEcho()

	dirPolicy.say(deny())
	webPolicy.say(deny())
	if n := w.h.PolicyChanged(config(), "dir", "web"); n != 0 {
		t.Errorf("%d judged for a configuration that is not in force", n)
	}
	if n := w.h.PolicyChanged(cfg, "dir", "no such"); n != 1 {
		t.Errorf("%d live", n)
	}
	a.want(wire.ReasonDenied)
	b.mustEcho()
	if n := webPolicy.asked.Load(); n != 1 {
		t.Errorf("the other connector's policy was asked %d times", n)
	}
	w.h.PolicyChanged(cfg, "web")
	b.want(wire.ReasonDenied)
}

// A change of policy counts also for whom it finds in the middle of a question.
func TestPolicyChangedWhileItThinks(t *testing.T) {
	d := newSlow()
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	var dialed atomic.Int32
	w.agent(login{id: "a1", target: w.serve(func(c net.Conn) { dialed.Add(1); c.Close() })})
	cl := w.client("dir", "10.0.0.1:1")
	recv(t, d.asked)
	w.h.PolicyChanged(cfg, "dir")
	d.answer <- allow() // by what was policy before
	recv(t, d.asked)
	d.answer <- deny()
	cl.want(wire.ReasonDenied)
	wantRST(t, cl)
	if dialed.Load() != 0 {
		t.Error("the target was dialed")
	}
}

// The live one too: an answer that a change overtook neither ends nor renews.
func TestPolicyChangedWhileLiveSessionsAreJudged(t *testing.T) {
	d := newSlow()
	cfg := config(with(dir("a1"), d))
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	cl := w.client("dir", "10.0.0.1:1")
	recv(t, d.asked)
	d.answer <- allow()
	cl.mustEcho()
	w.h.PolicyChanged(cfg, "dir")
	recv(t, d.asked)
	w.h.PolicyChanged(cfg, "dir")
	recv(t, d.asked)
	d.answer <- deny()
	d.answer <- deny() // two judges wait: one of them counts no more, and the other does
	cl.want(wire.ReasonDenied)
}
