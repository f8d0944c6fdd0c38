package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// leg is one way from agent to hub.
type leg struct {
	name    string
	plain   bool
	carrier string                                                               // that the links must have
	change  func(t *testing.T, s *site, c *agent.Config) (check func(links int)) // may be nil
}

// forced makes the agent use a carrier by configuration.
func forced(carrier string) func(*testing.T, *site, *agent.Config) func(int) {
	return func(_ *testing.T, _ *site, c *agent.Config) func(int) {
		c.Carrier = carrier
		return func(int) {}
	}
}

// fallback puts an intermediary in between that lets only WebSocket pass.
func fallback(o testpeer.WebSocketOptions) func(*testing.T, *site, *agent.Config) func(int) {
	return func(t *testing.T, s *site, c *agent.Config) func(int) {
		p := testpeer.WebSocketOnlyProxy(t, s.http, o)
		c.URL = "http://" + p.Addr + "/tunnel"
		return func(links int) {
			if p.Refused() < 1 || p.Upgraded() != links {
				t.Errorf("the intermediary refused %d upgrades and let %d pass", p.Refused(), p.Upgraded())
			}
			if v := p.Violations(); v != nil {
				t.Errorf("the intermediary saw %v", v)
			}
			if up, down := p.Messages(); up == 0 || down == 0 {
				t.Errorf("the intermediary saw %d and %d messages", up, down)
			}
		}
	}
}

// throughProxy lets the agent reach the hub through a CONNECT proxy alone: only
// the proxy can resolve the hub's name, and it asks for a password.
func throughProxy(carrier string) func(*testing.T, *site, *agent.Config) func(int) {
	return func(t *testing.T, s *site, c *agent.Config) func(int) {
		hub := hubName + ":443"
		p := testpeer.ConnectProxy(t, testpeer.ConnectProxyOptions{User: "agent", Password: "pr0xy", Hosts: map[string]string{hub: s.https}})
		c.URL, c.ServerName, c.Proxy.HTTPS, c.Carrier = "https://"+hubName, "", p.URL, carrier
		return func(links int) {
			if p.Tunnels() != links || p.Refused() != 0 || p.Targets()[0] != hub {
				t.Errorf("the proxy made %d tunnels to %q and refused %d", p.Tunnels(), p.Targets(), p.Refused())
			}
		}
	}
}

func TestCarriers(t *testing.T) {
	for _, l := range []leg{
		{"native", true, "nowconnect", nil},
		{"native,TLS", false, "nowconnect", nil},
		{"websocket", true, "websocket", forced(agent.CarrierWebSocket)},
		{"websocket,TLS", false, "websocket", forced(agent.CarrierWebSocket)},
		{"fallback from 400", true, "websocket", fallback(testpeer.WebSocketOptions{})},
		{"fallback from a stripped upgrade", true, "websocket", fallback(testpeer.WebSocketOptions{Strip: true})},
		{"CONNECT,native,TLS", false, "nowconnect", throughProxy(agent.CarrierAuto)},
		{"CONNECT,websocket,TLS", false, "websocket", throughProxy(agent.CarrierWebSocket)},
	} {
		t.Run(l.name, func(t *testing.T) { testLeg(t, l) })
	}
}

// legTime is connect_timeout in the tests below.
const legTime = time.Second

func testLeg(t *testing.T, l leg) {
	sums := make(chan checksum, 64)
	resets := make(chan error, 16)
	fins := make(chan error, 16)
	// The listener wrapper stands below TLS here; all other tests are without.
	wrappers := []string{"servers {", "\tlistener_wrappers {", "\t\tnowconnect", "\t\ttls", "\t}", "}"}
	s := startSite(t, siteOptions{plain: l.plain, noAgent: true, globals: wrappers, connectors: []connector{
		{name: "random", target: randomTarget(t, sums).Addr},
		{name: "fin_from_client", target: finTarget(t, true, fins).Addr},
		{name: "fin_from_target", target: finTarget(t, false, fins).Addr},
		{name: "rst_from_client", target: tellsEnd(t, resets).Addr},
		{name: "rst_from_target", target: testpeer.Resetter(t, 1000).Addr},
		{name: "rst_at_once", target: testpeer.Resetter(t, 0).Addr},
		{name: "refuses", target: testpeer.Refuse(t)},
		{name: "blackhole", target: testpeer.Blackhole(t), lines: []string{fmt.Sprintf("connect_timeout %v", legTime)}},
	}})
	check := func(int) {}
	a := s.agent(func(c *agent.Config) {
		c.Links = nearLinks // a proxy hides how near the hub is
		if l.change != nil {
			check = l.change(t, s, c)
		}
	})
	_, agents := s.adminDo("GET", "/nowconnect/agents", "", "")
	if n := strings.Count(agents, fmt.Sprintf(`"carrier": %q`, l.carrier)); n != a.links {
		t.Fatalf("%d of %d links have carrier %s: %s", n, a.links, l.carrier, agents)
	}
	t.Run("random payloads", func(t *testing.T) { testRandom(s.in(t), sums) })
	t.Run("FIN", func(t *testing.T) { testFIN(s.in(t), fins) })
	t.Run("RST", func(t *testing.T) { testRST(s.in(t), resets) })
	t.Run("no target", func(t *testing.T) { testNoTarget(s.in(t)) })
	check(a.links)
}

