package tunnel

import (
	"fmt"
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

// What every frame does apart from moving bytes: the session of a cid is looked
// up, its credit is spent, granted again, and taken from the peer.
func TestBookkeepingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l, sessions := manySessions(1000)
	i := 0
	n := testing.AllocsPerRun(2000, func() {
		s, known := l.session(sessions[i%len(sessions)].cid)
		if s == nil || !known {
			t.Fatal("no such session")
		}
		creditBothWays(l, s)
		i++
	})
	if n > 0 {
		t.Errorf("%.2f allocations", n)
	}
}

// manySessions returns a link that is not served, as if somebody else were
// writing to its carrier.
func manySessions(n int) (*Link, []*Session) {
	l := NewHubLink(NewNative(discard{}, nil, nil), Config{}, DefaultWindow)
	l.Hold()
	all := make([]*Session, n)
	for i := range all {
		s := newSession(l, wire.CID(i+1), SessionConfig{})
		s.ep = &Endpoint{}
		s.window, s.avail, s.maxWindow = DefaultWindow, DefaultWindow, DefaultWindow
		l.sessions[s.cid], l.lastCID = s, s.cid
		all[i] = s
	}
	return l, all
}

// creditBothWays takes credit from the peer, and grants it as much after a
// quarter of the window has been written to the local side.
func creditBothWays(l *Link, s *Session) {
	l.out.credit(s, 1)
	s.mu.Lock()
	s.avail -= int64(len(quarter))
	grant := s.wroteLocked(quarter[:])
	s.mu.Unlock()
	s.grant(grant)
	l.out.control = l.out.control[:0] // the writer takes it
}

var quarter [DefaultWindow / 4]byte

func BenchmarkCredit(b *testing.B) {
	l, sessions := manySessions(1)
	b.ReportAllocs()
	for b.Loop() {
		creditBothWays(l, sessions[0])
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l, sessions := manySessions(n)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if s, _ := l.session(sessions[i*7919%n].cid); s == nil {
					b.Fatal("no such session")
				}
				i++
			}
		})
	}
}

// BenchmarkBulk moves a stream through a session: read from one socket, framed,
// sent, received and written to the other.
func BenchmarkBulk(b *testing.B) {
	for _, carrier := range carriers {
		for _, up := range []bool{false, true} {
			name := map[bool]string{false: "down ", true: "up "}[up] + carrier
			b.Run(name, func(b *testing.B) {
				p := newPair(b, pairOptions{carrier: carrier})
				st := p.open(SessionConfig{Observer: new(counting)})
				from, to := st.target, st.client
				if up {
					from, to = to, from
				}
				buf, in := make([]byte, 64<<10), make([]byte, 64<<10)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					for range b.N {
						if _, err := from.Write(buf); err != nil {
							return
						}
					}
				}()
				for range b.N {
					if _, err := io.ReadFull(to, in); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
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
