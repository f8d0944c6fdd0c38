package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

func TestHandshake(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		a, h := tcpPair(t)
		ac, hc := carry(t, carrier, a, h)
		hello := wire.Hello{Version: 1, AgentID: "premise-1", Instance: "i1", Connectors: []string{"addomain"}, Window: 1 << 16}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			got, err := ReadHello(ctx, hc)
			if err == nil && got.AgentID != "premise-1" {
				err = errors.New("wrong id " + got.AgentID)
			}
			if err == nil {
				err = Welcome(hc, wire.HelloAck{Version: 1, Accepted: got.Connectors})
			}
			done <- err
		}()
		ack, err := SayHello(ctx, ac, hello)
		if err != nil || len(ack.Accepted) != 1 {
			t.Errorf("ack %+v, %v", ack, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestHandshakeRefusalIsTold(t *testing.T) {
	a, h := tcpPair(t)
	go Refuse(NewNative(h, nil, nil), wire.ReasonRefused, "who are you")
	_, err := SayHello(context.Background(), NewNative(a, nil, nil), wire.Hello{Version: 1, AgentID: "a", Instance: "i", Window: 1})
	var le *LinkError
	if !errors.As(err, &le) || !le.Remote || le.Reason != wire.ReasonRefused || le.Message != "who are you" {
		t.Errorf("got %v", err)
	}
}

func TestSilentPeerIsCutAtTheHandshakeDeadline(t *testing.T) {
	_, h := tcpPair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	// The socket's deadline and the context's are one instant; either may be first.
	if _, err := ReadHello(ctx, NewNative(h, nil, nil)); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestHelloThatClaimsToBeHugeIsNotRead(t *testing.T) {
	a, h := tcpPair(t)
	a.Write(wire.AppendHeader(nil, wire.Header{Type: wire.TypeHello, Length: 1<<24 - 1}))
	if _, err := ReadHello(context.Background(), NewNative(h, nil, nil)); !errors.Is(err, wire.ErrFrameTooLong) {
		t.Errorf("got %v", err)
	}
}

// hostile joins a real hub link to a peer that writes what the test wants.
func hostile(t *testing.T, cfg Config) (*Link, net.Conn, chan error) {
	t.Helper()
	a, h := tcpPair(t)
	l := NewHubLink(NewNative(h, nil, nil), cfg, DefaultWindow)
	ch := make(chan error, 1)
	go func() { ch <- l.Serve(context.Background()) }()
	t.Cleanup(func() { l.Close(wire.ReasonShutdown, ""); a.Close() })
	return l, a, ch
}

func TestPeerThatBreaksTheProtocolEndsItsLink(t *testing.T) {
	frame := func(t wire.Type, cid wire.CID, n int) []byte {
		return wire.AppendFrame(nil, t, cid, make([]byte, n))
	}
	for name, c := range map[string]struct {
		send []byte
		want error
	}{
		"unknown mandatory frame":  {frame(0x55, 0, 0), wire.ErrUnknownFrame},
		"oversized length":         {wire.AppendHeader(nil, wire.Header{Type: wire.TypeData, Length: 1<<24 - 1, CID: 1}), wire.ErrFrameTooLong},
		"data for an unknown cid":  {frame(wire.TypeData, 77, 5), wire.ErrUnknownCID},
		"reset of an unknown cid":  {frame(wire.TypeRst, 77, 1), wire.ErrUnknownCID},
		"data without a cid":       {frame(wire.TypeData, 0, 5), wire.ErrBadFrame},
		"empty data":               {frame(wire.TypeData, 1, 0), wire.ErrBadFrame},
		"agent opens a session":    {wire.AppendFrame(nil, wire.TypeOpen, 9, []byte("{}")), wire.ErrUnexpected},
		"hello again":              {frame(wire.TypeHello, 0, 10), wire.ErrBadFrame},
		"truncated credit":         {frame(wire.TypeCredit, 1, 3), wire.ErrBadFrame},
		"auth nobody asked for":    {frame(wire.TypeAuth, 0, 3), wire.ErrUnexpected},
		"optional then unknown":    {append(frame(0x81, 7, 100), frame(0x20, 0, 0)...), wire.ErrUnknownFrame},
		"garbage instead of frame": {[]byte("GET / HTTP/1.1\r\n\r\n"), wire.ErrFrameTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			_, peer, ended := hostile(t, Config{})
			peer.Write(c.send)
			err := recv(t, ended)
			if linkReason(t, err) != wire.ReasonProtocol || !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			b, _ := io.ReadAll(peer)
			if !strings.Contains(string(b), c.want.Error()) {
				t.Errorf("the peer was not told why: %q", b)
			}
		})
	}
}

func TestPeerThatIgnoresCreditLosesTheSessionOnly(t *testing.T) {
	l, peer, ended := hostile(t, Config{})
	_, side := tcpPair(t)
	_, other := tcpPair(t)
	s1, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s2, _ := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
	r1, r2 := make(chan Result, 1), make(chan Result, 1)
	go func() { r2 <- s2.Run(Endpoint{Conn: other}) }()
	// Nothing is attached yet, so all of it is queued and none granted again.
	for range 10 {
		peer.Write(wire.AppendFrame(nil, wire.TypeData, 1, make([]byte, wire.MaxData)))
	}
	recv(t, s1.Done())
	go func() { r1 <- s1.Run(Endpoint{Conn: side}) }()
	if r := recv(t, r1); r.Reason != wire.ReasonOverflow || r.Remote {
		t.Errorf("got %+v", r)
	}
	select {
	case err := <-ended:
		t.Fatalf("the link ended: %v", err)
	case r := <-r2:
		t.Fatalf("the other session ended: %+v", r)
	case <-time.After(50 * time.Millisecond):
	}
	peer.Close()
	if r := recv(t, r2); r.Reason != wire.ReasonLinkLost {
		t.Errorf("got %+v", r)
	}
}

func TestFramesForAFinishedSessionAreSkipped(t *testing.T) {
	l, peer, ended := hostile(t, Config{})
	s, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	s.Reset(wire.ReasonRevoked, "test")
	peer.Write(wire.AppendFrame(nil, wire.TypeData, 1, []byte("late")))
	peer.Write(wire.AppendCredit(nil, 1, 5))
	peer.Write(wire.AppendHeader(nil, wire.Header{Type: wire.TypeFin, CID: 1}))
	select {
	case err := <-ended:
		t.Fatalf("the link ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestSilentLinkIsFoundWithinThePingDeadline(t *testing.T) {
	l, _, ended := hostile(t, Config{PingInterval: 50 * time.Millisecond, PingTimeout: 100 * time.Millisecond})
	s, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{})
	if err != nil {
		t.Fatal(err)
	}
	client, side := tcpPair(t)
	res := make(chan Result, 1)
	go func() { res <- s.Run(Endpoint{Conn: side}) }()
	begin := time.Now()
	if r := linkReason(t, recv(t, ended)); r != wire.ReasonPingTimeout {
		t.Errorf("ended with %v", r)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("took %v", d)
	}
	if r := recv(t, res); r.Reason != wire.ReasonLinkLost {
		t.Errorf("session ended with %+v", r)
	}
	wantRST(t, client)
}

func TestCloseTellsThePeerAndEndsSessions(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "tls"})
	st := p.open(SessionConfig{})
	st.client.Write([]byte("x"))
	io.ReadFull(st.target, make([]byte, 1)) // both ends have the session now
	p.hub.Close(wire.ReasonShutdown, "hub stops")
	h, a := st.results(t)
	if h.Reason != wire.ReasonShutdown || a.Reason != wire.ReasonShutdown || !a.Remote {
		t.Errorf("sessions ended with %+v and %+v", h, a)
	}
	wantEOF(t, st.client)
	if _, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{}); linkReason(t, err) != wire.ReasonShutdown {
		t.Errorf("open after close: %v", err)
	}
}

