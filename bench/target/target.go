// Package target owns the server that every system under test leads to. The
// first byte of a connection says what the server is to be: request/response,
// source, sink, echo, or a probe of half-close and reset.
//
// Invariants: it never limits the systems under test by itself (one goroutine
// per connection, big writes), it counts what a sink really took, and it
// stamps those counts with its own clock, so that no delay on the way to the
// reader distorts a rate.
package target

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Modes, the first byte on a connection.
const (
	RequestResponse = 'R' // RequestSize bytes in, ReplySize bytes out, for ever
	Source          = 'D' // writes until the connection ends
	Sink            = 'U' // + 8 bytes run id; reads until the connection ends
	Echo            = 'E'
	Count           = 'C' // + 8 bytes run id; one byte in, 16 out: clock (ns) and the run's count
	HalfClose       = 'H' // reads to EOF, then answers with the number of bytes as 8 bytes
	Reset           = 'X' // answers with one byte, then resets
	Watch           = 'W' // + 8 bytes run id; answers with one byte, then counts 1 for the run if the end is a reset
)

// Sizes of the small exchange: about an LDAP search for one entry.
const (
	RequestSize = 100
	ReplySize   = 300
)

// CountSize is the size of an answer in Count mode.
const CountSize = 16

const chunk = 128 << 10

// Server answers on any number of listeners.
type Server struct {
	started time.Time
	sunk    sync.Map // run id (uint64) to *atomic.Int64
}

// NewServer returns a server whose clock starts now.
func NewServer() *Server { return &Server{started: time.Now()} }

// Serve accepts until the listener is closed.
func (s *Server) Serve(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("target: accept: %w", err)
		}
		go s.handle(c.(*net.TCPConn))
	}
}

func (s *Server) handle(c *net.TCPConn) {
	defer c.Close()
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return
	}
	switch mode[0] {
	case RequestResponse:
		reply(c)
	case Source:
		source(c)
	case Sink:
		s.sink(c)
	case Echo:
		_, _ = io.Copy(c, struct{ io.Reader }{c}) // no splice: a pipe per connection would cost descriptors
	case Count:
		s.count(c)
	case HalfClose:
		n, _ := io.Copy(io.Discard, c)
		_ = binary.Write(c, binary.BigEndian, uint64(n))
	case Reset:
		_, _ = c.Write([]byte{Reset})
		time.Sleep(5 * time.Millisecond) // the byte is to arrive before the reset discards it
		_ = c.SetLinger(0)
	case Watch:
		s.watch(c)
	}
}

func reply(c net.Conn) {
	var req [RequestSize]byte
	var rep [ReplySize]byte
	for {
		if _, err := io.ReadFull(c, req[:]); err != nil {
			return
		}
		if _, err := c.Write(rep[:]); err != nil {
			return
		}
	}
}

func source(c net.Conn) {
	buf := make([]byte, chunk)
	for {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func (s *Server) sink(c net.Conn) {
	n, err := s.counter(c)
	if err != nil {
		return
	}
	buf := make([]byte, 2*chunk)
	for {
		k, err := c.Read(buf)
		n.Add(int64(k))
		if err != nil {
			return
		}
	}
}

func (s *Server) count(c net.Conn) {
	n, err := s.counter(c)
	if err != nil {
		return
	}
	var ask [1]byte
	var ans [CountSize]byte
	for {
		if _, err := io.ReadFull(c, ask[:]); err != nil {
			return
		}
		binary.BigEndian.PutUint64(ans[:8], uint64(time.Since(s.started)))
		binary.BigEndian.PutUint64(ans[8:], uint64(n.Load()))
		if _, err := c.Write(ans[:]); err != nil {
			return
		}
	}
}

func (s *Server) watch(c net.Conn) {
	n, err := s.counter(c)
	if err != nil {
		return
	}
	if _, err := c.Write([]byte{Watch}); err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, syscall.ECONNRESET) {
		n.Add(1)
	}
}

func (s *Server) counter(c net.Conn) (*atomic.Int64, error) {
	var id [8]byte
	if _, err := io.ReadFull(c, id[:]); err != nil {
		return nil, err
	}
	n, _ := s.sunk.LoadOrStore(binary.BigEndian.Uint64(id[:]), new(atomic.Int64))
	return n.(*atomic.Int64), nil
}
