package testpeer

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Proxy forwards TCP connections to a target and can behave like a bad
// network. A FIN is passed on as a FIN and a reset as a reset.
type Proxy struct {
	Addr   string
	Target string

	accepted atomic.Int64
	delay    atomic.Int64 // time.Duration, one way
	server   *server

	mu    sync.Mutex
	gate  chan struct{} // guarded by mu; closed while traffic may pass
	pairs map[*pair]struct{}
}

// pair is one client connection and its other half.
type pair struct {
	client, target *net.TCPConn
	done           chan struct{} // closed when the pair is cut or finished
	once           sync.Once
	stranded       atomic.Bool // nothing arrives any more, not even an end
}

// TCPProxy starts a proxy to target until the test ends.
func TCPProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	open := make(chan struct{})
	close(open)
	p := &Proxy{Target: target, gate: open, pairs: make(map[*pair]struct{})}
	p.server = serve(tb, func(c *net.TCPConn) {
		p.accepted.Add(1)
		p.forward(c)
	})
	p.Addr = p.server.addr
	// Runs before the server's own cleanup, which waits for what goes on here.
	tb.Cleanup(func() {
		p.Heal()
		p.CutRST()
	})
	return p
}

// Blackhole stops all traffic both ways as if every packet were dropped: no
// bytes, no FIN, no RST, and new connections are not forwarded either. Kernels
// still acknowledge into their own buffers, which a dropped packet would not
// get. Heal undoes it, and what was held arrives.
func (p *Proxy) Blackhole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default: // closed to traffic already
	}
}

// Strand makes a black hole, for good, of the connections that are open now:
// what is sent on them is lost, and neither end learns that the other has
// closed. New connections pass.
func (p *Proxy) Strand() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for q := range p.pairs {
		q.stranded.Store(true)
	}
}

// Heal lets traffic pass again.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// CutRST resets every connection that goes through the proxy now, at both ends.
func (p *Proxy) CutRST() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for q := range p.pairs {
		q.cut()
	}
}

// Delay makes everything sent from now on arrive d later, each way.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Accepted is how many connections came in since the start.
func (p *Proxy) Accepted() int { return int(p.accepted.Load()) }

// Open is how many connections go through the proxy now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

func (p *Proxy) forward(c *net.TCPConn) {
	q := &pair{client: c, done: make(chan struct{})}
	p.mu.Lock()
	p.pairs[q] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pairs, q)
		p.mu.Unlock()
	}()
	if !p.pass(q) {
		return
	}
	t, err := net.DialTimeout("tcp", p.Target, 5*time.Second)
	if err != nil {
		q.cut()
		return
	}
	p.mu.Lock() // so that cut sees the target or we see the cut
	q.target = t.(*net.TCPConn)
	p.mu.Unlock()
	select {
	case <-q.done:
		reset(q.target)
		return
	default:
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.pump(q, q.target, q.client) })
	wg.Go(func() { p.pump(q, q.client, q.target) })
	wg.Wait()
	q.target.Close()
}

// pass waits while the proxy is a black hole; false means the pair was cut.
func (p *Proxy) pass(q *pair) bool {
	for {
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		select {
		case <-q.done:
			return false
		case <-gate:
		}
		p.mu.Lock()
		same := gate == p.gate
		p.mu.Unlock()
		if same {
			return true
		}
	}
}

// parcel is bytes on their way, or the end of them.
type parcel struct {
	data []byte
	end  error // io.EOF or why reading failed
	due  time.Time
}

// pump moves bytes from src to dst. It reads ahead of what it writes so that
// a delay costs no throughput; the channel bounds by how much.
func (p *Proxy) pump(q *pair, dst, src *net.TCPConn) {
	way := make(chan parcel, 512)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(way)
		for {
			buf := make([]byte, 32<<10)
			n, err := src.Read(buf)
			due := time.Now().Add(time.Duration(p.delay.Load()))
			if n > 0 && !q.send(way, parcel{data: buf[:n], due: due}) || err != nil {
				q.send(way, parcel{end: err, due: due})
				return
			}
		}
	})
	for c := range way {
		if !q.sleepUntil(c.due) || !p.pass(q) {
			break
		}
		if q.stranded.Load() {
			continue // until src has ended
		}
		if c.end == nil {
			if _, err := dst.Write(c.data); err != nil {
				if !q.stranded.Load() {
					q.cut()
				}
				break
			}
			continue
		}
		if errors.Is(c.end, io.EOF) {
			dst.CloseWrite() // an error means that dst is gone, which its reader tells
		} else {
			q.cut()
		}
	}
	for range way { // let the reader go
	}
	wg.Wait()
}

func (q *pair) send(way chan<- parcel, c parcel) bool {
	select {
	case way <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *pair) sleepUntil(t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	select {
	case <-q.done:
		return false
	case <-time.After(d):
		return true
	}
}

// cut resets both ends.
func (q *pair) cut() {
	q.once.Do(func() { close(q.done) })
	reset(q.client)
	if q.target != nil {
		reset(q.target)
	}
}

// reset closes c so that its peer gets an RST.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// IsReset reports whether err is what reading or writing a connection gives
// after its peer's RST.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
