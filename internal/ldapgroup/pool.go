package ldapgroup

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

var errClosed = errors.New("engine is closed")

// pool lends connections. A borrower has one to itself and returns it; what
// is broken is closed there and then.
type pool struct {
	e     *Engine
	slots chan struct{} // one per connection that is lent or being opened; idle ones are taken before any is opened

	mu     sync.Mutex
	idle   []*conn   // guarded by mu; the one used last is last
	open   int       // guarded by mu
	closed bool      // guarded by mu
	dials  breaker   // guarded by mu
	keep   time.Time // guarded by mu; connections opened before are not kept
}

func newPool(e *Engine) *pool {
	return &pool{e: e, slots: make(chan struct{}, e.cfg.MaxConns)}
}

// get lends a connection, a tried one where it was idle for long. It waits for
// one when all are lent.
func (p *pool) get(ctx context.Context) (*conn, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, p.e.toError("wait for a connection", context.Cause(ctx))
	}
	for {
		c, err := p.takeIdle()
		if err != nil {
			<-p.slots
			return nil, err
		}
		if c == nil {
			break
		}
		if p.healthy(ctx, c) {
			c.uses++
			return c, nil
		}
		p.discard(c, "closed_unhealthy", nil)
	}
	c, err := p.dial(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	c.uses++
	return c, nil
}

// takeIdle returns the connection used last, nil when none is idle.
func (p *pool) takeIdle() (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.e.toError("connect", errClosed)
	}
	n := len(p.idle)
	if n == 0 {
		return nil, nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return c, nil
}

// healthy reports whether c still answers. A connection that was idle for a
// short time is believed.
func (p *pool) healthy(ctx context.Context, c *conn) bool {
	age := time.Since(c.used)
	if !c.usable() || age >= p.e.cfg.IdleTime {
		return false
	}
	if age < p.e.cfg.HealthAfter {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, min(p.e.cfg.OpTimeout, healthTimeout))
	defer cancel()
	return c.ping(ctx) == nil
}

// healthTimeout is short: a connection that takes longer is replaced.
const healthTimeout = 5 * time.Second

// ping reads nothing from the rootDSE.
func (c *conn) ping(ctx context.Context) error {
	return c.do(ctx, func(l *ldap.Conn) error {
		_, err := l.Search(baseSearch("", "(objectClass=*)", noAttributes))
		return err
	})
}

// dial opens a connection in the slot that the caller holds.
func (p *pool) dial(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	err := p.dials.check()
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	c, err := p.e.open(ctx)
	p.mu.Lock()
	p.dials.note(err, ctx.Err() != nil)
	closed := p.closed
	if err == nil && !closed {
		p.open++
	}
	open := p.open
	p.mu.Unlock()
	switch {
	case err != nil:
		p.e.noteConn(ConnEvent{What: "open_failed", Open: open, Duration: time.Since(begin), Err: p.e.toError("connect", err)})
		return nil, err
	case closed:
		c.close()
		return nil, p.e.toError("connect", errClosed)
	}
	p.e.noteConn(ConnEvent{What: "open", Open: open, Duration: time.Since(begin)})
	return c, nil
}

// put takes a connection back.
func (p *pool) put(c *conn) {
	defer func() { <-p.slots }()
	c.used = time.Now()
	p.mu.Lock()
	if !p.closed && c.usable() && !c.opened.Before(p.keep) {
		p.idle = append(p.idle, c)
		p.mu.Unlock()
		return
	}
	leaving := p.closed || c.opened.Before(p.keep)
	p.mu.Unlock()
	if leaving {
		p.discard(c, "closed_shutdown", nil)
	} else {
		p.discard(c, "closed_error", nil)
	}
}

// discard closes a connection that is not in idle.
func (p *pool) discard(c *conn, what string, err *Error) {
	c.close()
	p.mu.Lock()
	p.open--
	open := p.open
	p.mu.Unlock()
	p.e.noteConn(ConnEvent{What: what, Open: open, Duration: time.Since(c.opened), Err: err})
}

// sweep closes what was idle for too long: everything after IdleTime, and
// after a quarter of it what is more than MinConns.
func (p *pool) sweep() {
	now := time.Now()
	var old []*conn
	p.mu.Lock()
	keep := p.idle[:0]
	spare := p.open - p.e.cfg.MinConns
	for _, c := range p.idle { // the longest idle come first
		age := now.Sub(c.used)
		if age >= p.e.cfg.IdleTime || spare > 0 && age >= p.e.cfg.IdleTime/4 || !c.usable() {
			old = append(old, c)
			spare--
			continue
		}
		keep = append(keep, c)
	}
	clear(p.idle[len(keep):])
	p.idle = keep
	p.mu.Unlock()
	for _, c := range old {
		p.discard(c, "closed_idle", nil)
	}
}

// run sweeps until stop is closed.
func (p *pool) run(stop <-chan struct{}) {
	t := time.NewTicker(max(p.e.cfg.IdleTime/16, 100*time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.sweep()
		case <-stop:
			return
		}
	}
}

// close refuses borrowers from now on and closes the idle connections. Those
// that are lent are closed when they come back.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		p.discard(c, "closed_shutdown", nil)
	}
}

// retire closes the connections that are idle now, and those that are lent when
// they come back.
func (p *pool) retire() {
	p.mu.Lock()
	p.keep = time.Now()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		p.discard(c, "closed_shutdown", nil)
	}
}

func (p *pool) stats() (open, idle int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open, len(p.idle)
}

// breaker stops dialing for a moment after dials that failed in a row, so that
// a directory that is down does not hold every caller for a whole timeout.
type breaker struct {
	failures int
	until    time.Time
	last     error
}

const (
	breakerAfter = 3
	breakerMin   = 250 * time.Millisecond
	breakerMax   = 2 * time.Second
)

func (b *breaker) check() error {
	if b.failures >= breakerAfter && time.Now().Before(b.until) {
		return b.last
	}
	return nil
}

// note takes the outcome of a dial. A caller who left says nothing about the
// directory, and refused credentials have a rule of their own (lockout).
func (b *breaker) note(err error, left bool) {
	switch {
	case err == nil:
		*b = breaker{}
	case !left && classOf(err) != ClassAccount:
		b.failures++
		b.last = err
		pause := breakerMin << min(max(b.failures-breakerAfter, 0), 4)
		b.until = time.Now().Add(min(pause, breakerMax))
	}
}