func TestLinkCutEndsSessionsWithReset(t *testing.T) {
	eachCarrier(t, func(t *testing.T, carrier string) {
		p := newPair(t, pairOptions{carrier: carrier})
		st := p.open(SessionConfig{})
		st.client.Write([]byte("x"))
		io.ReadFull(st.target, make([]byte, 1)) // both ends have the session now
		p.agentConn.(*net.TCPConn).SetLinger(0)
		p.agentConn.Close()
		h, a := st.results(t)
		if h.Reason != wire.ReasonLinkLost || a.Reason != wire.ReasonLinkLost {
			t.Errorf("ended with %+v and %+v", h, a)
		}
		wantRST(t, st.client)
		wantRST(t, st.target)
	})
}

func TestDrainLetsSessionsFinishAndRefusesNewOnes(t *testing.T) {
	drained := make(chan string, 1)
	p := newPair(t, pairOptions{carrier: "plain", hub: Config{OnDrain: func(m string) { drained <- m }}})
	st := p.open(SessionConfig{})
	p.agent.Drain("agent stops") // the OPEN may still be under way: it is served
	if m := recv(t, drained); m != "agent stops" {
		t.Errorf("message %q", m)
	}
	if _, err := p.hub.Open(wire.Open{Connector: "c"}, SessionConfig{}); !errors.Is(err, ErrDraining) {
		t.Errorf("open while draining: %v", err)
	}
	st.client.Write([]byte("last words"))
	st.client.CloseWrite()
	if got, _ := io.ReadAll(st.target); string(got) != "last words" {
		t.Errorf("got %q", got)
	}
	st.target.CloseWrite()
	if h, _ := st.results(t); h.Reason != wire.ReasonFin {
		t.Errorf("ended with %+v", h)
	}
}

func TestRTTIsMeasuredAtOnce(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "plain"})
	eventually(t, "RTT on both sides", func() bool { return p.hub.RTT() > 0 && p.agent.RTT() > 0 })
}

// TestAnswersNobodyReadsEndTheLink floods with PINGs and reads nothing.
func TestAnswersNobodyReadsEndTheLink(t *testing.T) {
	_, peer, ended := hostile(t, Config{})
	flood := []byte{}
	for range 4096 {
		flood = wire.AppendPing(flood, wire.TypePing, 1)
	}
	go func() {
		for {
			if _, err := peer.Write(flood); err != nil {
				return
			}
		}
	}()
	if err := recv(t, ended); !errors.Is(err, errControlFlood) {
		t.Errorf("got %v", err)
	}
}
