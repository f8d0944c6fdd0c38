// Package load owns the traffic: one Spec is one measurement of one system in
// one round, one Result its figures.
//
// Invariants: connections are open and warm before the window begins; CPU of
// hub and agent is sampled at the very edges of the window; latencies are kept
// one by one, not bucketed; work that did not finish is counted as such and
// never left out. All conns end with the run, so rounds do not overlap.
package load

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nowconnect/nowconnect/bench/proc"
	"github.com/nowconnect/nowconnect/bench/target"
)

// Kinds of traffic.
const (
	Down    = "down"    // bulk, target to client
	Up      = "up"      // bulk, client to target
	Closed  = "closed"  // closed loop of request and reply on standing connections
	Churn   = "churn"   // connect, one exchange, close, Conns at a time
	Paced   = "paced"   // Conns connections, Rate requests a second each, beside Bulk saturating streams
	Stalled = "stalled" // Stalled clients that never read; then Paced; then one bulk stream
	Idle    = "idle"    // Conns connections that did one exchange and wait
)

// Spec is one measurement.
type Spec struct {
	Kind    string        `json:"kind"`
	Addr    string        `json:"addr"`  // where clients connect
	Count   string        `json:"count"` // the target itself, for counting what sinks took
	Conns   int           `json:"conns"`
	Bulk    int           `json:"bulk,omitempty"`
	Stalled int           `json:"stalled,omitempty"`
	Rate    float64       `json:"rate,omitempty"`
	Warm    time.Duration `json:"warm"`
	Window  time.Duration `json:"window"`
	Hub     int           `json:"hub,omitempty"` // process ids; 0 = there is none
	Agent   int           `json:"agent,omitempty"`
}

// Result maps metric names to figures. Names that begin with "x " explain and
// are not part of the table.
type Result map[string]float64

// Run takes the measurement.
func Run(ctx context.Context, s Spec) (Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &run{Spec: s, ctx: ctx, id: rand.Uint64()}
	defer r.close()
	res, err := r.measure()
	// What has no samples is absent: JSON knows no NaN.
	maps.DeleteFunc(res, func(_ string, v float64) bool { return math.IsNaN(v) })
	return res, err
}

func (r *run) measure() (Result, error) {
	switch r.Kind {
	case Down:
		return r.bulk(r.openSources)
	case Up:
		return r.bulk(r.openSinks)
	case Closed:
		return r.closedLoop()
	case Churn:
		return r.churn()
	case Paced:
		return r.pacedBeside()
	case Stalled:
		return r.stalled()
	case Fidelity:
		return r.fidelity()
	case Refused:
		return r.refused()
	case Recover:
		return r.recover()
	case Ready:
		return r.ready()
	case Idle:
		return r.idle()
	}
	return nil, fmt.Errorf("load: unknown kind %q", r.Kind)
}

type run struct {
	Spec
	ctx context.Context
	id  uint64 // names this run's sinks at the target
	wg  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // guarded by mu; all that close ends
	ended bool       // guarded by mu
}

func (r *run) close() {
	r.mu.Lock()
	r.ended = true
	for _, c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

const ioLimit = 10 * time.Second

// dial connects, says mode and remembers the connection for close.
func (r *run) dial(addr string, first ...byte) (net.Conn, error) {
	d := net.Dialer{Timeout: ioLimit}
	c, err := d.DialContext(r.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		c.Close()
		return nil, net.ErrClosed
	}
	r.conns = append(r.conns, c)
	if len(first) == 0 {
		return c, nil
	}
	_, err = c.Write(first)
	return c, err
}

// exchange does one request and reply; mode, if any, goes ahead in the same write.
func exchange(c net.Conn, mode ...byte) error {
	var req [1 + target.RequestSize]byte
	b := req[:target.RequestSize]
	if len(mode) > 0 {
		b = req[:]
		b[0] = mode[0]
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	var rep [target.ReplySize]byte
	_, err := io.ReadFull(c, rep[:])
	return err
}

// openReady opens n connections, 32 at a time, each of which has done one exchange.
func (r *run) openReady(n int) ([]net.Conn, error) {
	all := make([]net.Conn, n)
	var next, failed atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	for range min(n, 32) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				c, err := r.dial(r.Addr)
				if err == nil {
					_ = c.SetDeadline(time.Now().Add(ioLimit))
					err = exchange(c, target.RequestResponse)
					_ = c.SetDeadline(time.Time{})
				}
				if err != nil {
					first.CompareAndSwap(nil, &err)
					failed.Add(1)
					continue
				}
				all[i] = c
			}
		})
	}
	wg.Wait()
	all = slices.DeleteFunc(all, func(c net.Conn) bool { return c == nil })
	if k := failed.Load(); k > 0 {
		return all, fmt.Errorf("%d of %d connections failed, the first: %w", k, n, *first.Load())
	}
	return all, nil
}

// window warms up, calls begin and end around the measured time, and returns
// its length and what hub and agent used.
func (r *run) window(begin, end func()) (d time.Duration, hub, agent proc.Usage) {
	time.Sleep(r.Warm)
	hub0, agent0 := sample(r.Hub), sample(r.Agent)
	t0 := time.Now()
	begin()
	time.Sleep(r.Window)
	end()
	d = time.Since(t0)
	return d, sample(r.Hub).Sub(hub0), sample(r.Agent).Sub(agent0)
}

func sample(pid int) proc.Usage {
	if pid == 0 {
		return proc.Usage{}
	}
	u, _ := proc.Read(pid) // a dead process shows as errors of the traffic itself
	return u
}

// explain adds what the processes did per unit of work.
func explain(res Result, unit string, n float64, hub, agent proc.Usage) {
	for name, u := range map[string]proc.Usage{"hub": hub, "agent": agent} {
		res["x "+name+" reads/"+unit] = float64(u.Reads) / n
		res["x "+name+" writes/"+unit] = float64(u.Writes) / n
		res["x "+name+" switches/"+unit] = float64(u.Switches) / n
		res["x "+name+" CPU us/"+unit] = float64(u.CPU.Microseconds()) / n
	}
}

// latencies collects durations of many goroutines; each has its own.
type latencies []time.Duration

func merge(all []latencies) latencies {
	l := slices.Concat(all...)
	slices.Sort(l)
	return l
}

// at returns the q-th quantile in microseconds of a sorted list; NaN when empty.
func (l latencies) at(q float64) float64 {
	if len(l) == 0 {
		return math.NaN()
	}
	i := int(math.Ceil(q*float64(len(l)))) - 1
	return float64(l[max(i, 0)]) / float64(time.Microsecond)
}

// churnDialer spreads clients over 127.0.0.0/8 on loopback: one address has
// 28 000 ports, and every closed connection keeps its port for a minute.
func churnDialer(addr string, worker int) net.Dialer {
	d := net.Dialer{Timeout: ioLimit}
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return d
	}
	d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 2, byte(rand.IntN(250)), byte(1+worker%250))}
	d.Control = bindNoPort
	return d
}

// modeWithID is the opening of a Sink or Count connection.
func modeWithID(mode byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{mode}, id)
}

// bindNoPort leaves the choice of the port to connect, which may take one
// that is free for this destination only.
func bindNoPort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}); e != nil {
		return e
	}
	return err
}
