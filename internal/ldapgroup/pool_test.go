package ldapgroup_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// bubble runs f in fake time with an engine on d, which it closes.
func bubble(t *testing.T, d *fake, mod func(*Config), f func(t *testing.T, e *Engine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := d.config()
		if mod != nil {
			mod(&c)
		}
		e, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		f(t, e)
	})
}

func TestIdleConnectionsGo(t *testing.T) {
	d := newFake()
	var release chan struct{}
	d.on = func(r *request) reply {
		if r.op == "search" && r.dn != "" {
			return reply{wait: release}
		}
		return reply{}
	}
	bubble(t, d, func(c *Config) { c.IdleTime, c.HealthAfter = 4*time.Minute, 15*time.Second }, func(t *testing.T, e *Engine) {
		release = make(chan struct{})
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { _, _ = e.IsMember(context.Background(), fakeGroup, person(1)) })
		}
		synctest.Wait()
		if s := e.Stats(); s.Open != 6 || s.Idle != 0 {
			t.Errorf("with 6 callers: %+v", s)
		}
		close(release)
		wg.Wait()
		time.Sleep(50 * time.Second)
		if s := e.Stats(); s.Open != 6 {
			t.Errorf("after 50 s: %+v", s)
		}
		time.Sleep(40 * time.Second)
		if s := e.Stats(); s.Open != 2 || s.Idle != 2 {
			t.Errorf("after 90 s: %+v", s)
		}
		time.Sleep(4 * time.Minute)
		if s := e.Stats(); s.Open != 0 {
			t.Errorf("after 5.5 min: %+v", s)
		}
	})
}

func TestPoolIsBounded(t *testing.T) {
	d := newFake()
	for i := range 40 {
		d.groups[fmt.Sprintf("cn=g%d,ou=groups", i)] = map[string]bool{}
	}
	bubble(t, d, func(c *Config) { c.MaxConns = 5 }, func(t *testing.T, e *Engine) {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				r, err := e.Change(context.Background(), fmt.Sprintf("cn=g%d,ou=groups", i), persons(1, 3), nil, ChangeOptions{})
				if err != nil || !r.Complete() {
					t.Errorf("group %d: %v, %v", i, r, err)
				}
			})
		}
		wg.Wait()
		if d.most > 5 {
			t.Errorf("%d connections at once", d.most)
		}
	})
}

// A connection that died while idle costs its next user nothing.
func TestDeadIdleConnectionIsReplaced(t *testing.T) {
	for _, idle := range []time.Duration{time.Second, time.Minute} {
		d := newFake()
		cut := false
		d.on = func(*request) reply { return reply{cutBefore: cut} }
		bubble(t, d, nil, func(t *testing.T, e *Engine) {
			cut = false
			change(t, e, persons(1, 1), nil)
			time.Sleep(idle)
			d.on = func() func(*request) reply {
				old := true // the old connection answers no more
				return func(*request) reply {
					defer func() { old = false }()
					return reply{cutBefore: old}
				}
			}()
			if got := brief(change(t, e, persons(2, 2), nil)); got != "added/true" {
				t.Errorf("idle for %s: %s", idle, got)
			}
		})
	}
}

func TestCredentialsRotate(t *testing.T) {
	d := newFake()
	password, calls := "old", 0
	valid := "old"
	d.on = func(r *request) reply {
		if r.op == "bind" && r.password != valid {
			return reply{code: 49}
		}
		return reply{}
	}
	bubble(t, d, func(c *Config) {
		c.Credentials = func(context.Context) (Credentials, error) {
			calls++
			p := password
			password = "new" // what the file holds a moment later
			return Credentials{DN: "cn=svc", Password: p}, nil
		}
	}, func(t *testing.T, e *Engine) {
		valid = "new"
		if got := brief(change(t, e, persons(1, 1), nil)); got != "added/true" {
			t.Errorf("after rotation: %s", got)
		}
		if binds := d.saw("bind"); len(binds) != 2 || calls != 2 {
			t.Errorf("%d binds, credentials read %d times", len(binds), calls)
		}
	})
}

