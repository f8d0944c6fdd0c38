package hub

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// within makes a credential that is good for d.
func within(d time.Duration) Identity { return Identity{Expires: time.Now().Add(d)} }

// TestUnrefreshedCredentialEndsTheLinkAfterTheGrace walks through the life of
// a link whose agent could renew its credential and does not.
func TestUnrefreshedCredentialEndsTheLinkAfterTheGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		m := b.join(within(time.Minute), nil)
		if m.ack.ExpiresIn != 60000 || !slices.Equal(m.ack.Capabilities, []string{wire.CapReauth, wire.CapHandover}) {
			t.Errorf("the agent is told %+v", m.ack)
		}
		running := b.call("dir")
		running.works()
		time.Sleep(time.Minute - time.Millisecond)
		late := b.call("dir")
		late.works()
		time.Sleep(time.Millisecond)
		b.call("dir").want(wire.ReasonNoAgent)
		if ready, _ := b.h.Ready("dir"); ready {
			t.Error("the connector counts as ready")
		}
		time.Sleep(29 * time.Second)
		running.works()
		late.works()
		running.want(wire.ReasonRevoked)
		late.want(wire.ReasonRevoked)
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("the sessions ended after %v", d)
		}
		if r := linkReason(t, <-m.ended); r != wire.ReasonRevoked {
			t.Errorf("the agent is told %v", r)
		}
		if r := linkReason(t, <-m.hub); r != wire.ReasonRevoked {
			t.Errorf("the hub says %v", r)
		}
		b.join(within(time.Hour), nil)
		b.wantMetric(1, "nowconnect_tunnel_reconnects_total", "agent", "a1", "reason", "revoked")
	})
}

func TestRenewalMovesTheExpiryAndDropsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Minute), nil)
		g := b.call("dir")
		for range 10 {
			time.Sleep(50 * time.Second)
			g.works()
			b.verifies(func(context.Context, string) (Identity, error) {
				return Identity{AgentID: "a1", Method: "test", Expires: time.Now().Add(time.Minute)}, nil
			})
			if a := m.renew("fresh"); a.Error != "" || a.ExpiresIn != 60000 || !slices.Equal(a.Accepted, []string{"dir", "other"}) {
				t.Fatalf("answer %+v", a)
			}
		}
		if l := b.links("a1")[0]; !l.Expires.Equal(time.Now().Add(time.Minute)) {
			t.Errorf("status says %v", l.Expires)
		}
		// From a credential with an expiry to one without.
		b.verifies(func(context.Context, string) (Identity, error) { return Identity{AgentID: "a1", Method: "test"}, nil })
		if a := m.renew("for ever"); a.Error != "" || a.ExpiresIn != 0 {
			t.Fatalf("answer %+v", a)
		}
		time.Sleep(24 * time.Hour)
		g.works()
		b.call("other").works()
		b.wantMetric(11, "nowconnect_tunnel_reauth_total", "agent", "a1", "result", "accepted")
		b.wantMetric(0, "nowconnect_tunnel_reconnects_total", "agent", "a1")
	})
}

// TestRenewalInTheGraceRevivesTheLink is about a token that comes a little late.
func TestRenewalInTheGraceRevivesTheLink(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Minute), nil)
		g := b.call("dir")
		g.works()
		time.Sleep(85 * time.Second)
		b.call("dir").want(wire.ReasonNoAgent)
		if a := m.renew("late"); a.Error != "" {
			t.Fatalf("answer %+v", a)
		}
		b.call("dir").works()
		time.Sleep(30 * time.Minute)
		g.works()
		if b.logs.FilterMessage("agent's credential has expired: no new sessions on its link").Len() != 1 {
			t.Error("the expiry was not told once")
		}
	})
}

// TestAgentThatCannotRenewMayComeBackAtOnce: nobody waits for a grace on a link
// that only a new one can replace.
func TestAgentThatCannotRenewMayComeBackAtOnce(t *testing.T) {
	old := func(h *wire.Hello) { h.Capabilities = nil }
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		idle := b.join(within(time.Minute), old)
		if idle.ack.Capabilities != nil || idle.ack.ExpiresIn != 60000 {
			t.Errorf("the agent is told %+v", idle.ack)
		}
		if r := linkReason(t, <-idle.ended); r != wire.ReasonRevoked || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", r, time.Since(start))
		}
	})
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		busy := b.join(within(time.Minute), old)
		g := b.call("dir")
		g.works()
		time.Sleep(70 * time.Second)
		if s := <-busy.drain; !strings.Contains(s, "expired") {
			t.Errorf("drained for %q", s)
		}
		g.works()
		g.leave()
		if r := linkReason(t, <-busy.ended); r != wire.ReasonRevoked || time.Since(start) > 71*time.Second {
			t.Errorf("%v after %v", r, time.Since(start))
		}
	})
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		b.join(within(time.Minute), old)
		g := b.call("dir")
		g.works()
		g.want(wire.ReasonRevoked)
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("the session ended after %v", d)
		}
	})
}

