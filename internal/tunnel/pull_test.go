package tunnel

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Sessions in bulk are read by whoever holds the link. Those that end in the
// middle of it, the holder among them, must not hold up or mix the others.
func TestBulkSessionsComeAndGo(t *testing.T) {
	for _, carrier := range carriers {
		t.Run(carrier, func(t *testing.T) {
			p := newPair(t, pairOptions{carrier: carrier})
			const size = 6 << 20
			type end struct {
				st   *stream
				sums [2]chan [32]byte // what was sent; what arrived
			}
			var stay []*end
			for i := range 12 {
				st := p.open(SessionConfig{})
				if i%3 == 0 { // resets while it is in bulk, each at another moment
					go io.Copy(st.client, endless{})
					go func() {
						n := int64(1+i) * 300_000
						if _, err := io.CopyN(io.Discard, st.target, n); err != nil {
							t.Error(err)
						}
						if i%2 == 0 {
							st.client.SetLinger(0)
							st.client.Close()
						} else {
							st.session.Reset(wire.ReasonRevoked, "test")
						}
					}()
					continue
				}
				e := &end{st: st, sums: [2]chan [32]byte{make(chan [32]byte, 1), make(chan [32]byte, 1)}}
				stay = append(stay, e)
				go func() {
					h := sha256.New()
					src := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
					if _, err := io.Copy(io.MultiWriter(st.client, h), src); err != nil {
						t.Error(err)
					}
					st.client.CloseWrite()
					e.sums[0] <- [32]byte(h.Sum(nil))
				}()
				go func() {
					h := sha256.New()
					if n, err := io.Copy(h, st.target); err != nil || n != size {
						t.Errorf("%d bytes and %v, want %d", n, err, size)
					}
					st.target.CloseWrite()
					e.sums[1] <- [32]byte(h.Sum(nil))
				}()
			}
			for _, e := range stay {
				if recv(t, e.sums[0]) != recv(t, e.sums[1]) {
					t.Error("what arrived is not what was sent")
				}
				if h, a := e.st.results(t); h.Reason != wire.ReasonFin || a.Reason != wire.ReasonFin || h.Sent != size || a.Received != size {
					t.Errorf("ended with %+v at the hub, %+v at the agent", h, a)
				}
			}
		})
	}
}

// endless yields bytes for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A link that dies under a pull ends all its sessions.
func TestLinkDiesUnderPull(t *testing.T) {
	for range 10 {
		p := newPair(t, pairOptions{carrier: "tls"})
		var all []*stream
		for range 6 {
			st := p.open(SessionConfig{})
			all = append(all, st)
			go io.Copy(st.client, endless{})
			io.ReadFull(st.target, make([]byte, 1<<20))
		}
		p.agentConn.(*net.TCPConn).SetLinger(0)
		p.agentConn.Close()
		for _, st := range all {
			if h, a := st.results(t); h.Reason != wire.ReasonLinkLost || a.Reason != wire.ReasonLinkLost {
				t.Errorf("ended with %+v at the hub, %+v at the agent", h, a)
			}
		}
		p.hub.out.mu.Lock()
		if n := len(p.hub.out.pulls); n != 0 || p.hub.out.turn != nil {
			t.Errorf("%d sessions wait for a turn on a dead link", n)
		}
		p.hub.out.mu.Unlock()
	}
}