// checksum is what arrived of the payload with this number.
type checksum struct {
	payload uint64
	bytes   int64
	sum     [sha256.Size]byte
	err     error
}

// payload writes random bytes that follow from number, in pieces of random
// sizes, and returns their checksum. The number goes first.
func payload(w io.Writer, number uint64, size int) checksum {
	r := rand.New(rand.NewPCG(number, 42))
	random := rand.NewChaCha8([32]byte{byte(number), byte(number >> 8)})
	h := sha256.New()
	c := checksum{payload: number}
	w = io.MultiWriter(w, h)
	buf := binary.BigEndian.AppendUint64(make([]byte, 0, 64<<10), number)
	for size > 0 && c.err == nil {
		n, err := w.Write(buf)
		c.bytes, c.err = c.bytes+int64(n), err
		buf = buf[:min(size, 1+r.IntN(1<<(1+r.IntN(16))))]
		random.Read(buf)
		size -= len(buf)
	}
	if c.err == nil {
		n, err := w.Write(buf)
		c.bytes, c.err = c.bytes+int64(n), err
	}
	h.Sum(c.sum[:0])
	return c
}

// receive reads to the end.
func receive(r io.Reader) checksum {
	var number [8]byte
	h := sha256.New()
	_, err := io.ReadFull(r, number[:])
	if err != nil {
		return checksum{err: err}
	}
	h.Write(number[:])
	n, err := io.Copy(h, r)
	c := checksum{payload: binary.BigEndian.Uint64(number[:]), bytes: n + 8, err: err}
	h.Sum(c.sum[:0])
	return c
}

const (
	randomSessions = 8
	randomSize     = 1 << 20 // about, each way
	fromTarget     = 1 << 32 // added to a payload's number for the way back
)

// randomTarget sends each client a payload while it receives one, and tells
// what it received.
func randomTarget(t *testing.T, got chan<- checksum) *testpeer.Target {
	t.Helper()
	return testpeer.Serve(t, func(c *net.TCPConn) {
		var first [8]byte
		if _, err := io.ReadFull(c, first[:]); err != nil {
			got <- checksum{err: err}
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			payload(c, binary.BigEndian.Uint64(first[:])+fromTarget, randomSize) // the client sees what is missing
			c.CloseWrite()
		})
		got <- receive(io.MultiReader(strings.NewReader(string(first[:])), c))
		wg.Wait()
	})
}

func testRandom(s *site, atTarget <-chan checksum) {
	type result struct{ sent, received checksum }
	results := make(chan result, randomSessions)
	for i := range randomSessions {
		c := s.dial("random")
		go func() {
			var r result
			var wg sync.WaitGroup
			wg.Go(func() {
				r.sent = payload(c, uint64(i), randomSize)
				c.CloseWrite()
			})
			r.received = receive(c)
			wg.Wait()
			results <- r
		}()
	}
	sent := make(map[uint64]checksum)
	for range randomSessions {
		r := <-results
		if r.sent.err != nil || r.received.err != nil {
			s.t.Fatalf("payload %d: send: %v, receive: %v", r.sent.payload, r.sent.err, r.received.err)
		}
		sent[r.sent.payload] = r.sent
		if want := payload(io.Discard, r.sent.payload+fromTarget, randomSize); r.received != want {
			s.t.Errorf("a client got %d bytes of %d, with another checksum or of payload %d instead of %d",
				r.received.bytes, want.bytes, r.received.payload, want.payload)
		}
	}
	for range randomSessions {
		if got := <-atTarget; got != sent[got.payload] {
			s.t.Errorf("the target got %d bytes of %d of payload %d, with another checksum, or %v",
				got.bytes, sent[got.payload].bytes, got.payload, got.err)
		}
	}
	s.waitMetric(closed("random", "fin"), randomSessions)
}

// finBytes is what goes one way although the other has ended.
const finBytes = 10 << 20

// stopAndSend sends half of the pattern, waits for the other side's FIN, and
// sends the rest and its own: so the other direction ends in the middle.
func stopAndSend(c *net.TCPConn) error {
	p := testpeer.Pattern(finBytes)
	if _, err := io.CopyN(c, p, finBytes/2); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n != 0 {
		return fmt.Errorf("instead of FIN there are %d bytes, %w", n, err)
	}
	if _, err := io.Copy(c, p); err != nil {
		return fmt.Errorf("send after the other's FIN: %w", err)
	}
	return c.CloseWrite()
}

