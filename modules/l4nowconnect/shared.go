package l4nowconnect

import (
	"context"
	"net"
	"slices"
	"sync"
)

// shared holds the sockets of this process by address.
var shared sockets

// sockets lets configurations share listening sockets: a reload opens none that
// is open already. Clients that wait in a socket's queue are not reset when the
// configuration changes under them, no reload needs descriptors for two of each,
// and one of 1000 listeners is a quarter shorter. The zero value is ready.
type sockets struct {
	mu  sync.Mutex // guards all below, and socket.tenants
	all map[string]*socket
}

// socket is one that is listening. Its own goroutine accepts, so that who gets
// the connections can change while nobody connects.
type socket struct {
	pool    *sockets
	addr    string
	ln      net.Listener
	conns   chan net.Conn
	unused  chan struct{} // closed with the last tenant
	broken  chan struct{} // closed after err was set
	err     error
	tenants []*tenancy // in the order they came; the first one accepts
}

// tenancy is the socket as one configuration has it. The next one comes while
// this one still serves, and may go before it, when its configuration does
// not start: so the older one accepts until it closes.
type tenancy struct {
	*socket
	turn   chan struct{} // closed when it is to accept
	closed chan struct{}
	once   sync.Once
	forget func() bool // takes back what closes it with its configuration
}

// listen returns a listener for addr, on the socket that is there or on one that
// open makes. It closes with ctx, too: caddy-l4 does not close the listeners of a
// configuration that fails to start.
func (p *sockets) listen(ctx context.Context, addr string, open func() (net.Listener, error)) (net.Listener, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.all[addr]
	if s == nil {
		ln, err := open()
		if err != nil {
			return nil, err
		}
		s = &socket{
			pool: p, addr: addr, ln: ln,
			conns: make(chan net.Conn), unused: make(chan struct{}), broken: make(chan struct{}),
		}
		if p.all == nil {
			p.all = make(map[string]*socket)
		}
		p.all[addr] = s
		go s.accept()
	}
	t := &tenancy{socket: s, turn: make(chan struct{}), closed: make(chan struct{})}
	if s.tenants = append(s.tenants, t); len(s.tenants) == 1 {
		close(t.turn)
	}
	t.forget = context.AfterFunc(ctx, func() { _ = t.Close() })
	return t, nil
}

// accept runs until the socket is closed, or broken.
func (s *socket) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			s.fail(err)
			return
		}
		select {
		case s.conns <- c:
		case <-s.unused:
			_ = c.Close()
			return
		}
	}
}

// fail tells the tenants, and lets the next configuration try anew.
func (s *socket) fail(err error) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if s.pool.all[s.addr] == s {
		delete(s.pool.all, s.addr)
	}
	s.err = err
	close(s.broken)
}

// Accept implements net.Listener.
func (t *tenancy) Accept() (net.Conn, error) {
	select {
	case <-t.turn:
	case <-t.closed:
		return nil, net.ErrClosed
	}
	select {
	case c := <-t.conns:
		return c, nil
	case <-t.closed:
		return nil, net.ErrClosed
	case <-t.broken:
		return nil, t.err
	}
}

// Addr implements net.Listener.
func (t *tenancy) Addr() net.Addr { return t.ln.Addr() }

// Close implements net.Listener.
func (t *tenancy) Close() (err error) {
	t.once.Do(func() {
		p := t.pool
		p.mu.Lock()
		defer p.mu.Unlock()
		t.forget()
		close(t.closed)
		first := t.tenants[0] == t
		t.tenants = slices.DeleteFunc(t.tenants, func(o *tenancy) bool { return o == t })
		switch {
		case len(t.tenants) == 0:
			if p.all[t.addr] == t.socket {
				delete(p.all, t.addr)
			}
			close(t.unused)
			err = t.ln.Close()
		case first:
			close(t.tenants[0].turn)
		}
	})
	return err
}
