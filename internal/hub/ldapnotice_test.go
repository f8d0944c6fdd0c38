package hub

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// parseNotice reads b as RFC 4511 §4.4.1 describes a Notice of Disconnection.
func parseNotice(t *testing.T, b []byte) (code int64, text string) {
	t.Helper()
	p, err := ber.DecodePacketErr(b)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Bytes()); n != len(b) {
		t.Errorf("%d bytes after the message", len(b)-n)
	}
	if p.Tag != ber.TagSequence || len(p.Children) != 2 {
		t.Fatalf("not an LDAPMessage of two parts: %v with %d", p.Tag, len(p.Children))
	}
	if id, ok := p.Children[0].Value.(int64); !ok || id != 0 {
		t.Errorf("messageID %v, want 0: it is unsolicited", p.Children[0].Value)
	}
	op := p.Children[1]
	if op.ClassType != ber.ClassApplication || op.Tag != 24 || len(op.Children) != 4 {
		t.Fatalf("not an ExtendedResponse with result and name: class %v tag %v, %d parts", op.ClassType, op.Tag, len(op.Children))
	}
	code, _ = op.Children[0].Value.(int64)
	if op.Children[0].Tag != ber.TagEnumerated {
		t.Errorf("resultCode has tag %v", op.Children[0].Tag)
	}
	if dn := op.Children[1].Data.String(); dn != "" {
		t.Errorf("matchedDN %q", dn)
	}
	name := op.Children[3]
	if name.ClassType != ber.ClassContext || name.Tag != 10 || name.Data.String() != "1.3.6.1.4.1.1466.20036" {
		t.Errorf("responseName is [%d] %q", name.Tag, name.Data.String())
	}
	return code, op.Children[2].Data.String()
}

func TestEveryReasonThatEndsAbnormallyHasAnRFC4511Notice(t *testing.T) {
	codes := map[wire.Reason]int64{wire.ReasonDenied: 50, wire.ReasonRevoked: 50, wire.ReasonLimit: 51}
	for _, r := range wire.SessionReasons() {
		b := newLDAPWatch(nil).farewell(r)
		if r == wire.ReasonFin || r == wire.ReasonRst {
			if b != nil {
				t.Errorf("%v has a notice", r)
			}
			continue
		}
		want := int64(52)
		if c, ok := codes[r]; ok {
			want = c
		}
		if code, text := parseNotice(t, b); code != want || text == "" {
			t.Errorf("%v: code %d %q, want %d", r, code, text, want)
		}
	}
}

// message is an LDAPMessage-shaped SEQUENCE with n bytes inside and its length
// in the given number of bytes; 0 is the short form.
func message(n, lengthBytes int) []byte {
	b := []byte{0x30}
	if lengthBytes == 0 {
		b = append(b, byte(n))
	} else {
		b = append(b, 0x80|byte(lengthBytes))
		for i := lengthBytes - 1; i >= 0; i-- {
			b = append(b, byte(n>>(8*i)))
		}
	}
	return append(b, bytes.Repeat([]byte{0x30}, n)...) // looks like headers inside
}

// boundaries computes, byte by byte and in another way than ldapWatch, where a
// notice may follow.
func boundaries(stream []byte) []bool {
	ok := make([]bool, len(stream)+1)
	for at := 0; ; {
		ok[at] = true
		rest := stream[at:]
		if len(rest) < 2 || rest[0] != 0x30 {
			return ok
		}
		head, n := 2, uint64(rest[1])
		if rest[1] >= 0x80 {
			k := int(rest[1] & 0x7f)
			if k == 0 || k > 8 || len(rest) < 2+k {
				return ok
			}
			head, n = 2+k, 0
			for _, c := range rest[2 : 2+k] {
				n = n<<8 | uint64(c)
			}
		}
		if n > uint64(len(rest)-head) {
			return ok
		}
		at += head + int(n)
	}
}

