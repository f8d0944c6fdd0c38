package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// flood sends an endless pattern to whoever asks by a first byte of 'p', and
// echoes everybody else. sent counts what its sockets took.
func flood(t *testing.T, sent *atomic.Int64) *testpeer.Target {
	t.Helper()
	return testpeer.Serve(t, func(c *net.TCPConn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[0] != 'p' {
			if _, err := io.Copy(c, io.MultiReader(bytes.NewReader(first), c)); err == nil {
				c.CloseWrite()
			}
			return
		}
		io.Copy(countWriter{c, sent}, testpeer.Pattern(1<<40)) // until the client goes
	})
}

// countWriter counts what its writer took.
type countWriter struct {
	w io.Writer
	n *atomic.Int64
}

func (w countWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// settled waits until a count has not moved for a second: what was sent has
// gone as far as it can. If flow control did not stop the sender, it would go
// on for ever, and the test fails.
func settled(s *site, what string, count *atomic.Int64) {
	s.t.Helper()
	last, since := count.Load(), time.Now()
	s.eventually(what+" has stopped", func() bool {
		if n := count.Load(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > time.Second
	})
}

const (
	queueSeries = `nowconnect_inbound_queue_size{connector="bulk"}`
	depthSeries = `nowconnect_queue_depth_per_cid{connector="bulk"}`
	writeSeries = `nowconnect_write_drain_seconds_count{connector="bulk",phase="write"}`
	drainSeries = `nowconnect_write_drain_seconds_count{connector="bulk",phase="drain"}`
)

// One client takes what fills its window and then reads no more. All sessions
// share one link.
func TestStalledClient(t *testing.T) {
	const depth = 64 // frames: 1 MiB
	var sent atomic.Int64
	s := startSite(t, siteOptions{
		hub:        []string{"ping_interval 50ms", "ping_timeout 20s"},
		connectors: []connector{{name: "bulk", target: flood(t, &sent).Addr, lines: []string{fmt.Sprintf("queue_depth_per_cid %d", depth)}}},
		noAgent:    true,
	})
	// With a round trip of 20 ms half a window is used up within two of them
	// also on a busy machine, so that the window grows to its bound.
	wan := testpeer.TCPProxy(t, s.https)
	wan.Delay(10 * time.Millisecond)
	s.agent(func(c *agent.Config) { c.Links, c.URL = 1, "https://"+wan.Addr+"/tunnel" })
	rtt := fmt.Sprintf("nowconnect_tunnel_rtt_seconds_count{agent=%q}", agentID)
	s.eventually("the round trip is measured", func() bool { return s.metric(rtt) >= 5 })

	stalled := s.dial("bulk")
	io.WriteString(stalled, "p")
	pattern := testpeer.Pattern(1 << 40)
	const taken = 12 << 20
	compare(t, stalled, pattern, taken)
	over := watchQueue(s, depth)
	settled(s, "the target of the stalled client", &sent)

	// Alone, it raises drain and not write. What it has in flight is what its
	// window allows: a quarter of it may be read and not granted again.
	before := s.scrape()
	if q := before[queueSeries]; q < depth*3/4 || q > depth || before[depthSeries] != depth {
		t.Errorf("queue %v of %v, not nearly full", q, before[depthSeries])
	}
	s.eventually("phase drain counts the stalled client", func() bool { return s.metric(drainSeries) >= before[drainSeries]+3 })
	after := s.scrape()
	if after[writeSeries] != before[writeSeries] || after[queueSeries] != before[queueSeries] {
		t.Errorf("while stalled alone phase write went from %v to %v, the queue from %v to %v",
			before[writeSeries], after[writeSeries], before[queueSeries], after[queueSeries])
	}

	// Every other session completes: many short ones, and bulk both ways at
	// once.
	for i := range 50 {
		c := s.dial("bulk")
		roundTrip(t, c, fmt.Sprintf("request %d", i))
		c.Close()
	}
	const others, size = 8, 1 << 20
	errs := make(chan error, others)
	for range others {
		c := s.dial("bulk")
		go func() {
			go func() {
				io.Copy(c, testpeer.Pattern(size)) // the reader misses what is not sent
				c.CloseWrite()
			}()
			errs <- equal(c, testpeer.Pattern(size), size, true)
		}()
	}
	for range others {
		if err := <-errs; err != nil {
			t.Errorf("beside a stalled client: %v", err)
		}
	}
	m := s.scrape()
	if m[closed("bulk", "fin")] < others {
		t.Errorf("%v sessions ended in order", m[closed("bulk", "fin")])
	}
	s.waitMetric(active("bulk"), 1)
	if q := s.metric(queueSeries); q != after[queueSeries] {
		t.Errorf("the stalled client's queue went from %v to %v", after[queueSeries], q)
	}

	// And it goes on where it stopped when the client reads again.
	compare(t, stalled, pattern, 8<<20)
	over()
}

// watchQueue scrapes the queue until the returned function is called, which
// fails the test if it was ever deeper than its bound.
func watchQueue(s *site, depth float64) (check func()) {
	var most float64 // of the whole watch; set by stop
	quit, deepest := make(chan struct{}), make(chan float64)
	go func() {
		deep := 0.0
		for {
			select {
			case <-quit:
				deepest <- deep
				return
			case <-time.After(20 * time.Millisecond):
				m, err := s.tryScrape()
				if err != nil {
					s.t.Error(err)
				}
				deep = max(deep, m[queueSeries])
			}
		}
	}()
	stop := sync.OnceFunc(func() { close(quit); most = <-deepest })
	s.t.Cleanup(stop) // also if the test fails before
	return func() {
		s.t.Helper()
		stop()
		if most > depth || most == 0 {
			s.t.Errorf("the deepest queue is %v frames, with a bound of %v", most, depth)
		}
	}
}

// compare reads n bytes of the pattern.
func compare(t *testing.T, c io.Reader, want io.Reader, n int64) {
	t.Helper()
	if err := equal(c, want, n, false); err != nil {
		t.Fatal(err)
	}
}

// equal compares n bytes, and that the end follows them.
func equal(c, want io.Reader, n int64, end bool) error {
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for left := n; left > 0; {
		k := min(left, int64(len(a)))
		if _, err := io.ReadFull(c, a[:k]); err != nil {
			return fmt.Errorf("with %d of %d bytes to come: %w", left, n, err)
		}
		io.ReadFull(want, b[:k])
		if !bytes.Equal(a[:k], b[:k]) {
			return fmt.Errorf("other bytes, with %d of %d to come", left, n)
		}
		left -= k
	}
	if end {
		if k, err := c.Read(a); k != 0 || err != io.EOF {
			return fmt.Errorf("%d bytes and %w after the last", k, err)
		}
	}
	return nil
}

// Many clients that stop reading, and as many targets that do, each with a
// window that has grown: the hub's and the agent's memory bounds hold for the
// sum. What counts is the live heap of this process, in which both run, and
// that everything comes to rest: without a bound neither would.
func TestStalledMemory(t *testing.T) {
	const each, bound = 16, 8 << 20
	var sent, pushed atomic.Int64
	reads := testpeer.Serve(t, func(c *net.TCPConn) {
		io.CopyN(io.Discard, c, 2<<20)
		io.WriteString(c, "x")
		<-t.Context().Done()
	})
	s := startSite(t, siteOptions{
		hub: []string{"agent_memory 8MiB"},
		connectors: []connector{
			{name: "bulk", target: flood(t, &sent).Addr},
			{name: "push", target: reads.Addr},
		},
		agent: func(c *agent.Config) { c.Memory = bound },
	})
	var conns []*net.TCPConn
	for range each {
		conns = append(conns, s.dial("bulk"), s.dial("push"))
	}
	s.waitMetric(active("bulk"), each)
	s.waitMetric(active("push"), each)
	empty := heap()

	done := make(chan error, 2*each)
	for i, c := range conns {
		go func() {
			if i%2 == 0 { // reads some and then no more
				io.WriteString(c, "p")
				done <- equal(c, testpeer.Pattern(2<<20), 2<<20, false)
				return
			}
			io.Copy(countWriter{c, &pushed}, testpeer.Pattern(1<<40)) // until the end of the test
			done <- nil
		}()
	}
	t.Cleanup(func() {
		for range each {
			<-done
		}
	})
	for range each {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i, c := range conns {
		if i%2 == 1 { // its target has read some
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	settled(s, "all that flows to clients", &sent)
	settled(s, "all that flows to targets", &pushed)
	grown := heap() - empty
	t.Logf("%d stalled sessions hold %.1f MiB in hub and agent together, with bounds of %d MiB each", 2*each, float64(grown)/(1<<20), bound>>20)
	// Beside the windows there are what the sessions had read from their
	// sockets when their credit ended (64 KiB each at most) and the buffers of
	// this test (64 KiB for each client and target).
	if limit := int64(2*bound + 2*each*(64<<10) + 4*each*(64<<10)); grown > limit {
		t.Errorf("that is more than %d bytes", limit)
	}
	for _, c := range conns {
		c.SetLinger(0) // FIN would have to wait behind what no target reads
		c.Close()
	}
	s.waitMetric(active("bulk"), 0)
	s.waitMetric(active("push"), 0)
}

// heap is the live heap, without what pools keep.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // a pool keeps what it has over one collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
