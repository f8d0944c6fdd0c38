package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// sessions registers what the agent serves, over all links.
type sessions struct {
	max int
	wg  sync.WaitGroup // one count per live session

	mu       sync.Mutex // guards all below
	live     map[*tunnel.Session]time.Time
	leaving  bool          // no new links; never taken back
	draining bool          // no new sessions either
	idle     chan struct{} // closed once draining and nothing is live
	ended    map[wire.Reason]int
}

// add registers a session, or returns the reason to refuse it.
func (r *sessions) add(s *tunnel.Session) (wire.Reason, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.draining:
		return wire.ReasonDraining, "agent is draining"
	case len(r.live) >= r.max:
		return wire.ReasonLimit, fmt.Sprintf("agent has %d sessions, its max_sessions", r.max)
	}
	if r.live == nil {
		r.live = make(map[*tunnel.Session]time.Time)
	}
	r.live[s] = time.Now()
	r.wg.Add(1)
	return 0, ""
}

// remove ends what add began.
func (r *sessions) remove(s *tunnel.Session, reason wire.Reason) {
	r.mu.Lock()
	delete(r.live, s)
	if r.draining {
		r.ended[reason]++
		if len(r.live) == 0 {
			close(r.idle)
		}
	}
	r.mu.Unlock()
	r.wg.Done()
}

func (r *sessions) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

func (r *sessions) isLeaving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaving
}

// unlessLeaving runs f unless the agent is on its way out.
func (r *sessions) unlessLeaving(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		return false
	}
	f()
	return true
}

// openSession takes a new session from a link's reader, which it must not
// hold up. This is the agent's half of promise 6: the hub says which
// connector, and only our own configuration says whether and where to.
func (a *Agent) openSession(s *tunnel.Session) {
	o := s.Open()
	to, ok := a.targets[o.Connector]
	if !ok {
		a.log.Warn("the hub asks for a connector that this agent does not serve",
			zap.String("connector", o.Connector), zap.String("cid", o.Session))
		s.Refuse(wire.ReasonConnectFailed, "agent does not serve this connector")
		return
	}
	to.metrics.Opened()
	if r, message := a.sessions.add(s); r != 0 {
		to.metrics.Closed(r)
		a.log.Debug("session refused", zap.String("cid", o.Session), zap.String("connector", o.Connector), zap.Stringer("reason", r))
		s.Refuse(r, message)
		return
	}
	go a.serveSession(s, to) // counted by a.sessions.wg, which Run waits for
}

// serveSession dials the target and moves bytes until the session is over.
func (a *Agent) serveSession(s *tunnel.Session, to served) {
	start := time.Now()
	res := tunnel.Result{Reason: wire.ReasonUnknown}
	defer func() {
		to.metrics.Closed(res.Reason)
		a.sessions.remove(s, res.Reason)
	}()
	conn, err := a.reachTarget(s, to)
	to.metrics.DialTime(time.Since(start))
	if err != nil {
		res.Reason, res.Message = dialReason(err)
		if isOver(s) {
			res.Reason, res.Message = wire.ReasonRst, "session ended while dialing"
		}
		s.Refuse(res.Reason, res.Message)
		a.logSession(s, to, res, start, err)
		return
	}
	tcp, _ := conn.(*net.TCPConn)
	res = s.Accept(tunnel.Endpoint{Conn: conn, TCP: tcp}, tunnel.SessionConfig{Observer: to.metrics})
	a.logSession(s, to, res, start, res.WriteErr)
}

// targetDialer is package net's own: it tries the addresses of a name in
// parallel (RFC 8305) and turns Nagle's algorithm off. Keepalive finds a
// target that is gone: nothing else does on an idle session, which may live
// for hours.
func targetDialer() *net.Dialer {
	return &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}}
}

// reachTarget dials within the shorter of our own and the hub's bound, and
// gives up when the session ends first.
func (a *Agent) reachTarget(s *tunnel.Session, to served) (net.Conn, error) {
	limit := a.cfg.ConnectTimeout
	if ms := s.Open().ConnectTimeout; ms > 0 && ms < limit.Milliseconds() {
		limit = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := a.dialTarget(ctx, "tcp", to.target.String())
	cancel()
	<-watched
	return conn, err
}

func isOver(s *tunnel.Session) bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

// dialReason words a failed dial for the hub. The hub learns what went wrong
// and no address: where a connector leads is the premises' own affair.
func dialReason(err error) (wire.Reason, string) {
	var dns *net.DNSError
	if errors.As(err, &dns) && !dns.IsTimeout {
		return wire.ReasonConnectFailed, "target name does not resolve"
	}
	var ne net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.As(err, &ne) && ne.Timeout() {
		return wire.ReasonConnectTimeout, "no answer from the target in time"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return wire.ReasonConnectFailed, errno.Error()
	}
	return wire.ReasonConnectFailed, "target cannot be dialed"
}

// logSession writes the one line that a session gets. Orderly ends are for
// debugging; the others tell an operator something.
func (a *Agent) logSession(s *tunnel.Session, to served, res tunnel.Result, start time.Time, err error) {
	level := zap.InfoLevel
	if res.Reason == wire.ReasonFin || res.Reason == wire.ReasonRst && res.Opened {
		level = zap.DebugLevel
	}
	c := a.log.Check(level, "session ended")
	if c == nil {
		return
	}
	o := s.Open()
	c.Write(zap.String("cid", o.Session), zap.String("connector", o.Connector), zap.String("client", oneLine(o.Client)),
		zap.Stringer("target", to.target), zap.Stringer("reason", res.Reason), zap.String("message", oneLine(res.Message)),
		zap.Bool("by_hub", res.Remote), zap.Int64("bytes_c2a", res.Received), zap.Int64("bytes_a2c", res.Sent),
		zap.Duration("duration", time.Since(start)), zap.Error(err))
}