func FuzzLDAPWatch(f *testing.F) {
	search := append(message(5, 0), message(300, 2)...)
	f.Add(search, []byte{1, 2, 3})
	f.Add(append(message(0, 0), message(130, 4)...), []byte{7})
	f.Add(append(message(12, 0), 0x16, 3, 3, 0, 90), []byte{1})
	f.Add([]byte{0x30, 0x80, 0, 0}, []byte{2})
	f.Add([]byte{0x30, 0x88, 255, 255, 255, 255, 255, 255, 255, 255, 1}, []byte{3})
	f.Add(message(3, 8), []byte{1})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		want := boundaries(stream)
		w := newLDAPWatch([]byte{0x30})
		for at, i := 0, 0; ; i++ {
			if got := w.farewell(wire.ReasonShutdown) != nil; got != want[at] {
				t.Fatalf("after %d of %d bytes % x: notice %v, want %v", at, len(stream), stream, got, want[at])
			}
			if at == len(stream) {
				return
			}
			n := 1
			if len(cuts) > 0 {
				n = max(1, int(cuts[i%len(cuts)]))
			}
			n = min(n, len(stream)-at)
			w.ToLocal(stream[at : at+n])
			at += n
		}
	})
}

func TestNoNoticeInsideTLS(t *testing.T) {
	ldaps := newLDAPWatch([]byte{0x16, 3, 1})
	if ldaps.farewell(wire.ReasonDenied) != nil {
		t.Error("a notice in the clear for an LDAPS client")
	}
	late := newLDAPWatch(nil)
	late.FromLocal([]byte{0x16})
	if late.farewell(wire.ReasonDenied) != nil {
		t.Error("a notice in the clear for an LDAPS client whose first byte came late")
	}
	start := newLDAPWatch([]byte{0x30})
	start.ToLocal(message(20, 0)) // success for StartTLS
	start.ToLocal([]byte{0x16, 3, 3})
	start.ToLocal(message(3, 0)) // ciphertext may look like anything
	if start.farewell(wire.ReasonShutdown) != nil {
		t.Error("a notice in the clear after StartTLS")
	}
}

// TestLDAPClientsGetNotices drives notices through whole connections.
func TestLDAPClientsGetNotices(t *testing.T) {
	answer := message(200, 2)
	for name, c := range map[string]struct {
		hello, reply []byte
		notice       bool
	}{
		"between messages": {message(5, 0), answer, true},
		"mid-message":      {message(5, 0), answer[:50], false},
		"LDAPS":            {[]byte{0x16, 3, 1, 0, 5}, []byte{0x16, 3, 3}, false},
		"after StartTLS":   {message(5, 0), append(message(9, 0), 0x16, 3, 3), false},
	} {
		t.Run(name, func(t *testing.T) {
			k := dir("a1")
			k.LDAP = true
			w := newWorld(t, config(k))
			w.agent(login{id: "a1", target: w.serve(func(tc net.Conn) {
				defer tc.Close()
				io.ReadFull(tc, make([]byte, len(c.hello)))
				tc.Write(c.reply)
				io.Copy(io.Discard, tc)
			})})
			cl := w.client("dir", "10.0.0.1:1")
			cl.Write(c.hello)
			cl.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.ReadFull(cl, make([]byte, len(c.reply))); err != nil {
				t.Fatal(err)
			}
			w.h.Apply(config()) // takes the connector away
			rest, err := io.ReadAll(cl)
			cl.Close()
			cl.want(wire.ReasonRevoked)
			if !c.notice {
				if len(rest) > 0 || err == nil {
					t.Errorf("got % x and %v, want a bare reset", rest, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if code, _ := parseNotice(t, rest); code != 50 {
				t.Errorf("code %d, want 50", code)
			}
		})
	}
}

func TestRefusedLDAPClientIsToldWhy(t *testing.T) {
	k := dir("a1")
	k.LDAP = true
	w := newWorld(t, config(k))
	cl := w.client("dir", "10.0.0.1:1")
	cl.Write(message(5, 0))
	b, err := io.ReadAll(cl)
	if err != nil {
		t.Fatal(err)
	}
	cl.Close()
	cl.want(wire.ReasonNoAgent)
	if code, _ := parseNotice(t, b); code != 52 {
		t.Errorf("code %d, want 52", code)
	}
}
