package authz

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
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
	// MaxCalls bounds the calls at one time; a batch is one call. 0 means 64.
	MaxCalls int
	// MaxBatch bounds the questions of one call to an engine that is a
	// BatchDecider. 0 means 64.
	MaxBatch int
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
	if c.MaxBatch == 0 {
		c.MaxBatch = 64
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
	tooLate error         // what a timeout says

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
		tooLate: fmt.Errorf("the policy engine gave no answer within %s: %w", cfg.Timeout, context.DeadlineExceeded),
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
		f = g.join(k.bytes, func(f *flight, t ticket) { go g.fly(f, t, r) })
	} else {
		f = &flight{done: make(chan struct{})}
		go g.fly(f, ticket{age: g.cache.now()}, r)
	}
	keyBuffers.Put(k)
	ctx, cancel := g.deadline(ctx)
	defer cancel()
	return g.wait(ctx, f)
}

// DecideBatch implements BatchDecider. What is remembered or already being
// asked is not asked again; the rest goes to the engine together when it is a
// BatchDecider, and one by one when it is not. All share one deadline.
func (g *Guard) DecideBatch(ctx context.Context, rs []*Request) []Decision {
	out := make([]Decision, len(rs))
	waits := make([]*flight, len(rs)) // nil: answered from the cache
	var ask []boarding
	k := keyBuffers.Get().(*keyBuffer)
	for i, r := range rs {
		if !k.encode(r) {
			waits[i] = &flight{done: make(chan struct{})}
			ask = append(ask, boarding{waits[i], ticket{age: g.cache.now()}, r})
			continue
		}
		var ok bool
		if out[i], ok = g.cache.get(k.bytes); !ok {
			waits[i] = g.join(k.bytes, func(f *flight, t ticket) { ask = append(ask, boarding{f, t, r}) })
		}
	}
	keyBuffers.Put(k)
	if engine, ok := g.engine.(BatchDecider); ok {
		for some := range slices.Chunk(ask, g.cfg.MaxBatch) {
			go g.flyTogether(engine, some)
		}
	} else {
		for _, b := range ask {
			go g.fly(b.flight, b.ticket, b.request)
		}
	}
	ctx, cancel := g.deadline(ctx)
	defer cancel()
	for i, f := range waits {
		if f != nil {
			out[i] = g.wait(ctx, f)
		}
	}
	return out
}

// Flush forgets all answers, also those on their way. Call it when the policy
// behind the engine has changed.
func (g *Guard) Flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.flights) // whoever waits gets the old answer, whoever comes asks anew
	g.cache.flush()
}

// ticket is what an answer needs to be kept.
type ticket struct {
	key string // empty: not to be kept
	age uint64
}

// boarding is a question that is to go on its way.
type boarding struct {
	flight  *flight
	ticket  ticket
	request *Request
}

// join finds the question on its way, or has it sent.
func (g *Guard) join(key []byte, send func(*flight, ticket)) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[string(key)]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{})}
	name := string(key)
	g.flights[name] = f
	send(f, ticket{name, g.cache.now()})
	return f
}

// deadline gives ctx the timeout of a question.
func (g *Guard) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, g.cfg.Timeout, g.tooLate)
}

// wait gives up with ctx, which has the deadline: also on a flight that somebody
// else began, and on an engine that forgets its own deadline.
func (g *Guard) wait(ctx context.Context, f *flight) Decision {
	select {
	case <-f.done:
		return f.decision
	case <-ctx.Done():
	}
	select {
	case <-f.done: // at the same moment, and it knows better why
		return f.decision
	default:
		cause := context.Cause(ctx)
		if !errors.Is(cause, g.tooLate) {
			cause = fmt.Errorf("asking the policy engine: %w", cause)
		}
		return Fail(KindTimeout, cause)
	}
}

// fly gets the answer to one question for all who wait for it.
func (g *Guard) fly(f *flight, t ticket, r *Request) {
	asked := time.Now()
	g.land(f, t, asked, g.ask(func(ctx context.Context) []Decision {
		return []Decision{g.engine.Decide(ctx, r)}
	}, 1)[0])
}

// flyTogether gets the answers to several questions in one call.
func (g *Guard) flyTogether(engine BatchDecider, some []boarding) {
	rs := make([]*Request, len(some))
	for i, b := range some {
		rs[i] = b.request
	}
	asked := time.Now()
	answers := g.ask(func(ctx context.Context) []Decision { return DecideAll(ctx, engine, rs) }, len(rs))
	for i, b := range some {
		g.land(b.flight, b.ticket, asked, answers[i])
	}
}

// land hands out an answer. The cache is filled before the flight is taken off
// the list, so that nobody finds neither.
func (g *Guard) land(f *flight, t ticket, asked time.Time, d Decision) {
	f.decision = d
	if t.key != "" {
		g.cache.put(t.key, t.age, asked, d)
		g.mu.Lock()
		if g.flights[t.key] == f {
			delete(g.flights, t.key)
		}
		g.mu.Unlock()
	}
	close(f.done)
}

// ask takes a place, asks the breaker and then the engine about n questions.
func (g *Guard) ask(call func(context.Context) []Decision, n int) []Decision {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Timeout)
	defer cancel()
	select {
	case g.places <- struct{}{}:
	case <-ctx.Done():
		return failAll(n, KindLimit, errLimit)
	}
	defer func() { <-g.places }()
	if deadline, _ := ctx.Deadline(); !time.Now().Before(deadline) { // both at the same moment
		return failAll(n, KindLimit, errLimit)
	}
	// Only now: while we waited the breaker may have opened.
	epoch, ok := g.breaker.admit()
	if !ok {
		return failAll(n, KindBreakerOpen, errBreakerOpen)
	}
	answers := g.call(ctx, call, n)
	best := sick
	for i, d := range answers {
		if d.Outcome != Allow && d.Outcome != Deny && ctx.Err() != nil {
			answers[i] = Fail(KindTimeout, g.tooLate) // whatever the engine calls it
		}
		if h := healthOf(answers[i]); h == healthy || h == silent && best == sick {
			best = h // one answer shows that the engine lives
		}
	}
	g.breaker.report(epoch, best)
	return answers
}

func failAll(n int, kind Kind, err error) []Decision {
	return slices.Repeat([]Decision{Fail(kind, err)}, n)
}

// call keeps a panic of the engine from ending the process: this goroutine has
// no caller who could.
func (g *Guard) call(ctx context.Context, call func(context.Context) []Decision, n int) (answers []Decision) {
	defer func() {
		if p := recover(); p != nil {
			if g.cfg.Panicked != nil {
				g.cfg.Panicked(p, debug.Stack())
			}
			answers = failAll(n, KindPanic, fmt.Errorf("policy engine panicked: %v", p))
		}
	}()
	return call(ctx)
}
