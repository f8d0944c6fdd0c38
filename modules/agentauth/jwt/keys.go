package jwt

import (
	"context"
	"crypto"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// key is a public key that may verify.
type key struct {
	jose.JSONWebKey
	thumb thumbprint
}

// thumbprint is a key's RFC 7638 thumbprint with SHA-256. Unlike the key id it
// cannot belong to two keys.
type thumbprint [32]byte

// keySet holds the keys of one source and keeps them fresh. One goroutine
// fetches; everybody else reads what it found, or waits for its next answer.
type keySet struct {
	src    source
	client *http.Client
	first  *zap.Logger // while there is no configuration in force

	stop    context.CancelFunc
	stopped chan struct{} // closed when run has returned
	asked   chan struct{} // one place: somebody wants fresh keys
	waiters chan struct{} // as many places as may wait at once

	mu       sync.Mutex
	keys     []key         // guarded by mu
	fetched  time.Time     // guarded by mu; when keys were got; zero: never
	busy     bool          // guarded by mu; a fetch is under way
	attempts int           // guarded by mu; fetches that ended
	ended    time.Time     // guarded by mu; when the last one did
	round    chan struct{} // guarded by mu; closed when the next fetch ends
	failing  bool          // guarded by mu; the last fetch brought nothing
	ranOut   bool          // guarded by mu; it was logged that the keys are too old
}

const (
	// maxWaiters bounds the logins that wait for a fetch: anybody can name an
	// unknown key, and each of them holds one of the endpoint's places.
	maxWaiters = 64
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// startKeySet begins to fetch. Destruct ends it.
func startKeySet(src source, logger *zap.Logger) (*keySet, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &keySet{
		src: src, client: src.client(), first: logger, stop: cancel,
		stopped: make(chan struct{}), asked: make(chan struct{}, 1), waiters: make(chan struct{}, maxWaiters),
		round: make(chan struct{}),
	}
	if src.file != "" {
		// A file is at hand or never will be: say so while somebody looks.
		if _, _, err := src.keys(ctx, nil); err != nil {
			cancel()
			return nil, err
		}
	}
	go s.run(ctx)
	return s, nil
}

// Destruct implements caddy.Destructor. The keys stay readable, for links that
// are judged just then.
func (s *keySet) Destruct() error {
	s.stop()
	<-s.stopped
	return nil
}

// run fetches until ctx ends.
func (s *keySet) run(ctx context.Context) {
	defer close(s.stopped)
	retry := firstRetry
	for {
		wait := s.src.refresh
		if s.fetch(ctx) {
			retry = firstRetry
		} else {
			wait = min(wait, retry)
			retry = min(2*retry, lastRetry)
		}
		// Hubs that started together do not ask together.
		timer := time.NewTimer(wait - rand.N(wait/10+1))
		for again := false; !again; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				again = true
			case <-s.asked:
				again = s.rested() // an old request, answered already, is not
			}
		}
		timer.Stop()
	}
}

// fetch replaces the keys, or keeps them when it fails.
func (s *keySet) fetch(ctx context.Context) (ok bool) {
	s.mu.Lock()
	s.busy = true
	s.mu.Unlock()
	keys, skipped, err := s.src.keys(ctx, s.client)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy, s.ended = false, time.Now()
	s.attempts++
	if err == nil {
		s.tellChangeLocked(keys, skipped)
		s.keys, s.fetched, s.failing, s.ranOut = keys, s.ended, false, false
	} else if ctx.Err() == nil {
		s.tellFailureLocked(err)
		s.failing = true
	}
	close(s.round)
	s.round = make(chan struct{})
	return err == nil
}