// Wrong credentials must not lock the account: however many callers there
// are, the directory sees few of them.
func TestWrongCredentialsAreShownRarely(t *testing.T) {
	d := newFake()
	d.on = func(r *request) reply {
		if r.op == "bind" {
			return reply{code: 49, diagnostic: "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 52e, v2580\n\x00"}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		for range 200 {
			_, err := e.Change(context.Background(), fakeGroup, persons(1, 1), nil, ChangeOptions{})
			if class(err) != ClassAccount || strings.ContainsAny(err.Error(), "\x00\n") || strings.Contains(err.Error(), "pw") {
				t.Fatalf("got %q", err)
			}
			time.Sleep(time.Second)
		}
		// At 0, 5, 15, 35, 75 and 155 s.
		if n := len(d.saw("bind")); n != 6 {
			t.Errorf("%d binds in 200 s", n)
		}
	})
}

// An empty password is an anonymous bind, which succeeds, in disguise.
func TestEmptyPasswordIsNotShown(t *testing.T) {
	d := newFake()
	empty := func(c *Config) {
		c.Credentials = func(context.Context) (Credentials, error) { return Credentials{DN: "cn=service,dc=example"}, nil }
	}
	bubble(t, d, empty, func(t *testing.T, e *Engine) {
		_, err := e.Change(context.Background(), fakeGroup, persons(1, 1), nil, ChangeOptions{})
		if class(err) != ClassAccount || !strings.Contains(err.Error(), "password is empty") {
			t.Errorf("got %v", err)
		}
		if n := len(d.saw("bind")); n != 0 {
			t.Errorf("%d binds", n)
		}
	})
}

func TestDirectoryAway(t *testing.T) {
	d := newFake()
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		change(t, e, persons(1, 1), nil)
		d.setDown(true)
		d.on = func(*request) reply { return reply{cutBefore: true} }
		begin := time.Now()
		_, err := e.Change(context.Background(), fakeGroup, persons(2, 2), nil, ChangeOptions{})
		var own *Error
		if !errors.As(err, &own) || own.Class != ClassUnavailable || own.RetryAfter == 0 || !errors.Is(err, errRefused) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		before := d.dials
		for range 100 {
			_, _ = e.Change(context.Background(), fakeGroup, persons(2, 2), nil, ChangeOptions{})
		}
		if n := d.dials - before; n > 300 {
			t.Errorf("%d dials for 100 calls", n)
		}
		d.setDown(false)
		d.on = nil
		time.Sleep(2 * time.Second)
		if got := brief(change(t, e, persons(2, 2), nil)); got != "added/true" {
			t.Errorf("back again: %s", got)
		}
		if err := e.Ping(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A directory that comes back while callers wait costs them patience only.
func TestDirectoryAwayForASecond(t *testing.T) {
	d := newFake()
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		d.setDown(true)
		go func() {
			time.Sleep(time.Second)
			d.setDown(false)
		}()
		if got := brief(change(t, e, persons(1, 1), nil)); got != "added/true" {
			t.Error(got)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	d := newFake()
	var never chan struct{}
	d.on = func(r *request) reply {
		if r.op == "modify" {
			return reply{wait: never}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		never = make(chan struct{})
		var wg sync.WaitGroup
		results := make(chan string, 10)
		for i := range 10 {
			wg.Go(func() {
				r, err := e.Change(context.Background(), fakeGroup, persons(i, i), nil, ChangeOptions{})
				if err != nil {
					results <- string(class(err))
				} else {
					results <- brief(r)
				}
			})
		}
		synctest.Wait()
		e.Close()
		e.Close()
		wg.Wait()
		close(results)
		// Some of them were in the request that nobody answered.
		count := map[string]int{}
		for r := range results {
			count[r]++
		}
		if n := count["unknown/null/unavailable"]; n == 0 || n+count["unavailable"] != 10 {
			t.Errorf("got %v", count)
		}
		_, err := e.Read(context.Background(), fakeGroup, ReadOptions{})
		if class(err) != ClassUnavailable {
			t.Errorf("after Close: %v", err)
		}
		close(never)
		synctest.Wait()
		if d.conns != 0 {
			t.Errorf("%d connections are left", d.conns)
		}
	})
}

// Nor at one time: a password that is wrong is shown once, however many
// connections are wanted at that moment.
func TestWrongCredentialsAreShownOnceByMany(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	d.on = func(r *request) reply {
		if r.op == "bind" {
			return reply{code: 49, wait: gate}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := e.Ping(context.Background()); class(err) != ClassAccount {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := len(d.saw("bind")); n != 1 {
			t.Errorf("%d binds", n)
		}
	})
}
