package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// sink counts what is written and how.
type sink struct {
	net.Conn
	bytes.Buffer
	writes []int
}

func (s *sink) Write(p []byte) (int, error) {
	s.writes = append(s.writes, len(p))
	return s.Buffer.Write(p)
}

func (s *sink) Read(p []byte) (int, error) { return s.Buffer.Read(p) }

// maskNaively is RFC 6455 §5.3 as it stands there.
func maskNaively(src []byte, key [4]byte, pos uint64) []byte {
	dst := make([]byte, len(src))
	for i := range src {
		dst[i] = src[i] ^ key[(pos+uint64(i))%4]
	}
	return dst
}

// All lengths about those at which another way is taken, at all positions, from
// and to all offsets to a vector.
func TestMaskIsThatOfTheRFC(t *testing.T) {
	const vector = 16
	var lengths []int
	for _, near := range []int{0, maskPattern, 2 * maskPattern, 3 * maskPattern} {
		for n := max(near-vector-1, 0); n <= near+vector+1; n++ {
			lengths = append(lengths, n)
		}
	}
	rng := rand.NewChaCha8([32]byte{1})
	buf, out := make([]byte, 4*maskPattern), make([]byte, 4*maskPattern)
	for _, n := range lengths {
		for pos := range uint64(8) {
			for offset := range vector {
				var key [4]byte
				_, _ = rng.Read(key[:])
				_, _ = rng.Read(buf[:offset+n+vector])
				pos, to := pos+rng.Uint64()<<3, int(rng.Uint64()%vector)
				src, want := buf[offset:offset+n], maskNaively(buf[offset:offset+n], key, pos)
				clear(out)
				maskBytes(out[to:], src, key, pos)
				if !bytes.Equal(out[to:to+n], want) || bytes.Count(out[:to], []byte{0}) != to || bytes.Count(out[to+n:], []byte{0}) != len(out)-to-n {
					t.Fatalf("%d bytes at %d, from offset %d to %d: wrong", n, pos, offset, to)
				}
				after := bytes.Clone(buf[offset+n:])
				maskBytes(src, src, key, pos)
				if !bytes.Equal(src, want) || !bytes.Equal(buf[offset+n:], after) {
					t.Fatalf("%d bytes at %d, in place at offset %d: wrong", n, pos, offset)
				}
			}
		}
	}
}

