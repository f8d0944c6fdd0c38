package ldapgroup

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Engine serves one directory. It is safe for concurrent use. Close it.
type Engine struct {
	cfg         Config // with its defaults filled in
	rules       []*rule
	memberBases []name
	pool        *pool
	lockout     lockout

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	stop   chan struct{}  // closed by Close, for the pool's sweeper
	wait   sync.WaitGroup // calls, workers, sweeper, dials

	mu     sync.Mutex
	closed bool              // guarded by mu
	queues map[string]*queue // guarded by mu; by the group's key
	queued int               // guarded by mu

	pages snapshots
	scans scans
}

// New checks c and returns an Engine. It does not dial: the directory may be
// down when the configuration is loaded. The first operation, or Check,
// connects and looks at the server.
func New(c Config) (*Engine, error) {
	e := &Engine{cfg: c, stop: make(chan struct{}), queues: make(map[string]*queue)}
	e.lockout.one = make(chan struct{}, 1)
	if err := e.configure(); err != nil {
		return nil, fmt.Errorf("ldap directory %q: %w", c.Name, err)
	}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	e.pool = newPool(e)
	e.wait.Add(1)
	go func() {
		defer e.wait.Done()
		e.pool.run(e.stop)
	}()
	return e, nil
}

// configure fills in defaults and refuses what cannot work or is not safe.
func (e *Engine) configure() error {
	c := &e.cfg
	fill(&c.MinConns, 2)
	fill(&c.MaxConns, 8)
	fill(&c.IdleTime, 4*time.Minute)
	fill(&c.HealthAfter, 15*time.Second)
	fill(&c.DialTimeout, 10*time.Second)
	fill(&c.OpTimeout, 15*time.Second)
	fill(&c.ChangeTimeout, time.Minute)
	fill(&c.MaxResponseBytes, 32<<20)
	fill(&c.MaxMembers, 50_000)
	fill(&c.MaxQueue, 1024)
	fill(&c.Attempts, 5)
	switch {
	case c.Name == "":
		return errors.New("no name")
	case c.Dial == nil:
		return errors.New("no way to dial")
	case c.MinConns < 0 || c.MaxConns < 1 || c.MinConns > c.MaxConns:
		return fmt.Errorf("connections from %d to %d make no sense", c.MinConns, c.MaxConns)
	case c.IdleTime < 0 || c.HealthAfter < 0 || c.DialTimeout < 0 || c.OpTimeout < 0 || c.ChangeTimeout < 0:
		return errors.New("a duration is negative")
	case c.MaxResponseBytes < 0 || c.MaxMembers < 0 || c.MaxQueue < 0 || c.Attempts < 0:
		return errors.New("a limit is negative")
	case len(c.Groups) == 0:
		return errors.New("no groups are allowed")
	case len(c.MemberBases) == 0 && !c.AnyMember:
		return errors.New("no member bases; allow any member explicitly")
	case c.AllowSID && c.Lookup == LookupNever:
		return errors.New("SID and GUID forms need the lookup")
	}
	if err := e.configureTLS(); err != nil {
		return err
	}
	for _, base := range c.MemberBases {
		n, err := parseName(base)
		if err != nil {
			return fmt.Errorf("member base %q: %w", base, err)
		}
		e.memberBases = append(e.memberBases, n)
	}
	var err error
	e.rules, err = parseRules(c.Groups)
	return err
}

func fill[T int | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (e *Engine) configureTLS() error {
	c := &e.cfg
	switch c.Security {
	case Plaintext:
		if c.Credentials != nil && !c.AllowPlaintextBind {
			return errors.New("credentials would cross the network in the clear: use TLS or allow it explicitly")
		}
		return nil
	case LDAPS, StartTLS:
	default:
		return errors.New("no security chosen")
	}
	if c.TLS == nil || c.TLS.ServerName == "" && !c.TLS.InsecureSkipVerify {
		return errors.New("TLS needs a server name to verify")
	}
	c.TLS = c.TLS.Clone()
	c.TLS.MinVersion = max(c.TLS.MinVersion, tls.VersionTLS12)
	return nil
}

// Close ends all operations, closes the connections and waits for both. It may
// be called more than once; operations begun afterwards fail with
// [ClassUnavailable].
func (e *Engine) Close() {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	if first {
		e.cancel(errClosed)
		close(e.stop)
		e.pool.close()
	}
	e.wait.Wait()
}

// Retire gives up the connections that there are: the idle ones at once, the
// others when what they are used for is over. Calls go on, over new ones.
func (e *Engine) Retire() { e.pool.retire() }

// begin registers a call and bounds its time. end must be called.
func (e *Engine) begin(ctx context.Context, op, group string) (_ context.Context, end func(), err error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, nil, e.toError(op, errClosed).about(group, "")
	}
	e.wait.Add(1)
	e.mu.Unlock()
	ctx, cancelTime := context.WithTimeout(ctx, e.cfg.ChangeTimeout)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(errClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		cancelTime()
		e.wait.Done()
	}, nil
}

// Ping says whether the directory can be used now: it takes a connection and
// reads the rootDSE.
func (e *Engine) Ping(ctx context.Context) error {
	ctx, end, err := e.begin(ctx, "ping", "")
	if err != nil {
		return err
	}
	defer end()
	s := e.session(ctx)
	defer s.close()
	_, err = s.search("ping", baseSearch("", "(objectClass=*)", noAttributes))
	return err
}

// Stats are those of the pool, at the moment.
type Stats struct {
	Open, Idle int // connections
	Queued     int // calls waiting for their group's turn
}

// Stats returns the numbers of the moment.
func (e *Engine) Stats() Stats {
	open, idle := e.pool.stats()
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{Open: open, Idle: idle, Queued: e.queued}
}