// endAndReceive reads a quarter of the pattern, ends its own direction, and
// must get the rest.
func endAndReceive(c *net.TCPConn) error {
	got, want := sha256.New(), sha256.New()
	io.Copy(want, testpeer.Pattern(finBytes))
	if n, err := io.CopyN(got, c, finBytes/4); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	n, err := io.Copy(got, c)
	if err != nil {
		return fmt.Errorf("%d bytes after our FIN: %w", n, err)
	}
	if n += finBytes / 4; n != finBytes || [32]byte(got.Sum(nil)) != [32]byte(want.Sum(nil)) {
		return fmt.Errorf("%d bytes of %d, or others", n, finBytes)
	}
	return nil
}

// finTarget is the other side of a client that ends first, or itself ends
// first.
func finTarget(t *testing.T, client bool, end chan<- error) *testpeer.Target {
	t.Helper()
	return testpeer.Serve(t, func(c *net.TCPConn) {
		if client {
			end <- stopAndSend(c)
		} else {
			end <- endAndReceive(c)
		}
	})
}

func testFIN(s *site, atTarget <-chan error) {
	for name, client := range map[string]func(*net.TCPConn) error{
		"fin_from_client": endAndReceive,
		"fin_from_target": stopAndSend,
	} {
		if err := client(s.dial(name)); err != nil {
			s.t.Errorf("%s, at the client: %v", name, err)
		}
		if err := <-atTarget; err != nil {
			s.t.Errorf("%s, at the target: %v", name, err)
		}
		s.waitMetric(closed(name, "fin"), 1)
	}
}

// tellsEnd greets each client, reads until the end, and tells how that was.
func tellsEnd(t *testing.T, end chan<- error) *testpeer.Target {
	t.Helper()
	return testpeer.Serve(t, func(c *net.TCPConn) {
		_, err := io.WriteString(c, "x")
		if err == nil {
			_, err = io.Copy(io.Discard, c)
		}
		end <- err
	})
}

func testRST(s *site, atTarget <-chan error) {
	s.t.Helper()
	// From a client, idle or in the middle of sending, at the target.
	for range 2 {
		for _, bytes := range []int64{0, 1, 3 << 20} {
			c := s.dial("rst_from_client")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				s.t.Fatal(err)
			}
			if _, err := io.Copy(c, testpeer.Pattern(bytes)); err != nil {
				s.t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			if err := <-atTarget; !testpeer.IsReset(err) {
				s.t.Errorf("after the client's RST behind %d bytes the target sees %v", bytes, err)
			}
		}
	}
	s.waitMetric(closed("rst_from_client", "rst"), 6)
	s.waitMetric(`nowconnect_rst_sent_total{connector="rst_from_client"}`, 6)

	// From the target, at the client: after what it got, and at once.
	sees := clientSees(s, "rst_from_target", 1000)
	if !testpeer.IsReset(sees) {
		s.t.Errorf("after the target's RST the client sees %v", sees)
	}
	s.waitMetric(closed("rst_from_target", "rst"), 1)
	s.waitMetric(`nowconnect_rst_recv_total{connector="rst_from_target"}`, 1)
	if sees := clientSees(s, "rst_at_once", 0); !testpeer.IsReset(sees) {
		s.t.Errorf("after the target's RST at once the client sees %v", sees)
	}
	// It may reach the agent before connect returns there, and then tells that
	// connecting failed.
	s.eventually("the RST at once is counted", func() bool {
		m := s.scrape()
		return m[closed("rst_at_once", "rst")]+m[closed("rst_at_once", "connect_failed")] == 1
	})
}

// clientSees connects, sends n bytes, and tells how the connection ends, which
// is an error also if any bytes come. An RST may come before dial returns or
// while it sends: that is how it ends too.
func clientSees(s *site, connector string, n int64) error {
	conn, err := net.DialTimeout("tcp", s.addr(connector), soon)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(soon))
	if _, err := io.Copy(conn, testpeer.Pattern(n)); err != nil {
		return err
	}
	if n, err = io.Copy(io.Discard, conn); n > 0 {
		return fmt.Errorf("%d bytes and %w", n, err)
	}
	return err
}

func testNoTarget(s *site) {
	s.t.Helper()
	for _, n := range []int64{0, 100} { // what follows OPEN may be on its way
		if sees := clientSees(s, "refuses", n); !testpeer.IsReset(sees) {
			s.t.Errorf("a client of a target that refuses sees %v", sees)
		}
	}
	s.waitMetric(closed("refuses", "connect_failed"), 2)

	began := time.Now()
	sees := clientSees(s, "blackhole", 100)
	took := time.Since(began)
	if !testpeer.IsReset(sees) {
		s.t.Errorf("a client of a blackhole sees %v", sees)
	}
	// The slack is for a busy machine; without the bound it would be the
	// kernel's two minutes, or the agent's own 3 s.
	if took < legTime || took > legTime+1500*time.Millisecond {
		s.t.Errorf("a blackhole is found after %v with a connect_timeout of %v", took, legTime)
	}
	s.waitMetric(closed("blackhole", "connect_timeout"), 1)
}
