package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// LinkError tells why a link, or the attempt to make one, ended.
type LinkError struct {
	Reason  wire.Reason
	Message string // the peer's or our own words, for logs
	Remote  bool   // the peer said so
	Err     error  // the cause, when there is one below
}

// Error says who ended the link and why.
func (e *LinkError) Error() string {
	s := "link ended: " + e.Reason.String()
	if e.Remote {
		s = "link ended by peer: " + e.Reason.String()
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *LinkError) Unwrap() error { return e.Err }

// SayHello introduces an agent: it sends h and reads the answer. When ctx has
// a deadline it bounds the whole exchange. A hub that refuses with CLOSE
// yields a *[LinkError] whose Remote is true.
func SayHello(ctx context.Context, c Carrier, h wire.Hello) (wire.HelloAck, error) {
	var ack wire.HelloAck
	b, err := wire.AppendMessage(nil, wire.TypeHello, 0, &h, wire.MaxHello)
	if err != nil {
		return ack, err
	}
	stop := guard(ctx, c)
	defer stop()
	if err := send(c, b); err != nil {
		return ack, fmt.Errorf("send hello: %w", errors.Join(ctx.Err(), err))
	}
	p, err := readHandshake(c, wire.TypeHelloAck)
	if err != nil {
		return ack, fmt.Errorf("read hello_ack: %w", errors.Join(ctx.Err(), err))
	}
	return ack, wire.Decode(p, &ack)
}

// ReadHello reads the agent's first frame on the hub. Nothing of it is
// trusted yet: it is capped at [wire.MaxHello] bytes and by ctx's deadline.
func ReadHello(ctx context.Context, c Carrier) (wire.Hello, error) {
	var h wire.Hello
	stop := guard(ctx, c)
	defer stop()
	p, err := readHandshake(c, wire.TypeHello)
	if err != nil {
		return h, fmt.Errorf("read hello: %w", errors.Join(ctx.Err(), err))
	}
	return h, wire.Decode(p, &h)
}

// Welcome answers a HELLO.
func Welcome(c Carrier, a wire.HelloAck) error {
	b, err := wire.AppendMessage(nil, wire.TypeHelloAck, 0, &a, wire.MaxHello)
	if err != nil {
		return err
	}
	return sendWithin(c, b, 5*time.Second)
}

// Refuse answers a HELLO with CLOSE. The caller closes the carrier.
func Refuse(c Carrier, r wire.Reason, message string) error {
	return sendWithin(c, wire.AppendReason(nil, 0, r, message), 5*time.Second)
}

func sendWithin(c Carrier, b []byte, d time.Duration) error {
	if err := c.SetWriteDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	if err := send(c, b); err != nil {
		return err
	}
	return c.SetWriteDeadline(time.Time{})
}

func send(c Carrier, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	return c.Flush()
}

// guard makes ctx's end unblock the carrier. The returned function restores it
// and must be called.
func guard(ctx context.Context, c Carrier) (stop func()) {
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetReadDeadline(d)
		_ = c.SetWriteDeadline(d)
	}
	cancel := context.AfterFunc(ctx, func() { _ = c.Close() })
	return func() {
		cancel()
		_ = c.SetReadDeadline(time.Time{})
		_ = c.SetWriteDeadline(time.Time{})
	}
}

// readHandshake reads one frame of type want and returns its payload. It reads
// not a byte further: what follows belongs to the link.
func readHandshake(c Carrier, want wire.Type) ([]byte, error) {
	var hdr [wire.HeaderLen]byte
	if _, err := io.ReadFull(c, hdr[:]); err != nil {
		return nil, err
	}
	h := wire.ParseHeader(hdr[:])
	switch {
	case h.Type == wire.TypeClose && h.Check() == nil:
	case h.Type != want || h.CID != 0:
		return nil, fmt.Errorf("%v with cid %d instead of %v: %w", h.Type, h.CID, want, wire.ErrUnexpected)
	case h.Length > wire.MaxHello:
		return nil, fmt.Errorf("%v with %d bytes: %w", h.Type, h.Length, wire.ErrFrameTooLong)
	}
	p := make([]byte, h.Length)
	if _, err := io.ReadFull(c, p); err != nil {
		return nil, err
	}
	if h.Type == wire.TypeClose {
		r, msg := wire.ParseReason(p)
		return nil, &LinkError{Reason: r, Message: msg, Remote: true}
	}
	return p, nil
}
