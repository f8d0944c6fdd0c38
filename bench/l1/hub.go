package l1

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Hub accepts clients on one listener and pooled agent connections on the other.
type Hub struct {
	idle chan *pooled
}

// pooled is one agent connection, waiting for a client or carrying one.
type pooled struct {
	conn *tls.Conn
	sent chan struct{} // closed when the client-to-agent direction is over

	mu     sync.Mutex
	client *net.TCPConn // guarded by mu; set once
	dead   bool         // guarded by mu; no longer to be handed out
}

// NewHub returns a hub with an empty pool.
func NewHub() *Hub {
	// Room for more than one agent's pool; a full channel only delays the handshake's goroutine.
	return &Hub{idle: make(chan *pooled, 4*PoolSize)}
}

// Serve runs until one of the listeners fails.
func (h *Hub) Serve(clients, agents net.Listener, mutual *tls.Config) error {
	errc := make(chan error, 2)
	go func() {
		errc <- accept(clients, h.serveClient)
	}()
	go func() {
		errc <- accept(agents, func(c *net.TCPConn) { h.serveAgent(tls.Server(c, mutual)) })
	}()
	return <-errc
}

func accept(ln net.Listener, serve func(*net.TCPConn)) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("l1 hub: accept: %w", err)
		}
		go serve(c.(*net.TCPConn))
	}
}

// serveClient carries the client-to-agent direction; the pooled connection's
// own goroutine carries the other, so that the client's first bytes follow
// start without waiting for the agent's answer.
func (h *Hub) serveClient(c *net.TCPConn) {
	p := h.take(c)
	if p == nil {
		reset(c)
		return
	}
	defer close(p.sent)
	if _, err := p.conn.Write([]byte{start}); err != nil {
		p.conn.NetConn().Close() // its own goroutine resets the client
		return
	}
	oneWay(p.conn, c, c, p.conn)
}

func (h *Hub) take(c *net.TCPConn) *pooled {
	timeout := time.NewTimer(takeLimit)
	defer timeout.Stop()
	for {
		select {
		case p := <-h.idle:
			if p.give(c) {
				return p
			}
		case <-timeout.C:
			return nil
		}
	}
}

func (p *pooled) give(c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return false
	}
	p.client = c
	return true
}

// bury marks p as not to be handed out and returns the client that it already has, if any.
func (p *pooled) bury() *net.TCPConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	return p.client
}

// serveAgent owns one agent connection from handshake to end: it watches the
// beats while the connection is pooled and carries the agent-to-client
// direction afterwards.
func (h *Hub) serveAgent(conn *tls.Conn) {
	defer conn.NetConn().Close() // close_notify, if due, is out by CloseWrite
	_ = conn.SetDeadline(time.Now().Add(beatLimit))
	if err := conn.Handshake(); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	p := &pooled{conn: conn, sent: make(chan struct{})}
	h.idle <- p
	if err := p.awaitDialled(); err != nil {
		if c := p.bury(); c != nil {
			reset(c)
			conn.NetConn().Close()
			<-p.sent
		}
		return
	}
	c := p.bury()
	oneWay(c, conn, c, conn)
	<-p.sent
	c.Close()
}

var errUnexpected = errors.New("l1: unexpected byte on a pooled connection")

// awaitDialled returns when the agent has dialled for this connection's client.
func (p *pooled) awaitDialled() error {
	var b [1]byte
	for {
		_ = p.conn.SetReadDeadline(time.Now().Add(beatLimit))
		if _, err := p.conn.Read(b[:]); err != nil {
			return err
		}
		switch b[0] {
		case beat:
		case dialled:
			return p.conn.SetReadDeadline(time.Time{})
		default:
			return errUnexpected
		}
	}
}
