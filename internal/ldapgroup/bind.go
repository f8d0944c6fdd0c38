package ldapgroup

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// bind proves who we are. Refused credentials are read again, once, in case
// they were rotated; the same ones are not shown again for a while, because
// directories lock accounts after some wrong passwords.
func (e *Engine) bind(ctx context.Context, c *conn) error {
	if e.cfg.Credentials == nil {
		return nil
	}
	var refused Credentials
	for try := 0; ; try++ {
		cred, err := e.cfg.Credentials(ctx)
		if err != nil {
			return &Error{Op: "read credentials", Directory: e.cfg.Name, Class: ClassAccount, Err: err}
		}
		if cred.DN == "" || cred.Password == "" {
			// An empty password is an anonymous bind in disguise.
			return &Error{Op: "bind", Directory: e.cfg.Name, Class: ClassAccount, Err: errNoCredentials}
		}
		if try > 0 && cred == refused {
			return e.lockout.err()
		}
		failed := e.show(ctx, c, cred)
		if failed == nil {
			return nil
		}
		if try > 0 || failed.Answer == nil || failed.Answer.Code != ldap.LDAPResultInvalidCredentials {
			return failed
		}
		refused = cred
	}
}

// show binds with the credentials, unless they were refused a moment ago.
func (e *Engine) show(ctx context.Context, c *conn, cred Credentials) *Error {
	end, err := e.lockout.turn(ctx, cred)
	if err != nil {
		return e.toError("bind", err)
	}
	defer end()
	if err := e.lockout.check(cred); err != nil {
		return err
	}
	err = c.do(ctx, func(l *ldap.Conn) error {
		_, err := l.SimpleBind(ldap.NewSimpleBindRequest(cred.DN, cred.Password, nil))
		return err
	})
	if err == nil {
		e.lockout.accept(cred)
		return nil
	}
	failed := e.toError("bind", err)
	if failed.Answer != nil && failed.Answer.Code == ldap.LDAPResultInvalidCredentials {
		e.lockout.refuse(cred, failed)
	}
	return failed
}

var errNoCredentials = errors.New("bind name or password is empty")

// lockout remembers refused credentials, and lets those that have not been
// accepted yet be shown by one connection at a time: a pool that fills up with
// a wrong password could lock the account at once.
type lockout struct {
	one chan struct{} // holds the turn; has room for one

	mu      sync.Mutex
	proven  Credentials   // guarded by mu; accepted last; the zero value is none
	refused Credentials   // guarded by mu; the zero value is none
	until   time.Time     // guarded by mu
	pause   time.Duration // guarded by mu
	last    *Error        // guarded by mu
}

const (
	lockoutMin = 5 * time.Second
	lockoutMax = 5 * time.Minute
)

// turn waits until the credentials may be shown; end must be called then.
func (l *lockout) turn(ctx context.Context, c Credentials) (end func(), err error) {
	l.mu.Lock()
	proven := l.proven == c
	l.mu.Unlock()
	if proven {
		return func() {}, nil
	}
	select {
	case l.one <- struct{}{}:
		return func() { <-l.one }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// check returns why the credentials must not be shown now, nil when they may.
func (l *lockout) check(c Credentials) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused == c && time.Now().Before(l.until) {
		return l.last
	}
	return nil
}

func (l *lockout) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *lockout) refuse(c Credentials, err *Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused != c {
		l.pause = 0
	}
	l.pause = min(max(2*l.pause, lockoutMin), lockoutMax)
	l.refused, l.until, l.last = c, time.Now().Add(l.pause), err
	if l.proven == c {
		l.proven = Credentials{}
	}
}

func (l *lockout) accept(c Credentials) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proven = c
	if l.refused == c {
		l.refused, l.pause = Credentials{}, 0
	}
}