// Messages of any size arrive as they were sent, in full TLS records while there
// is more to send.
func TestMessagesOfAllSizes(t *testing.T) {
	for _, client := range []bool{false, true} {
		conn := &sink{}
		w, r := NewWebSocket(conn, nil, nil, client), NewWebSocket(conn, nil, nil, !client)
		var sent []byte
		for i, n := range []int{1, 125, 126, 4000, 0xffff, 1 << 16, 300_000, messagesSize - 20, 3, messagesSize, 2 * messagesSize} {
			p := make([]byte, n)
			for j := range p {
				p[j] = byte(i + j*j)
			}
			if m, err := w.Write(p); m != n || err != nil {
				t.Fatalf("%d bytes: %d, %v", n, m, err)
			}
			if sent = append(sent, p...); !bytes.Equal(p, sent[len(sent)-n:]) {
				t.Errorf("%d bytes: the caller's were changed", n)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		for i, n := range conn.writes[:len(conn.writes)-1] {
			if n < messagesSize-maxWSHeader {
				t.Errorf("client %v: write %d of %d has %d bytes", client, i, len(conn.writes), n)
			}
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("client %v: wrong bytes arrive, or %v", client, err)
		}
	}
}

// hooked calls before with the number of each write and fails when that does.
type hooked struct {
	sink
	before func(i int) error
}

func (h *hooked) Write(p []byte) (int, error) {
	if err := h.before(len(h.writes)); err != nil {
		return 0, err
	}
	return h.sink.Write(p)
}

// A ping that is read while a message is written in pieces is answered behind
// that message.
func TestPongWaitsForTheMessage(t *testing.T) {
	for _, client := range []bool{false, true} {
		conn, in := &hooked{}, &sink{}
		c := NewWebSocket(conn, in, nil, client)
		conn.before = func(i int) error {
			if i == 1 {
				peer := NewWebSocket(in, nil, nil, !client).(*webSocket)
				if err := peer.message(wsPing, []byte("there?")); err != nil {
					t.Error(err)
				}
				if err := peer.Flush(); err != nil {
					t.Error(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("after the ping: %v", err)
				}
			}
			return nil
		}
		p := bytes.Repeat([]byte{0x8a, 0}, 2*messagesSize) // could be taken for pongs
		for range 2 {
			if _, err := c.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := len(conn.writes); n < 5 {
			t.Fatalf("%d writes: the ping was not in the middle", n)
		}
		var ops []byte
		for conn.Len() > 0 {
			op, payload := frameNaively(t, &conn.Buffer, client)
			ops = append(ops, op)
			switch {
			case op == wsBinary && !bytes.Equal(payload, p):
				t.Errorf("client %v: message %d is not what was sent", client, len(ops))
			case op == wsPong && string(payload) != "there?":
				t.Errorf("client %v: pong %q", client, payload)
			}
		}
		if string(ops) != string([]byte{wsBinary, wsBinary, wsPong}) {
			t.Errorf("client %v: opcodes %v", client, ops)
		}
	}
}

// frameNaively takes a whole frame from r, as RFC 6455 §5.2 draws it.
func frameNaively(t *testing.T, r *bytes.Buffer, masked bool) (op byte, payload []byte) {
	t.Helper()
	h := r.Next(2)
	n := uint64(h[1] & 0x7f)
	if n == 126 {
		n = uint64(binary.BigEndian.Uint16(r.Next(2)))
	} else if n == 127 {
		n = binary.BigEndian.Uint64(r.Next(8))
	}
	var key [4]byte
	if h[1]&0x80 != 0 != masked {
		t.Fatal("wrong masking")
	}
	if masked {
		copy(key[:], r.Next(4))
	}
	if uint64(r.Len()) < n {
		t.Fatalf("a frame of %d bytes, and %d are there", n, r.Len())
	}
	return h[0] & 0x0f, maskNaively(r.Next(int(n)), key, 0)
}

func TestWriteFailsWithAnyPiece(t *testing.T) {
	broken := errors.New("broken")
	for piece := range 3 {
		conn := &hooked{before: func(i int) error {
			if i == piece {
				return broken
			}
			return nil
		}}
		c := NewWebSocket(conn, nil, nil, true)
		if n, err := c.Write(make([]byte, 3*messagesSize)); n != 0 || !errors.Is(err, broken) {
			t.Errorf("piece %d fails: %d, %v", piece, n, err)
		}
	}
}

func TestIdleWebSocketHoldsNoBuffer(t *testing.T) {
	c := NewWebSocket(&sink{}, nil, nil, true).(*webSocket)
	for _, n := range []int{1, messagesSize - maxWSHeader, messagesSize, 3 * messagesSize} {
		if _, err := c.Write(make([]byte, n)); err != nil || c.buf == nil {
			t.Errorf("%d bytes: %v, buffer %v", n, err, c.buf != nil)
		}
		if err := c.Flush(); err != nil || c.buf != nil {
			t.Errorf("flushed after %d bytes: %v, buffer %v", n, err, c.buf != nil)
		}
	}
}

func TestMessagesAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	conn := &sink{}
	w, r := NewWebSocket(conn, nil, nil, true), NewWebSocket(conn, nil, nil, false)
	p := make([]byte, 100_000)
	move := func() {
		conn.writes = conn.writes[:0]
		_, _ = w.Write(p[:200])
		_, _ = w.Write(p)
		_ = w.Flush()
		if _, err := io.ReadFull(r, p[:200]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, p); err != nil {
			t.Fatal(err)
		}
	}
	move()
	if n := testing.AllocsPerRun(200, move); n > 0.1 {
		t.Errorf("%.2f allocations", n)
	}
}

func BenchmarkMask(b *testing.B) {
	for _, n := range []int{32, 100, 300, maskPattern - 1, maskPattern, 1024, 16 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, q := make([]byte, n), make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				maskBytes(q, p, [4]byte{1, 2, 3, 4}, 1)
			}
		})
	}
}

// BenchmarkMessages is what the WebSocket carrier adds to the native one on the
// sending side, without TLS and sockets.
func BenchmarkMessages(b *testing.B) {
	for _, n := range []int{100, 16 << 10, maxQuantum} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := NewWebSocket(discard{}, nil, nil, true)
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = w.Write(p)
				_ = w.Flush()
			}
		})
	}
}

type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
