package tunnel

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// TestEndOfASessionThatIsStuckInTheLink ends a session whose goroutine is
// writing to a link that takes no more, as one whose peer has vanished. Its
// client must not wait until the link is found dead.
func TestEndOfASessionThatIsStuckInTheLink(t *testing.T) {
	for name, end := range map[string]func(*Session){
		"reset":   func(s *Session) { s.Reset(wire.ReasonRevoked, "test") },
		"by peer": func(s *Session) { s.fromReset(wire.ReasonRevoked, "test") },
	} {
		t.Run(name, func(t *testing.T) {
			peer, hub := tcpPair(t)
			l := NewHubLink(NewNative(hub, nil, nil), Config{PingInterval: time.Hour, PingTimeout: time.Hour}, wire.MaxWindow)
			served := make(chan error, 1)
			go func() { served <- l.Serve(context.Background()) }()
			defer func() { peer.Close(); l.Close(wire.ReasonShutdown, ""); <-served }()

			client, side := tcpPair(t)
			s, err := l.Open(wire.Open{Connector: "test", Session: "s"}, SessionConfig{})
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan Result, 1)
			go func() { result <- s.Run(Endpoint{Conn: side}) }()
			wrote := make(chan error, 1)
			go func() {
				_, err := io.Copy(client, neverEnding{})
				wrote <- err
			}()
			stuck := func() bool {
				l.out.mu.Lock()
				defer l.out.mu.Unlock()
				return s.writing > 0
			}
			eventually(t, "the session is stuck", func() bool {
				for range 20 { // for longer than a write that goes on
					if !stuck() {
						return false
					}
					time.Sleep(5 * time.Millisecond)
				}
				return true
			})
			end(s)
			select {
			case err := <-wrote:
				if !isResetErr(err) {
					t.Errorf("the client sees %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the client's connection lives on")
			}
			if !stuck() || l.Ended() || l.NumSessions() != 0 {
				t.Errorf("stuck %v, link over %v, %d sessions: the test shows nothing", stuck(), l.Ended(), l.NumSessions())
			}
			// The link moves again, and goes on.
			go io.Copy(io.Discard, peer)
			want := wire.ReasonRevoked
			if name == "by peer" {
				want = wire.ReasonRst // revoked is not an agent's to say
			}
			if r := recv(t, result); r.Reason != want {
				t.Errorf("the session ended with %v", r.Reason)
			}
			if l.Ended() {
				t.Error("the link ended too")
			}
		})
	}
}

// neverEnding is a client that has much to say.
type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }
