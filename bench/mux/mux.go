// Package mux owns what the yamux and smux systems have in common at hub and
// agent: the two libraries behind one interface, the upgrade request that
// carries them, and the relay between a TCP connection and a stream. It knows
// no Caddy; package muxhub brings it into Caddy.
//
// Invariants: both libraries get generous, documented settings, so that none
// loses by a default that its users change; FIN passes where the library can
// (yamux), otherwise the first end closes both directions (smux). Neither can
// tell a reset from a close.
package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/xtaci/smux"
)

// Engines are the names that NewSession takes.
var Engines = []string{"yamux", "smux"}

// Session is one multiplexed connection.
type Session interface {
	Open() (Stream, error)
	Accept() (Stream, error)
	Done() <-chan struct{}
	Close() error
}

// Stream is one of its streams.
type Stream interface {
	net.Conn
	// FINs reports whether Close ends only our direction.
	FINs() bool
}

// streamWindow is what frp gives its yamux streams; the default of 256 KiB
// would hold one stream to 6 MB/s at 40 ms.
const streamWindow = 6 << 20

// NewSession runs engine over conn; r continues with conn behind bytes that
// were read ahead. The hub opens streams, the agent accepts them.
func NewSession(engine string, conn net.Conn, r io.Reader, hub bool) (Session, error) {
	rwc := struct {
		io.Reader
		io.WriteCloser
	}{r, conn}
	switch engine {
	case "yamux":
		cfg := yamux.DefaultConfig()
		cfg.LogOutput = io.Discard
		cfg.MaxStreamWindowSize = streamWindow
		cfg.AcceptBacklog = 1024
		// A stream whose reader is gone cannot be reset through yamux's API;
		// this timeout is what frees it.
		cfg.StreamCloseTimeout = 30 * time.Second
		if hub {
			s, err := yamux.Client(rwc, cfg)
			return yamuxSession{s}, err
		}
		s, err := yamux.Server(rwc, cfg)
		return yamuxSession{s}, err
	case "smux":
		cfg := smux.DefaultConfig()
		cfg.Version = 2 // windows per stream; in version 1 one stalled stream stops all
		cfg.MaxStreamBuffer = streamWindow
		cfg.MaxReceiveBuffer = 16 * streamWindow
		if hub {
			s, err := smux.Client(rwc, cfg)
			return smuxSession{s}, err
		}
		s, err := smux.Server(rwc, cfg)
		return smuxSession{s}, err
	}
	return nil, fmt.Errorf("mux: unknown engine %q, want one of %v", engine, Engines)
}

type yamuxSession struct{ *yamux.Session }

type yamuxStream struct{ *yamux.Stream }

func (s yamuxSession) Open() (Stream, error) {
	st, err := s.OpenStream()
	return yamuxStream{st}, err
}

func (s yamuxSession) Accept() (Stream, error) {
	st, err := s.AcceptStream()
	return yamuxStream{st}, err
}

func (s yamuxSession) Done() <-chan struct{} { return s.CloseChan() }

func (yamuxStream) FINs() bool { return true }

type smuxSession struct{ *smux.Session }

type smuxStream struct{ *smux.Stream }

func (s smuxSession) Open() (Stream, error) {
	st, err := s.OpenStream()
	return smuxStream{st}, err
}

func (s smuxSession) Accept() (Stream, error) {
	st, err := s.AcceptStream()
	return smuxStream{st}, err
}

func (s smuxSession) Done() <-chan struct{} { return s.CloseChan() }

func (smuxStream) FINs() bool { return false }

// Relay moves bytes between plain and s until both directions are done, and closes both.
func Relay(plain *net.TCPConn, s Stream) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := copyPooled(s, plain); err != nil {
			reset(plain)
		}
		s.Close()
	}()
	if err := copyPooled(plain, s); err != nil {
		reset(plain)
	} else if s.FINs() {
		_ = plain.CloseWrite()
	} else {
		plain.Close()
	}
	<-sent
	plain.Close()
	s.Close()
}

// copyBuffer is what io.Copy takes, too.
const copyBuffer = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

func copyPooled(dst io.Writer, src io.Reader) error {
	if c, ok := dst.(*net.TCPConn); ok {
		dst = struct{ io.Writer }{c} // hides ReadFrom, which would allocate a buffer of its own
	}
	if c, ok := src.(*net.TCPConn); ok {
		src = struct{ io.Reader }{c}
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	_, err := io.CopyBuffer(dst, src, *b) // a smux stream uses its own WriteTo instead
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
		return nil // smux tells the end as an error, and so does what the other direction closed
	}
	return err
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