// TestRefusedRenewalNeverEndsALink tries everything that can be wrong with a
// new credential.
func TestRefusedRenewalNeverEndsALink(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		id := within(time.Hour)
		m := b.join(id, nil)
		g := b.call("dir")
		for _, c := range []struct {
			name   string
			verify func(context.Context, string) (Identity, error)
			want   wire.AuthError
		}{
			{"refused", refuseAll, wire.AuthRefused},
			{"another agent's", func(context.Context, string) (Identity, error) {
				return Identity{AgentID: "a2", Expires: time.Now().Add(time.Hour)}, nil
			}, wire.AuthRefused},
			{"expired", func(context.Context, string) (Identity, error) {
				return Identity{AgentID: "a1", Expires: time.Now()}, nil
			}, wire.AuthRefused},
			{"cannot tell", func(context.Context, string) (Identity, error) {
				return Identity{}, fmt.Errorf("%w: no keys", ErrUnavailable)
			}, wire.AuthUnavailable},
			{"takes for ever", func(ctx context.Context, _ string) (Identity, error) {
				<-ctx.Done()
				return Identity{}, ctx.Err()
			}, wire.AuthUnavailable},
		} {
			b.verifies(c.verify)
			a := m.renew("s3cret-" + c.name)
			if a.Error != c.want || a.Message == "" {
				t.Errorf("%s: answer %+v", c.name, a)
			}
			if strings.Contains(a.Message, "s3cret") {
				t.Errorf("%s: the token is in the answer", c.name)
			}
			g.works()
			time.Sleep(5 * time.Second)
		}
		if l := b.links("a1")[0]; !l.Expires.Equal(id.Expires) {
			t.Errorf("the expiry moved to %v", l.Expires)
		}
		b.call("dir").works()
		b.wantMetric(3, "nowconnect_tunnel_reauth_total", "agent", "a1", "result", "refused")
		b.wantMetric(2, "nowconnect_tunnel_reauth_total", "agent", "a1", "result", "error")
		for _, e := range b.logs.All() {
			if s := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(s, "s3cret") {
				t.Errorf("the log has %s", s)
			}
		}
	})
}

// TestCredentialThatTheNewConfigurationRefuses: the answer of a configuration
// that is gone by the time it comes does not count.
func TestCredentialThatTheNewConfigurationRefuses(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Hour), nil)
		good := Identity{AgentID: "a1", Method: "test", Credential: [32]byte{7}, Expires: time.Now().Add(time.Hour)}
		b.verifies(func(context.Context, string) (Identity, error) {
			next := *b.cfg
			next.StillValid = func(id Identity) bool { return id.Credential != good.Credential }
			b.h.Apply(&next)
			return good, nil
		})
		if a := m.renew("t"); a.Error != wire.AuthRefused {
			t.Errorf("answer %+v", a)
		}
		b.call("dir").works()
	})
}

// TestSlowVerificationCannotStretchTheGrace: the link ends on time although its
// agent keeps the hub busy with a token that it cannot judge.
func TestSlowVerificationCannotStretchTheGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		start := time.Now()
		m := b.join(within(time.Minute), nil)
		b.verifies(func(ctx context.Context, _ string) (Identity, error) {
			<-ctx.Done()
			return Identity{}, ctx.Err()
		})
		time.Sleep(85 * time.Second)
		m.SendAuth("one")
		m.SendAuth("two")
		if r := linkReason(t, <-m.ended); r != wire.ReasonRevoked || time.Since(start) > 91*time.Second {
			t.Errorf("%v after %v", r, time.Since(start))
		}
	})
}

