package tunnel

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// TestAuthOverALiveLink renews a credential beside a session, on every carrier.
func TestAuthOverALiveLink(t *testing.T) {
	for _, carrier := range carriers {
		t.Run(carrier, func(t *testing.T) {
			got, acks := make(chan string, 1), make(chan wire.AuthAck, 1)
			p := newPair(t, pairOptions{
				carrier: carrier,
				hub:     Config{OnAuth: func(c []byte) { got <- string(c) }},
				agent:   Config{OnAuthAck: func(a wire.AuthAck) { acks <- a }},
			})
			st := p.open(SessionConfig{})
			token := strings.Repeat("t", wire.MaxData)
			if err := p.agent.SendAuth(token); err != nil {
				t.Fatal(err)
			}
			if recv(t, got) != token {
				t.Error("the token arrives changed")
			}
			if err := p.hub.AnswerAuth(wire.AuthAck{ExpiresIn: 5, Accepted: []string{"test"}}); err != nil {
				t.Fatal(err)
			}
			if a := recv(t, acks); a.ExpiresIn != 5 || len(a.Accepted) != 1 {
				t.Errorf("answer %+v", a)
			}
			st.client.Write([]byte("x"))
			st.client.CloseWrite()
			st.target.CloseWrite()
			if h, a := st.results(t); h.Reason != wire.ReasonFin || a.Reason != wire.ReasonFin {
				t.Errorf("the session ends with %v and %v", h, a)
			}
		})
	}
}

func TestAuthAnswersFitIntoAFrame(t *testing.T) {
	acks := make(chan wire.AuthAck, 1)
	p := newPair(t, pairOptions{carrier: "plain", agent: Config{OnAuthAck: func(a wire.AuthAck) { acks <- a }}})
	many := make([]string, wire.MaxConnectors)
	for i := range many {
		many[i] = fmt.Sprintf("%064d", i)
	}
	if err := p.hub.AnswerAuth(wire.AuthAck{Error: wire.AuthRefused, Message: strings.Repeat("ü", wire.MaxMessage), Accepted: many}); err != nil {
		t.Fatal(err)
	}
	a := recv(t, acks)
	if a.Error != wire.AuthRefused || a.Accepted != nil || len(a.Message) != wire.MaxMessage {
		t.Errorf("answer %+v", a)
	}
	for _, token := range []string{"", strings.Repeat("t", wire.MaxData+1)} {
		if err := p.agent.SendAuth(token); !errors.Is(err, wire.ErrFrameTooLong) {
			t.Errorf("a token of %d bytes: %v", len(token), err)
		}
	}
}

// TestAuthFromTheWrongSide: only hubs answer AUTH, only agents send it, and an
// answer is what the table says.
func TestAuthFromTheWrongSide(t *testing.T) {
	ack := func(s string) []byte { return wire.AppendFrame(nil, wire.TypeAuthAck, 0, []byte(s)) }
	for name, c := range map[string]struct {
		hub  bool // who gets the frame
		send []byte
	}{
		"answer to a hub":   {true, ack("{}")},
		"AUTH to an agent":  {false, wire.AppendFrame(nil, wire.TypeAuth, 0, []byte("token"))},
		"answer is no JSON": {false, ack("yes")},
		"negative time":     {false, ack(`{"expires_in_ms":-1}`)},
		"bad name":          {false, ack(`{"accepted":["../x"]}`)},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := tcpPair(t)
			cfg := Config{OnAuth: func([]byte) { t.Error("taken") }, OnAuthAck: func(wire.AuthAck) { t.Error("taken") }}
			l := NewAgentLink(NewNative(ours, nil, nil), cfg)
			if c.hub {
				l = NewHubLink(NewNative(ours, nil, nil), cfg, DefaultWindow)
			}
			theirs.Write(c.send)
			if r := linkReason(t, l.Serve(t.Context())); r != wire.ReasonProtocol {
				t.Errorf("the link ends with %v", r)
			}
		})
	}
}
