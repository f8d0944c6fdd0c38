package tunnel

import (
	"io"
	"testing"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// TestSteadyStateAllocatesNothing moves many frames through a session and
// counts allocations of the whole process.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	p := newPair(t, pairOptions{carrier: "plain"})
	st := p.open(SessionConfig{Observer: new(counting)})
	buf := make([]byte, 256)
	request := func() {
		if _, err := st.client.Write(buf[:100]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st.target, buf[:100]); err != nil {
			t.Fatal(err)
		}
		if _, err := st.target.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st.client, buf); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		request() // fills the pools
	}
	if n := testing.AllocsPerRun(2000, request); n > 0.1 {
		t.Errorf("%.2f allocations per request of two frames", n)
	}
}

// Over TLS crypto/tls itself allocates a few bytes per record it reads; this is
// about our part.
func TestBulkAllocatesNothingPerFrame(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	p := newPair(t, pairOptions{carrier: "plain"})
	st := p.open(SessionConfig{})
	const size = 4 << 20
	buf := make([]byte, size)
	move := func() {
		go st.target.Write(buf)
		if _, err := io.ReadFull(st.client, buf); err != nil {
			t.Fatal(err)
		}
	}
	move()
	frames := float64(size / wire.MaxData)
	if n := testing.AllocsPerRun(20, move); n > frames/10 {
		t.Errorf("%.0f allocations for %.0f frames", n, frames)
	}
}

// BenchmarkBulk moves a stream through a session, towards the client.
func BenchmarkBulk(b *testing.B) {
	for _, carrier := range carriers {
		b.Run(carrier, func(b *testing.B) {
			p := newPair(b, pairOptions{carrier: carrier})
			st := p.open(SessionConfig{Observer: new(counting)})
			buf, in := make([]byte, 64<<10), make([]byte, 64<<10)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				for range b.N {
					if _, err := st.target.Write(buf); err != nil {
						return
					}
				}
			}()
			for range b.N {
				if _, err := io.ReadFull(st.client, in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRequest sends 100 bytes and gets 300 back, one at a time.
func BenchmarkRequest(b *testing.B) {
	for _, carrier := range carriers {
		b.Run(carrier, func(b *testing.B) {
			p := newPair(b, pairOptions{carrier: carrier})
			st := p.open(SessionConfig{Observer: new(counting)})
			buf := make([]byte, 300)
			b.ReportAllocs()
			for b.Loop() {
				st.client.Write(buf[:100])
				io.ReadFull(st.target, buf[:100])
				st.target.Write(buf)
				if _, err := io.ReadFull(st.client, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
