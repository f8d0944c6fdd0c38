package ldapgroup

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// session is one call's way to the directory: a borrowed connection, replaced
// when it breaks, and the patience that is left. One goroutine uses it.
type session struct {
	e   *Engine
	ctx context.Context
	c   *conn // nil when none is borrowed

	proven   bool // the connection has answered this borrower
	failures int  // tries in a row that got nowhere
	odd      bool // one of the answers that are tried once more was seen
	// each is what one of many searches for an entry takes, side by side with
	// the others; 0 when there were none yet.
	each time.Duration
}

func (e *Engine) session(ctx context.Context) *session { return &session{e: e, ctx: ctx} }

// close returns the connection.
func (s *session) close() {
	if s.c != nil {
		s.e.pool.put(s.c)
		s.c = nil
	}
}

// conn returns the connection to use next. Errors are *Error.
func (s *session) conn() (*conn, error) {
	for {
		if s.c != nil && s.c.usable() {
			return s.c, nil
		}
		s.close()
		c, err := s.e.pool.get(s.ctx)
		if err == nil {
			s.c, s.proven = c, false
			return c, nil
		}
		if !s.again(err) {
			return nil, s.fail("connect", err)
		}
	}
}

// do runs one operation once.
func (s *session) do(f func(*ldap.Conn) error) error {
	c, err := s.conn()
	if err != nil {
		return err
	}
	return s.on(c, f)
}

func (s *session) on(c *conn, f func(*ldap.Conn) error) error {
	return s.within(s.e.cfg.OpTimeout, c, f)
}

func (s *session) within(limit time.Duration, c *conn, f func(*ldap.Conn) error) error {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	return c.do(ctx, f)
}

// fail makes err, the last one of an operation, an *Error. When the call's
// time is over that is the reason, whatever the connection said about it.
func (s *session) fail(op string, err error) *Error {
	if s.ctx.Err() != nil {
		cause := context.Cause(s.ctx)
		out := s.e.toError(op, cause)
		if out.Err == nil {
			out.Err = err
		}
		return out
	}
	return s.e.toError(op, err)
}

// again reports whether an operation that ended with err may be tried again,
// and pauses before it says yes. It never does for what the directory or our
// configuration decided.
func (s *session) again(err error) bool {
	if s.ctx.Err() != nil || !s.worth(err) {
		return false
	}
	if s.stale(err) {
		s.close()
		return true
	}
	s.failures++
	if s.failures >= s.e.cfg.Attempts {
		return false
	}
	return s.pause()
}

// stale reports whether err says no more than that a connection from the pool
// was dead before it came to us. There are only so many of those, so the next
// try neither waits nor counts.
func (s *session) stale(err error) bool {
	return !isAnswer(err) && s.c != nil && s.c.uses > 1 && !s.proven
}

// worth reports whether err may pass, and breaks the connection when the next
// try needs a new one.
func (s *session) worth(err error) bool {
	if errors.Is(err, errTooLarge) || errors.Is(err, errMalformed) || errors.Is(err, errClosed) || isCertificateError(err) {
		return false
	}
	if own := (*Error)(nil); errors.As(err, &own) && own.Answer == nil {
		return own.Class == ClassUnavailable || own.Class == ClassTimeout
	}
	a := answerOf(err)
	if a == nil {
		return true
	}
	switch a.Code {
	case ldap.LDAPResultBusy:
		return true
	case ldap.LDAPResultUnavailable:
		s.spoil()
		return true
	case ldap.LDAPResultTimeLimitExceeded, ldap.LDAPResultOther:
	case ldap.LDAPResultOperationsError:
		// Active Directory says so when the bind is gone; a new connection
		// binds again.
		s.spoil()
	default:
		return false
	}
	once := !s.odd
	s.odd = true
	return once
}

func (s *session) spoil() {
	if s.c != nil {
		s.c.abort()
	}
}

const (
	pauseMin = 100 * time.Millisecond
	pauseMax = 2 * time.Second
)

// pause waits longer after each failure, with jitter so that many callers do
// not come back at once.
func (s *session) pause() bool {
	d := pauseMin
	for range s.failures - 1 {
		d = min(3*d, pauseMax)
	}
	d = d/2 + rand.N(d)
	// A connection held while waiting is one that nobody else can use.
	s.close()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// search runs a search and tries again where that makes sense. Errors are
// *Error.
func (s *session) search(op string, r *ldap.SearchRequest) (*ldap.SearchResult, error) {
	for {
		var result *ldap.SearchResult
		err := s.do(func(l *ldap.Conn) (err error) {
			result, err = l.Search(r)
			return err
		})
		if err == nil {
			s.proven, s.failures, s.odd = true, 0, false
			return result, nil
		}
		if !s.again(err) {
			return nil, s.fail(op, err)
		}
	}
}

// inFlight is how many searches are sent without waiting for answers. It hides
// the latency of a tunnel; servers work on a few of one connection at a time.
const inFlight = 32

// found is the answer to one of many searches.
type found struct {
	result *ldap.SearchResult
	err    *Error // an answer other than success
	done   bool
}

// searchAll runs searches side by side on one connection. The error is that of
// the lot; what the directory answered to one search is in its found.
func (s *session) searchAll(op string, requests []*ldap.SearchRequest) ([]found, error) {
	out := make([]found, len(requests))
	for {
		c, err := s.conn()
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		err = s.round(c, op, requests, out, flight{inFlight, s.e.cfg.OpTimeout})
		if err == nil {
			if len(requests) >= inFlight {
				s.each = max(time.Since(begin)/time.Duration(len(requests)), 1)
			}
			s.proven, s.failures, s.odd = true, 0, false
			return out, nil
		}
		if !s.again(err) {
			return nil, s.fail(op, err)
		}
	}
}

// flight says how searches go side by side: how many of them, and how long
// each may take.
type flight struct {
	width int
	limit time.Duration
}

// round sends every search that has no answer yet.
func (s *session) round(c *conn, op string, requests []*ldap.SearchRequest, out []found, how flight) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		next  int   // guarded by mu
		first error // guarded by mu; the one that ended the round
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		for next < len(out) && out[next].done {
			next++
		}
		if first != nil || next == len(out) {
			return -1
		}
		next++
		return next - 1
	}
	work := func() {
		for i := take(); i >= 0; i = take() {
			err := s.within(how.limit, c, func(l *ldap.Conn) (err error) {
				out[i].result, err = l.Search(requests[i])
				return err
			})
			if err != nil && (!isAnswer(err) || passing(answerOf(err).Code)) {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
				return
			}
			if err != nil {
				out[i].err = s.e.toError(op, err)
			}
			out[i].done = true
		}
	}
	for range min(how.width, len(requests)) {
		wg.Go(work)
	}
	wg.Wait()
	return first
}

// passing reports whether an answer says something about the moment rather
// than about the request.
func passing(code uint16) bool {
	switch code {
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultTimeLimitExceeded,
		ldap.LDAPResultOther, ldap.LDAPResultOperationsError:
		return true
	}
	return false
}

// noAttributes asks for an entry and none of its attributes (RFC 4511 §4.5.1.8).
const noAttributes = "1.1"

// baseSearch looks at one entry.
func baseSearch(dn, filter string, attributes ...string) *ldap.SearchRequest {
	// A base search has one entry; a second one is not worth the memory.
	return &ldap.SearchRequest{
		BaseDN: dn, Scope: ldap.ScopeBaseObject, DerefAliases: ldap.NeverDerefAliases,
		Filter: filter, Attributes: attributes, SizeLimit: 2, EnforceSizeLimit: true,
	}
}