// tellChangeLocked logs a set that is not the one before. Key ids are public.
func (s *keySet) tellChangeLocked(keys []key, skipped int) {
	same := slices.EqualFunc(s.keys, keys, func(a, b key) bool { return a.thumb == b.thumb && a.KeyID == b.KeyID })
	fields := []zap.Field{zap.String("source", s.src.name()), zap.Int("keys", len(keys)), zap.Int("unusable", skipped)}
	switch {
	case len(keys) == 0:
		s.logger().Error("the key set has no key that can verify: agents with a JWT cannot log in", fields...)
	case s.fetched.IsZero() || !same:
		s.logger().Info("keys for agents' tokens", fields...)
	case s.failing:
		s.logger().Info("keys for agents' tokens can be fetched again", fields...)
	}
}

// tellFailureLocked logs when a failure begins, and when the keys run out.
func (s *keySet) tellFailureLocked(err error) {
	fields := []zap.Field{zap.String("source", s.src.name()), zap.Error(err)}
	_, usable := s.usableLocked()
	switch {
	case s.fetched.IsZero() && !s.failing:
		s.logger().Error("there are no keys to verify tokens with: agents with a JWT cannot log in until they can be fetched", fields...)
	case !s.fetched.IsZero() && !usable && !s.ranOut:
		s.ranOut = true
		s.logger().Error("the keys are older than max_stale: agents with a JWT cannot log in until they can be fetched",
			append(fields, zap.Time("fetched", s.fetched))...)
	case !s.failing:
		s.logger().Warn("keys cannot be fetched, using those that are there",
			append(fields, zap.Time("fetched", s.fetched), zap.Duration("max_stale", s.src.maxStale))...)
	}
}

// logger is that of the configuration in force, which changes while the key
// set stays.
func (s *keySet) logger() *zap.Logger {
	if app := nowconnect.Current(); app != nil {
		return app.Logger().Named("agent_auth.jwt")
	}
	return s.first
}

// current returns the keys; ok is false when there are none to trust.
func (s *keySet) current() (keys []key, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usableLocked()
}

func (s *keySet) usableLocked() ([]key, bool) {
	if s.fetched.IsZero() || time.Since(s.fetched) > s.src.maxStale {
		return nil, false
	}
	return s.keys, true
}

// has reports whether a key is in the set now.
func (s *keySet) has(t thumbprint) bool {
	keys, ok := s.current()
	return ok && slices.ContainsFunc(keys, func(k key) bool { return k.thumb == t })
}

// rested reports whether the last fetch is long enough ago for another one
// that nobody planned.
func (s *keySet) rested() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.ended) >= s.src.cooldown
}

// renew waits for a fetch that ends from now on, and starts one if it may. It
// reports whether one did.
func (s *keySet) renew(ctx context.Context) bool {
	s.mu.Lock()
	busy, round := s.busy, s.round
	rested := time.Since(s.ended) >= s.src.cooldown
	s.mu.Unlock()
	if !busy && !rested {
		return false
	}
	select {
	case s.waiters <- struct{}{}:
		defer func() { <-s.waiters }()
	default:
		return false
	}
	if !busy {
		select {
		case s.asked <- struct{}{}:
		default:
		}
	}
	return s.await(ctx, round)
}

// waitFirst waits until there was a fetch, good or bad.
func (s *keySet) waitFirst(ctx context.Context) {
	s.mu.Lock()
	attempts, round := s.attempts, s.round
	s.mu.Unlock()
	if attempts == 0 {
		s.await(ctx, round)
	}
}

func (s *keySet) await(ctx context.Context, round <-chan struct{}) bool {
	ctx, cancel := context.WithTimeout(ctx, s.src.timeout+time.Second)
	defer cancel()
	select {
	case <-round:
		return true
	case <-s.stopped:
	case <-ctx.Done():
	}
	return false
}

// newKey returns k when it may verify.
func newKey(k jose.JSONWebKey) (key, bool) {
	if !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" || weak(k.Key) {
		return key{}, false
	}
	b, err := k.Thumbprint(crypto.SHA256)
	if err != nil {
		return key{}, false
	}
	return key{JSONWebKey: k, thumb: thumbprint(b)}, true
}