// A session in bulk that waits for more holds no buffer, and goes on.
func TestPullAfterPause(t *testing.T) {
	p := newPair(t, pairOptions{carrier: "tls"})
	st := p.open(SessionConfig{})
	sent, buf := make([]byte, 1<<20), make([]byte, 1<<20)
	for range 3 {
		go st.client.Write(sent)
		if _, err := io.ReadFull(st.target, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.hub.out.mu.Lock()
	active, busy := st.session.pull.active, p.hub.out.busy
	p.hub.out.mu.Unlock()
	if active || busy {
		t.Errorf("idle, and still pulling: %v, %v", active, busy)
	}
	st.client.CloseWrite()
	wantEOF(t, st.target)
	st.target.CloseWrite()
	if h, _ := st.results(t); h.Reason != wire.ReasonFin || h.Sent != 3<<20 {
		t.Errorf("%+v", h)
	}
}

// aheadPair is a TLS connection whose client reads ahead, and what comes to it.
func aheadPair(t *testing.T) (client, server *tls.Conn, slow *slowly) {
	a, h := tcpPair(t)
	slow = &slowly{Conn: h}
	cert, pool := testCert(t)
	client = tls.Client(NewGather(a), &tls.Config{RootCAs: pool, ServerName: "hub.test"})
	server = tls.Server(slow, &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true})
	errc := make(chan error, 1)
	go func() { errc <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-errc; err != nil {
		t.Fatal(err)
	}
	return client, server, slow
}

// slowly is a connection that keeps the second half of each write until it is
// asked for.
type slowly struct {
	net.Conn
	on   bool
	kept []byte
}

func (c *slowly) Write(p []byte) (int, error) {
	if !c.on {
		return c.Conn.Write(p)
	}
	c.kept = append(c.kept, p[len(p)/2:]...)
	_, err := c.Conn.Write(p[:len(p)/2])
	return len(p), err
}

func (c *slowly) rest() {
	_, _ = c.Conn.Write(c.kept)
	c.kept = nil
}

// Reading ahead finds what is there, waits for nothing, and leaves the
// connection as it was: with nothing there, with half a record, at the end.
func TestReadAhead(t *testing.T) {
	for name, carrier := range map[string]func(client net.Conn) Carrier{
		"native":    func(c net.Conn) Carrier { return NewNative(c, nil, nil) },
		"websocket": func(c net.Conn) Carrier { return NewWebSocket(c, nil, nil, true) },
	} {
		t.Run(name, func(t *testing.T) {
			client, server, slow := aheadPair(t)
			c := carrier(client)
			ahead := c.(aheader)
			peer := NewNative(server, nil, nil)
			if name == "websocket" {
				peer = NewWebSocket(server, nil, nil, false)
			}
			send := func(p []byte) {
				t.Helper()
				if _, err := peer.Write(p); err != nil {
					t.Fatal(err)
				}
				if err := peer.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 64<<10)
			none := func(when string) {
				t.Helper()
				if n := ahead.readAhead(buf); n != 0 {
					t.Fatalf("%s: %d bytes", when, n)
				}
			}
			gather := func(want []byte) {
				t.Helper()
				var got []byte
				eventually(t, "all of it is found", func() bool {
					n := ahead.readAhead(buf)
					got = append(got, buf[:n]...)
					return len(got) >= len(want)
				})
				if string(got) != string(want) {
					t.Error("what was read ahead is not what was sent")
				}
			}
			none("nothing was sent")
			sent := make([]byte, 40_000)
			rand.NewChaCha8([32]byte{}).Read(sent)
			send(sent)
			gather(sent)
			none("all was read")

			slow.on = true
			send(sent[:9000])
			time.Sleep(10 * time.Millisecond)
			none("half a record")
			slow.rest()
			slow.on = false
			gather(sent[:9000])

			send([]byte("more"))
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "more" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if err := server.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			none("after the end")
			if n, err := c.Read(buf); !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes and %v, want the end", n, err)
			}
		})
	}
}

// The look for more, which every burst ends with, allocates nothing.
func TestReadAheadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	client, _, _ := aheadPair(t)
	for _, c := range []aheader{
		NewNative(client, nil, nil).(aheader), NewWebSocket(client, nil, nil, true).(aheader),
	} {
		buf := make([]byte, 16<<10)
		if n := testing.AllocsPerRun(100, func() { c.readAhead(buf) }); n > 1 { // one is crypto/tls's own
			t.Errorf("%T: %.1f allocations", c, n)
		}
	}
}

// Control messages of WebSocket in the middle of bulk are for Read.
func TestReadAheadLeavesControl(t *testing.T) {
	client, server, _ := aheadPair(t)
	c := NewWebSocket(client, nil, nil, true)
	ping := []byte{0x89, 0} // a whole one, and bytes enough behind it for a header
	data := append([]byte{0x82, 20}, make([]byte, 20)...)
	if _, err := server.Write(append(ping, data...)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	time.Sleep(10 * time.Millisecond)
	if n := c.(aheader).readAhead(buf); n != 0 {
		t.Errorf("%d bytes past a ping", n)
	}
	if n, err := c.Read(buf); err != nil || n != 20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}
