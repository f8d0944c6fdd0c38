package tunnel

import (
	"bytes"
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

func TestMaskIsThatOfTheRFC(t *testing.T) {
	for range 5000 {
		src := make([]byte, rand.IntN(3*maskPattern))
		key := [4]byte{byte(rand.Uint32()), byte(rand.Uint32()), 0, 7}
		pos := rand.Uint64N(9)
		for i := range src {
			src[i] = byte(rand.Uint32())
		}
		want := make([]byte, len(src))
		for i := range src { // RFC 6455 §5.3
			want[i] = src[i] ^ key[(pos+uint64(i))%4]
		}
		got := make([]byte, len(src)+5)
		if maskBytes(got, src, key, pos); !bytes.Equal(got[:len(src)], want) || !bytes.Equal(got[len(src):], make([]byte, 5)) {
			t.Fatalf("%d bytes at %d: wrong", len(src), pos)
		}
		if maskBytes(src, src, key, pos); !bytes.Equal(src, want) {
			t.Fatalf("%d bytes at %d, in place: wrong", len(src), pos)
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
