package tunnel

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// script is a carrier that reads prepared bytes and swallows what is written.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Flush() error                     { return nil }
func (script) Close() error                     { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }
func (script) Name() string                     { return "script" }

// FuzzLink feeds a hub's or an agent's link whatever comes. It must end, free
// its budget, and hold no more of any session than was granted.
func FuzzLink(f *testing.F) {
	open, _ := wire.AppendMessage(nil, wire.TypeOpen, 1, &wire.Open{Connector: "c", Window: 5}, wire.MaxData)
	data := wire.AppendFrame(nil, wire.TypeData, 1, []byte("payload"))
	f.Add(true, data)
	f.Add(true, wire.AppendHeader(nil, wire.Header{Type: wire.TypeOpened, CID: 1}))
	f.Add(true, bytes.Repeat(wire.AppendFrame(nil, wire.TypeData, 2, make([]byte, wire.MaxData)), 6))
	f.Add(false, append(append(open, data...), wire.AppendReason(nil, 1, wire.ReasonRst, "x")...))
	f.Add(false, wire.AppendPing(wire.AppendCredit(nil, 1, 1<<31), wire.TypePing, 1))
	f.Add(true, wire.AppendReason(nil, 0, wire.ReasonShutdown, "bye"))
	f.Add(true, wire.AppendFrame(nil, wire.TypeAuth, 0, []byte("token")))
	f.Add(false, wire.AppendFrame(nil, wire.TypeAuthAck, 0, []byte(`{"error":"limit","retry_after_ms":2000}`)))
	f.Fuzz(func(t *testing.T, hub bool, in []byte) {
		budget := NewBudget(1 << 20)
		cfg := Config{Budget: budget, PingInterval: time.Hour, PingTimeout: time.Hour}
		c := script{bytes.NewReader(in)}
		var l *Link
		if hub {
			cfg.OnAuth = func(p []byte) { _ = l.AnswerAuth(wire.AuthAck{Error: wire.AuthRefused, Message: string(p)}) }
			l = NewHubLink(c, cfg, DefaultWindow)
			for range 3 {
				if _, err := l.Open(wire.Open{Connector: "c"}, SessionConfig{}); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			var held []*Session
			cfg.OnOpen = func(s *Session) { held = append(held, s) }
			l = NewAgentLink(c, cfg)
			defer func() {
				for _, s := range held {
					if s.Queued() > DefaultWindow {
						t.Errorf("%d bytes queued", s.Queued())
					}
				}
			}()
		}
		if err := l.Serve(context.Background()); err == nil {
			t.Error("no reason")
		}
		if n := l.NumSessions(); n != 0 {
			t.Errorf("%d sessions outlive the link", n)
		}
		if n := budget.Used(); n != 0 {
			t.Errorf("%d bytes of budget leaked", n)
		}
	})
}

// FuzzWebSocket feeds the WebSocket carrier whatever comes, on both ends.
func FuzzWebSocket(f *testing.F) {
	f.Add(true, []byte{0x82, 5, 'h', 'e', 'l', 'l', 'o'})
	f.Add(false, []byte{0x82, 0x85, 1, 2, 3, 4, 'h', 'e', 'l', 'l', 'o', 0x89, 0x80, 0, 0, 0, 0})
	f.Add(true, []byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(false, []byte{0x88, 0x82, 0, 0, 0, 0, 3, 0xe8})
	f.Fuzz(func(t *testing.T, client bool, in []byte) {
		c := NewWebSocket(nil, bytes.NewReader(in), nil, client)
		n, err := io.Copy(io.Discard, c)
		if n > int64(len(in)) {
			t.Errorf("%d bytes out of %d, %v", n, len(in), err)
		}
	})
}