// TestScopesShrinkAndGrow: what the new token does not give ends, the rest does
// not notice.
func TestScopesShrinkAndGrow(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Hour), nil)
		scope := func(names ...string) {
			b.verifies(func(context.Context, string) (Identity, error) {
				return Identity{AgentID: "a1", Method: "test", Expires: time.Now().Add(time.Hour), Connectors: names}, nil
			})
		}
		lost, kept := b.call("dir"), b.call("other")
		lost.works()
		kept.works()
		scope("other", "unknown")
		if a := m.renew("less"); !slices.Equal(a.Accepted, []string{"other"}) || !slices.Equal(a.Refused, []string{"dir"}) {
			t.Errorf("answer %+v", a)
		}
		lost.want(wire.ReasonRevoked)
		b.call("dir").want(wire.ReasonNoAgent)
		kept.works()
		scope("dir", "other")
		if a := m.renew("more"); !slices.Equal(a.Accepted, []string{"dir", "other"}) || a.Refused != nil {
			t.Errorf("answer %+v", a)
		}
		b.call("dir").works()
		kept.works()
		b.wantMetric(1, "nowconnect_sessions_closed_total", "connector", "dir", "reason", "revoked")
	})
}

// TestNoSessionSlipsThroughAShrinkingScope opens sessions all the while.
func TestNoSessionSlipsThroughAShrinkingScope(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Hour), nil)
		for i := range 20 {
			var guests []*guest
			for range 10 {
				guests = append(guests, b.call("dir"))
			}
			b.verifies(func(context.Context, string) (Identity, error) {
				return Identity{AgentID: "a1", Method: "test", Connectors: []string{"other"}}, nil
			})
			m.renew("less")
			synctest.Wait()
			if n := len(b.h.Sessions("dir")); n != 0 {
				t.Fatalf("round %d: %d sessions on a connector that the credential does not cover", i, n)
			}
			for _, g := range guests {
				if o := <-g.out; o.Reason != wire.ReasonRevoked && o.Reason != wire.ReasonNoAgent {
					t.Fatalf("a session ended with %v", o.Reason)
				}
			}
			b.verifies(func(context.Context, string) (Identity, error) { return Identity{AgentID: "a1", Method: "test"}, nil })
			m.renew("all")
			time.Sleep(5 * time.Second)
		}
	})
}

// TestAuthFlood: a hostile agent's frames are answered, and neither looked at
// nor felt by anybody.
func TestAuthFlood(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		m := b.join(within(time.Hour), nil)
		b.verifies(refuseAll)
		g := b.call("dir")
		g.works()
		const flood = 2000
		token := strings.Repeat("x", wire.MaxData)
		for range flood {
			if err := m.SendAuth(token); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		limited := 0
		for range flood {
			if a := <-m.acks; a.Error == wire.AuthLimit {
				limited++
				if a.RetryAfter != 2000 {
					t.Errorf("answer %+v", a)
				}
			}
		}
		if n := b.numAsked(); n != authBurst || limited != flood-authBurst {
			t.Errorf("%d of %d were looked at, %d refused for their number", n, flood, limited)
		}
		if n := b.logs.FilterMessage("agent sends new credentials faster than they are looked at").Len(); n != 1 {
			t.Errorf("told %d times", n)
		}
		g.works()
		b.wantMetric(flood-authBurst, "nowconnect_tunnel_reauth_total", "agent", "a1", "result", "limited")
		time.Sleep(authEvery)
		b.verifies(func(context.Context, string) (Identity, error) { return Identity{AgentID: "a1", Method: "test"}, nil })
		if a := m.renew("good"); a.Error != "" {
			t.Errorf("later: %+v", a)
		}
		if m.Ended() {
			t.Error("the link has ended")
		}
	})
}

// TestAuthWithoutTheCapability: who was not told reauth must not send AUTH.
func TestAuthWithoutTheCapability(t *testing.T) {
	for name, join := range map[string]func(b *bubble) *member{
		"agent did not ask": func(b *bubble) *member {
			return b.join(within(time.Hour), func(h *wire.Hello) { h.Capabilities = nil })
		},
		"client certificate": func(b *bubble) *member { return b.join(Identity{Bound: true}, nil) },
		"hub that cannot tell": func(b *bubble) *member {
			next := *b.cfg
			next.Reauthenticate = nil
			b.h.Apply(&next)
			return b.join(within(time.Hour), nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, b *bubble) {
				m := join(b)
				if slices.Contains(m.ack.Capabilities, wire.CapReauth) {
					t.Errorf("the agent is told %q", m.ack.Capabilities)
				}
				m.SendAuth("t")
				if r := linkReason(t, <-m.ended); r != wire.ReasonProtocol {
					t.Errorf("the link ended with %v", r)
				}
				if b.numAsked() != 0 {
					t.Error("the token was looked at")
				}
			})
		})
	}
}

