package ldapgroup

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// conn is one bound connection. It belongs to one borrower at a time, who may
// have several requests under way on it.
type conn struct {
	raw    net.Conn // what Dial returned; closing it ends everything above
	guard  *guard
	ldap   *ldap.Conn
	server *ServerInfo // what the rootDSE said when it was opened
	opened time.Time
	// Owned by the pool.
	used time.Time // when it was last put back
	uses int       // how often it was lent

	broken atomic.Bool // never to be used again
	closed sync.Once
}

// abort ends the connection under whatever is going on. It does not wait and
// may be called more than once.
func (c *conn) abort() {
	c.broken.Store(true)
	_ = c.raw.Close()
}

// close ends the connection and waits until go-ldap is done with it.
func (c *conn) close() {
	c.closed.Do(func() {
		// The raw connection goes first: TLS would otherwise wait for a peer
		// that does not read before it could say goodbye.
		c.abort()
		_ = c.ldap.Close()
	})
}

// usable reports whether the connection is worth keeping.
func (c *conn) usable() bool { return !c.broken.Load() && !c.ldap.IsClosing() }

// do runs one operation under ctx. go-ldap knows no contexts: the connection
// is closed when ctx ends, which ends the operation and the connection's
// life. Errors that are no answer of the directory end it too, because what
// the connection would say next might be the answer to this one.
func (c *conn) do(ctx context.Context, f func(*ldap.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.guard.grant()
	stop := context.AfterFunc(ctx, c.abort)
	err := noPanic(func() error { return f(c.ldap) })
	if !stop() {
		c.abort()
		if err == nil {
			return nil // answered in the last moment
		}
		return context.Cause(ctx)
	}
	if err == nil || isAnswer(err) {
		return err
	}
	c.abort()
	if fault := c.guard.faulted(); fault != nil {
		return fault
	}
	return err
}

// noPanic makes a panic of the decoder, which reads what a stranger wrote, an
// error.
func noPanic(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in the decoder: %v", p)
		}
	}()
	return f()
}

// open dials, secures and binds a connection and reads the rootDSE.
func (e *Engine) open(ctx context.Context) (_ *conn, err error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, e.cfg.DialTimeout)
	defer cancel()
	raw, err := e.dial(ctx)
	if err != nil {
		return nil, e.toError("dial", err)
	}
	secure, err := e.secure(ctx, raw)
	if err != nil {
		_ = raw.Close()
		return nil, e.toError("tls", err)
	}
	c := &conn{raw: raw, guard: newGuard(secure, e.cfg.MaxResponseBytes), opened: begin}
	c.ldap = ldap.NewConn(c.guard, e.cfg.Security == LDAPS)
	// Only a fence: do ends operations earlier. It also bounds go-ldap's Close.
	c.ldap.SetTimeout(e.cfg.OpTimeout + e.cfg.DialTimeout)
	c.ldap.Start()
	if err := e.bind(ctx, c); err != nil {
		c.close()
		return nil, err
	}
	if c.server, err = e.readRoot(ctx, c); err != nil {
		c.close()
		return nil, e.toError("read rootDSE", err)
	}
	return c, nil
}

// dial calls Config.Dial and does not wait for one that ignores ctx.
func (e *Engine) dial(ctx context.Context) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	e.wait.Add(1)
	go func() {
		defer e.wait.Done()
		c, err := e.cfg.Dial(ctx)
		if err == nil && c == nil {
			err = errors.New("dial returned no connection")
		}
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.c, r.err
	case <-ctx.Done():
		e.wait.Add(1)
		go func() {
			defer e.wait.Done()
			if r := <-done; r.c != nil {
				_ = r.c.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// secure puts TLS on raw as configured.
func (e *Engine) secure(ctx context.Context, raw net.Conn) (net.Conn, error) {
	if e.cfg.Security == Plaintext {
		return raw, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	if e.cfg.Security == StartTLS {
		if err := startTLS(raw); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("StartTLS: %w", err)
		}
	}
	t := tls.Client(raw, e.cfg.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil && !isCertificateError(err) {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return t, nil
}

const (
	startTLSOID = "1.3.6.1.4.1.1466.20037"
	// startTLSBytes bounds the answer to StartTLS.
	startTLSBytes = 64 << 10
)

// startTLS asks for TLS before go-ldap sees the connection: its own StartTLS
// neither ends with a context nor keeps the reason of a failure. Nothing
// beyond the answer is read, so what an attacker sends early does not survive
// into the protected part.
func startTLS(raw net.Conn) error {
	request := ber.NewSequence("message")
	request.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, 1, "id"))
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationExtendedRequest, nil, "StartTLS")
	op.AppendChild(ber.NewString(ber.ClassContext, ber.TypePrimitive, 0, startTLSOID, "name"))
	request.AppendChild(op)
	if _, err := raw.Write(request.Bytes()); err != nil {
		return err
	}
	var answer *ber.Packet
	err := noPanic(func() (err error) {
		answer, err = ber.ReadPacket(io.LimitReader(raw, startTLSBytes))
		return err
	})
	if err != nil {
		return err
	}
	if len(answer.Children) < 2 || answer.Children[1].Tag != ldap.ApplicationExtendedResponse {
		return errMalformed
	}
	return ldap.GetLDAPError(answer)
}
