package wire

import (
	"bytes"
	"testing"
)

// FuzzHeader checks that every header is judged without panic and that what
// Check accepts survives a round trip.
func FuzzHeader(f *testing.F) {
	f.Add(AppendFrame(nil, TypeData, 1, []byte("x")))
	f.Add(AppendCredit(nil, 7, 1<<20))
	f.Add(AppendPing(nil, TypePing, 1))
	f.Add(AppendReason(nil, 0, ReasonProtocol, "why"))
	f.Add(AppendHeader(nil, Header{Type: 0xff, Length: 1<<24 - 1, CID: 1<<32 - 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		h := ParseHeader(b)
		var out [HeaderLen]byte
		h.Put(out[:])
		if !bytes.Equal(out[:], b[:HeaderLen]) {
			t.Errorf("%v encodes to %x, came from %x", h, out, b[:HeaderLen])
		}
		if h.Check() != nil {
			return
		}
		if h.Length > MaxData {
			t.Errorf("%v is accepted", h)
		}
		if p := b[HeaderLen:]; int(h.Length) <= len(p) {
			p = p[:h.Length]
			switch h.Type {
			case TypeRst, TypeClose:
				r, msg := ParseReason(p)
				if !r.Known() || len(msg) > MaxMessage {
					t.Errorf("reason %d, message of %d bytes", r, len(msg))
				}
			case TypeCredit:
				if got := AppendCredit(nil, h.CID, ParseCredit(p)); !bytes.Equal(got[HeaderLen:], p) {
					t.Errorf("credit %x", p)
				}
			case TypePing, TypePong:
				if got := AppendPing(nil, h.Type, ParsePing(p)); !bytes.Equal(got[HeaderLen:], p) {
					t.Errorf("ping %x", p)
				}
			}
		}
	})
}

// FuzzHandshake checks that the JSON messages are judged without panic and
// that what Decode accepts can be sent on and is accepted again.
func FuzzHandshake(f *testing.F) {
	f.Add([]byte(`{"version":1,"agent_id":"premise-1","instance":"i","link":1,"connectors":["addomain"],"window":65536}`))
	f.Add([]byte(`{"version":1,"accepted":["addomain"],"refused":["x"]}`))
	f.Add([]byte(`{"connector":"addomain","session":"s-1","window":1}`))
	f.Add([]byte(`{"error":"limit","message":"m","retry_after_ms":2000}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, TypeHello, &Hello{}, &Hello{})
		again(t, b, TypeHelloAck, &HelloAck{}, &HelloAck{})
		again(t, b, TypeOpen, &Open{}, &Open{})
		again(t, b, TypeAuthAck, &AuthAck{}, &AuthAck{})
	})
}

func again(t *testing.T, b []byte, typ Type, m, n validator) {
	if Decode(b, m) != nil {
		return
	}
	f, err := AppendMessage(nil, typ, 0, m, 1<<24)
	if err != nil {
		t.Fatalf("%v: accepted %q and cannot encode it: %v", typ, b, err)
	}
	if err := Decode(f[HeaderLen:], n); err != nil {
		t.Errorf("%v: %q, encoded again as %q: %v", typ, b, f[HeaderLen:], err)
	}
}