// TestHandoverKeepsSessions is a client certificate's renewal: the sessions of
// the old link outlive the certificate that it was made with.
func TestHandoverKeepsSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		cert := func(d time.Duration) Identity { id := within(d); id.Bound = true; return id }
		old := b.join(cert(time.Minute), nil)
		if !slices.Equal(old.ack.Capabilities, []string{wire.CapHandover}) {
			t.Errorf("the agent is told %q", old.ack.Capabilities)
		}
		g := b.call("dir")
		g.works()
		time.Sleep(40 * time.Second)
		fresh := b.join(cert(time.Hour), func(h *wire.Hello) { h.Handover = true })
		next := b.call("dir")
		next.works()
		if old.NumSessions() != 1 || fresh.NumSessions() != 1 {
			t.Errorf("%d sessions on the old link, %d on the new one", old.NumSessions(), fresh.NumSessions())
		}
		time.Sleep(30 * time.Minute)
		g.works()
		if l := b.links("a1"); len(l) != 2 || !l[0].Draining || l[1].Draining {
			t.Errorf("links %+v", l)
		}
		g.leave()
		if r := linkReason(t, <-old.ended); r != wire.ReasonSuperseded {
			t.Errorf("the old link ended with %v", r)
		}
		next.works()
		time.Sleep(30*time.Minute + 29*time.Second)
		next.works()
		next.want(wire.ReasonRevoked) // the new certificate is not renewed
		b.wantMetric(0, "nowconnect_tunnel_reconnects_total", "agent", "a1")
	})
}

// TestHandoverWithASmallerScope ends on the old link what the new credential
// does not give.
func TestHandoverWithASmallerScope(t *testing.T) {
	inBubble(t, func(_ *testing.T, b *bubble) {
		b.join(Identity{Bound: true}, nil)
		lost, kept := b.call("dir"), b.call("other")
		lost.works()
		kept.works()
		b.join(Identity{Bound: true, Connectors: []string{"other"}}, func(h *wire.Hello) { h.Handover = true })
		lost.want(wire.ReasonRevoked)
		kept.works()
	})
}

// TestHandoversAreBounded: an agent cannot pile up links.
func TestHandoversAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		var guests []*guest
		for i := range maxHanded + 3 {
			b.join(Identity{Bound: true}, func(h *wire.Hello) { h.Handover = i > 0 })
			g := b.call("dir")
			g.works()
			guests = append(guests, g)
		}
		time.Sleep(5 * time.Second)
		if n := len(b.links("a1")); n != maxHanded+1 {
			t.Errorf("%d links", n)
		}
		for i, g := range guests {
			if g.live() != (i >= 2) {
				t.Errorf("session %d lives: %v", i, g.live())
			}
		}
	})
}

// TestHandedOverLinkOutlivesItsSuccessor: when the new link is lost and made
// again, the sessions on the old one have nothing to do with that. The
// credential that the agent comes back with counts for them too.
func TestHandedOverLinkOutlivesItsSuccessor(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		b.join(Identity{Bound: true, Expires: time.Now().Add(time.Minute)}, nil)
		kept, lost := b.call("dir"), b.call("other")
		kept.works()
		lost.works()
		fresh := b.join(Identity{Bound: true, Expires: time.Now().Add(time.Hour)}, func(h *wire.Hello) { h.Handover = true })
		fresh.Close(wire.ReasonShutdown, "test")
		b.join(Identity{Bound: true, Connectors: []string{"dir"}}, nil)
		time.Sleep(2 * time.Hour)
		kept.works()
		lost.want(wire.ReasonRevoked)
		kept.leave()
		time.Sleep(time.Second)
		if l := b.links("a1"); len(l) != 1 {
			t.Errorf("links %+v", l)
		}
	})
}

// TestHandoverIsNotForOthers: another process's links are retired as ever, and
// the handover does not lengthen their credential.
func TestHandoverIsNotForOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bubble) {
		other := within(time.Hour)
		b.join(other, func(h *wire.Hello) { h.Instance = "i0" })
		b.join(Identity{}, func(h *wire.Hello) { h.Link = 1 })
		b.join(within(2*time.Hour), func(h *wire.Hello) { h.Handover = true })
		synctest.Wait()
		for _, l := range b.links("a1") {
			if l.Instance == "i0" && !l.Expires.Equal(other.Expires) {
				t.Errorf("another process's link expires at %v", l.Expires)
			}
			if l.Instance == "i1" && l.Link == 1 && (l.Draining || !l.Expires.IsZero()) {
				t.Errorf("another link of the same process: %+v", l)
			}
		}
	})
}
