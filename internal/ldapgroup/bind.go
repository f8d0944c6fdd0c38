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
		if failed.Answer == nil || failed.Answer.Code != ldap.LDAPResultInvalidCredentials {
			return failed
		}
		e.lockout.refuse(cred, failed)
		if try > 0 {
			return failed
		}
		refused = cred
	}
}

var errNoCredentials = errors.New("bind name or password is empty")

// lockout remembers refused credentials.
type lockout struct {
	mu      sync.Mutex
	refused Credentials   // guarded by mu; the zero value is none
	until   time.Time     // guarded by mu
	pause   time.Duration // guarded by mu
	last    *Error        // guarded by mu
}

const (
	lockoutMin = 5 * time.Second
	lockoutMax = 5 * time.Minute
)

func (l *lockout) check(c Credentials) error {
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
}

func (l *lockout) accept(c Credentials) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused == c {
		l.refused, l.pause = Credentials{}, 0
	}
}
