package ldapadmin

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// Bounds of kept answers.
const (
	maxKey        = 255      // bytes of an Idempotency-Key
	maxKept       = 10_000   // answers
	maxKeptMemory = 64 << 20 // bytes of answers
)

// keepKey is who said which key where. Callers do not see each other's.
type keepKey struct{ site, caller, key string }

// kept is a request with its answer, or with none yet.
type kept struct {
	key     keepKey
	request [sha256.Size]byte // digest of what was asked
	done    chan struct{}     // closed when answer is set or the request gave up
	answer  *response         // nil until done; nil afterwards: not kept
	expires time.Time
}

// keeper remembers the answers to writes that carried an Idempotency-Key, for a
// bounded time and in bounded memory. When full it forgets the oldest: the
// writes are idempotent by themselves, and all that is lost is what the first
// one changed. Safe for concurrent use.
type keeper struct {
	ttl time.Duration
	now func() time.Time

	mu     sync.Mutex
	all    map[keepKey]*list.Element
	order  *list.List // of *kept that are done, oldest first
	memory int
}

func newKeeper(ttl time.Duration) *keeper {
	return &keeper{ttl: ttl, now: time.Now, all: make(map[keepKey]*list.Element), order: list.New()}
}

// setTTL changes how long answers are kept from now on.
func (k *keeper) setTTL(ttl time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ttl = ttl
}

var (
	errKeyReused = errors.New("the key was used for another request")
	errKeyInUse  = errors.New("a request with the same key is still being served")
)

// do serves a request once. A repetition gets the first one's answer; one that
// comes while the first is still served waits for it, up to the end of ctx.
// serve's answer is kept when keep says so.
func (k *keeper) do(ctx context.Context, key keepKey, request [sha256.Size]byte, serve func() *response) (r *response, replayed bool, err error) {
	for {
		mine, theirs := k.begin(key, request)
		if mine != nil {
			return k.serve(mine, serve), false, nil
		}
		if theirs.request != request {
			return nil, false, errKeyReused
		}
		select {
		case <-theirs.done:
			if theirs.answer != nil {
				return theirs.answer, true, nil
			}
			// It was not worth keeping; this one is served in its place.
		case <-ctx.Done():
			return nil, false, errKeyInUse
		}
	}
}

// begin registers the request, or finds who was first.
func (k *keeper) begin(key keepKey, request [sha256.Size]byte) (mine, theirs *kept) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expireLocked()
	if e := k.all[key]; e != nil {
		return nil, e.Value.(*kept)
	}
	mine = &kept{key: key, request: request, done: make(chan struct{})}
	k.all[key] = &list.Element{Value: mine} // in no list until it is done
	return mine, nil
}

// serve runs the request and settles it, also when serve panics.
func (k *keeper) serve(mine *kept, serve func() *response) (r *response) {
	defer func() { k.settle(mine, r) }()
	return serve()
}

func (k *keeper) settle(mine *kept, r *response) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer close(mine.done)
	delete(k.all, mine.key)
	if r == nil || !worthKeeping(r.status) || len(r.body) > maxKeptMemory/16 {
		return
	}
	mine.answer, mine.expires = r, k.now().Add(k.ttl)
	k.all[mine.key] = k.order.PushBack(mine)
	k.memory += len(r.body)
	for k.order.Len() > maxKept || k.memory > maxKeptMemory {
		k.dropLocked(k.order.Front())
	}
}

// worthKeeping: what was carried out is kept. After anything else the caller
// may mend its request, or wait, and try again with the same key.
func worthKeeping(status int) bool {
	return status == http.StatusOK || status == http.StatusMultiStatus
}

func (k *keeper) expireLocked() {
	now := k.now()
	for e := k.order.Front(); e != nil && !now.Before(e.Value.(*kept).expires); e = k.order.Front() {
		k.dropLocked(e)
	}
}

func (k *keeper) dropLocked(e *list.Element) {
	old := k.order.Remove(e).(*kept)
	delete(k.all, old.key)
	k.memory -= len(old.answer.body)
}

// Destruct implements caddy.Destructor. There is nothing to stop.
func (k *keeper) Destruct() error { return nil }

// idempotencyKey reads the header. It is empty when there is none.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values(groupapi.HeaderIdempotencyKey)
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", errors.New("several Idempotency-Key headers")
	case values[0] == "" || len(values[0]) > maxKey:
		return "", errors.New("Idempotency-Key is empty or longer than 255 bytes")
	}
	for i := range len(values[0]) {
		if c := values[0][i]; c < 0x20 || c > 0x7e {
			return "", errors.New("Idempotency-Key has other than printable ASCII characters")
		}
	}
	return values[0], nil
}

// digest identifies what a request asks for.
func digest(r *http.Request, body []byte) [sha256.Size]byte {
	h := sha256.New()
	for _, s := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("If-Match")} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}
