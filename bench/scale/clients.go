package scale

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/nowconnect/nowconnect/bench/target"
)

// What the clients' process can be told to do.
const (
	Open  = "open"  // N connections, one exchange on each, and keep them
	First = "first" // N connections one after the other, each closed after its exchange
	Close = "close" // N of those that were kept
	Check = "check" // one more exchange on N of those that were kept
)

// Order is one line to the clients' process; Reply is its answer.
type Order struct {
	Do    string   `json:"do"`
	Addrs []string `json:"addrs,omitempty"` // connected to in turn
	N     int      `json:"n"`
}

// Reply tells what came of an order.
type Reply struct {
	Done   int     `json:"done"`
	Failed int     `json:"failed"`
	Error  string  `json:"error,omitempty"` // the first
	P50    float64 `json:"p50,omitempty"`   // us, from connect to the reply's first byte
	P99    float64 `json:"p99,omitempty"`
}

// Clients is the process that holds the idle sessions.
type Clients struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// StartClients starts self as the clients' process.
func StartClients(self string) (*Clients, error) {
	c := &Clients{cmd: exec.Command(self, "scale-clients")}
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start clients: %w", err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start clients: %w", err)
	}
	c.out = json.NewDecoder(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start clients: %w", err)
	}
	return c, nil
}

// Do has an order carried out.
func (c *Clients) Do(o Order) (r Reply, err error) {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return r, fmt.Errorf("clients: %s: %w", o.Do, err)
	}
	if err := c.out.Decode(&r); err != nil {
		return r, fmt.Errorf("clients: %s: %w", o.Do, err)
	}
	return r, nil
}

// Stop ends the process, and with it all connections.
func (c *Clients) Stop() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // killed
}

// ServeOrders is the clients' process: it carries out orders until there are no more.
func ServeOrders(in io.Reader, out io.Writer) error {
	var h holder
	dec, enc := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("clients: %w", err)
		}
		if err := enc.Encode(h.do(o)); err != nil {
			return fmt.Errorf("clients: %w", err)
		}
	}
}

type holder struct{ conns []net.Conn }

func (h *holder) do(o Order) Reply {
	switch o.Do {
	case Open:
		return h.open(o)
	case First:
		return first(o)
	case Close:
		n := min(o.N, len(h.conns))
		for _, c := range h.conns[len(h.conns)-n:] {
			c.Close()
		}
		h.conns = h.conns[:len(h.conns)-n]
		return Reply{Done: n}
	case Check:
		return h.check(o.N)
	}
	return Reply{Failed: 1, Error: "unknown order " + o.Do}
}

const limit = 30 * time.Second

// exchange is one request and reply; it returns when the reply's first byte came.
func exchange(c net.Conn, opening bool) (time.Time, error) {
	b := make([]byte, target.RequestSize, 1+target.RequestSize)
	if opening {
		b = append([]byte{target.RequestResponse}, b...)
	}
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write(b); err != nil {
		return time.Time{}, err
	}
	var rep [target.ReplySize]byte
	n, err := c.Read(rep[:])
	at := time.Now()
	if err == nil {
		_, err = io.ReadFull(c, rep[n:])
	}
	_ = c.SetDeadline(time.Time{})
	return at, err
}

// open opens 32 at a time.
func (h *holder) open(o Order) Reply {
	var mu sync.Mutex
	var r Reply
	var wg sync.WaitGroup
	next := make(chan int)
	for range 32 {
		wg.Go(func() {
			for i := range next {
				c, err := net.DialTimeout("tcp", o.Addrs[i%len(o.Addrs)], limit)
				if err == nil {
					if _, err = exchange(c, true); err != nil {
						c.Close()
					}
				}
				mu.Lock()
				if err == nil {
					h.conns = append(h.conns, c)
					r.Done++
				} else {
					r.fail(err)
				}
				mu.Unlock()
			}
		})
	}
	for i := range o.N {
		next <- i
	}
	close(next)
	wg.Wait()
	return r
}

func (r *Reply) fail(err error) {
	r.Failed++
	if r.Error == "" {
		r.Error = err.Error()
	}
}

func first(o Order) (r Reply) {
	took := make([]time.Duration, 0, o.N)
	for _, i := range rand.Perm(o.N) {
		began := time.Now()
		c, err := net.DialTimeout("tcp", o.Addrs[i%len(o.Addrs)], limit)
		if err == nil {
			var at time.Time
			at, err = exchange(c, true)
			c.Close()
			took = append(took, at.Sub(began))
		}
		if err != nil {
			r.fail(err)
			continue
		}
		r.Done++
		time.Sleep(time.Millisecond) // one at a time, and not as many as there can be
	}
	if len(took) > 0 {
		slices.Sort(took)
		us := func(i int) float64 { return float64(took[i].Nanoseconds()) / 1e3 }
		r.P50, r.P99 = us(len(took)/2), us(len(took)*99/100)
	}
	return r
}

func (h *holder) check(n int) (r Reply) {
	for _, i := range rand.Perm(len(h.conns))[:min(n, len(h.conns))] {
		if _, err := exchange(h.conns[i], false); err != nil {
			r.fail(err)
		} else {
			r.Done++
		}
	}
	return r
}
