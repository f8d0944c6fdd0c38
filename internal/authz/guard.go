package authz

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// GuardConfig says how a [Guard] treats its engine.
type GuardConfig struct {
	// Timeout bounds every question: waiting for a free place and the call
	// itself. 0 means 500 ms.
	Timeout time.Duration
	// AllowTTL and DenyTTL say how long an answer is kept. 0 keeps none.
	AllowTTL, DenyTTL time.Duration
	// CacheSize bounds the number of kept answers. 0 means 10000.
	CacheSize int
	// MaxCalls bounds the calls at one time. 0 means 64.
	MaxCalls int
	// BreakerFailures is how many calls in a row must fail for the engine to be
	// left alone. 0 means 5.
	BreakerFailures int
	// BreakerPause is how long it is left alone before one question probes it.
	// 0 means 1 s.
	BreakerPause time.Duration
	// BreakerChanged, when not nil, is told when the breaker opens and closes.
	// It must not block.
	BreakerChanged func(open bool)
	// Panicked, when not nil, is told when the engine panics, which makes an
	// error of that one question.
	Panicked func(value any, stack []byte)
}

func (c GuardConfig) withDefaults() GuardConfig {
	if c.Timeout == 0 {
		c.Timeout = 500 * time.Millisecond
	}
	if c.CacheSize == 0 {
		c.CacheSize = 10_000
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = 64
	}
	if c.BreakerFailures == 0 {
		c.BreakerFailures = 5
	}
	if c.BreakerPause == 0 {
		c.BreakerPause = time.Second
	}
	return c
}

// Guard stands between the hub and an engine that may be slow, absent or
// wrong, such as a PDP on the network. It remembers answers, asks one question
// once when many wait for the same answer, bounds each wait and the number of
// calls, and leaves a failing engine alone for a while.
//
// It keeps nothing that needs to be closed: a call that was begun runs in a
// goroutine of its own, to its deadline at most, even when everybody who waited
// for it has gone; its answer serves the next who asks, and tells whether the
// engine lives.
type Guard struct {
	engine  Decider
	cfg     GuardConfig
	cache   *cache
	breaker breaker
	places  chan struct{} // one per running call

	mu      sync.Mutex
	flights map[string]*flight
}

// flight is one question on its way.
type flight struct {
	done     chan struct{} // closed when decision is set
	decision Decision
}

var (
	errBreakerOpen = errors.New("not asked: the policy engine failed repeatedly just now")
	errLimit       = errors.New("not asked: too many questions to the policy engine at once")
)

// NewGuard makes a Guard for an engine.
func NewGuard(engine Decider, cfg GuardConfig) *Guard {
	cfg = cfg.withDefaults()
	return &Guard{
		engine:  engine,
		cfg:     cfg,
		cache:   newCache(cfg.AllowTTL, cfg.DenyTTL, cfg.CacheSize),
		breaker: breaker{threshold: cfg.BreakerFailures, pause: cfg.BreakerPause, changed: cfg.BreakerChanged},
		places:  make(chan struct{}, cfg.MaxCalls),
		flights: make(map[string]*flight),
	}
}

// Decide implements Decider. It returns within the timeout, and earlier when
// ctx ends.
func (g *Guard) Decide(ctx context.Context, r *Request) Decision {
	k := keyBuffers.Get().(*keyBuffer)
	canonical := k.encode(r)
	if canonical {
		if d, ok := g.cache.get(k.bytes); ok {
			keyBuffers.Put(k)
			return d
		}
	}
	var f *flight
	if canonical {
		f = g.join(k.bytes, r)
	} else {
		f = &flight{done: make(chan struct{})}
		go g.fly(f, "", g.cache.now(), r)
	}
	keyBuffers.Put(k)
	return g.wait(ctx, f)
}

// Flush forgets all answers, also those on their way. Call it when the policy
// behind the engine has changed.
func (g *Guard) Flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.flights) // whoever waits gets the old answer, whoever comes asks anew
	g.cache.flush()
}

// join finds the question on its way, or sends it.
func (g *Guard) join(key []byte, r *Request) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[string(key)]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{})}
	name := string(key)
	g.flights[name] = f
	go g.fly(f, name, g.cache.now(), r)
	return f
}

// wait gives up with ctx or at the deadline: also on a flight that somebody
// else began, and on an engine that forgets its own deadline.
func (g *Guard) wait(ctx context.Context, f *flight) Decision {
	timer := time.NewTimer(g.cfg.Timeout)
	defer timer.Stop()
	select {
	case <-f.done:
		return f.decision
	case <-ctx.Done():
		return Fail(KindTimeout, fmt.Errorf("asking the policy engine: %w", context.Cause(ctx)))
	case <-timer.C:
	}
	select {
	case <-f.done: // at the same moment, and it knows better why
		return f.decision
	default:
		return Fail(KindTimeout, g.late())
	}
}

func (g *Guard) late() error {
	return fmt.Errorf("the policy engine gave no answer within %s: %w", g.cfg.Timeout, context.DeadlineExceeded)
}

// fly gets the answer to one question for all who wait for it. The cache is
// filled before the flight is taken off the list, so that nobody finds neither.
func (g *Guard) fly(f *flight, key string, age uint64, r *Request) {
	asked := time.Now()
	f.decision = g.ask(r)
	if key != "" {
		g.cache.put(key, age, asked, f.decision)
		g.mu.Lock()
		if g.flights[key] == f {
			delete(g.flights, key)
		}
		g.mu.Unlock()
	}
	close(f.done)
}

// ask takes a place, asks the breaker and then the engine.
func (g *Guard) ask(r *Request) Decision {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Timeout)
	defer cancel()
	select {
	case g.places <- struct{}{}:
	case <-ctx.Done():
		return Fail(KindLimit, errLimit)
	}
	defer func() { <-g.places }()
	// Only now: while we waited the breaker may have opened.
	epoch, ok := g.breaker.admit()
	if !ok {
		return Fail(KindBreakerOpen, errBreakerOpen)
	}
	d := g.call(ctx, r)
	if d.Outcome != Allow && d.Outcome != Deny && ctx.Err() != nil {
		d = Fail(KindTimeout, g.late()) // whatever the engine calls it
	}
	g.breaker.report(epoch, healthOf(d))
	return d
}

// call keeps a panic of the engine from ending the process: this goroutine has
// no caller who could.
func (g *Guard) call(ctx context.Context, r *Request) (d Decision) {
	defer func() {
		if p := recover(); p != nil {
			if g.cfg.Panicked != nil {
				g.cfg.Panicked(p, debug.Stack())
			}
			d = Fail(KindPanic, fmt.Errorf("policy engine panicked: %v", p))
		}
	}()
	return g.engine.Decide(ctx, r)
}
