package jwt

import (
	"sync"
	"time"
)

// proofs remembers what the tokens of live links said, so that the next
// configuration can judge them again. It is the process's: links outlive the
// configuration that let them in.
var proofs = &memory{bound: 16 << 10}

// memory maps tokens' digests to proofs until they expire. When it is full, the
// one that expires first is forgotten, whose link then does not survive the next
// reload: the agent logs in again.
type memory struct {
	bound int

	mu   sync.Mutex
	held map[[32]byte]held // guarded by mu
}

type held struct {
	proof
	expires time.Time
}

func (m *memory) put(digest [32]byte, p proof, expires time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == nil {
		m.held = make(map[[32]byte]held)
	}
	if _, ok := m.held[digest]; !ok && len(m.held) >= m.bound {
		m.evictLocked(time.Now())
	}
	m.held[digest] = held{p, expires}
}

// evictLocked forgets what has expired, or if nothing has, what will first.
func (m *memory) evictLocked(now time.Time) {
	var first [32]byte
	var when time.Time
	for d, h := range m.held {
		if !now.Before(h.expires) {
			delete(m.held, d)
		} else if when.IsZero() || h.expires.Before(when) {
			first, when = d, h.expires
		}
	}
	if len(m.held) >= m.bound {
		delete(m.held, first)
	}
}

func (m *memory) get(digest [32]byte) (proof, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.held[digest]
	return h.proof, ok && time.Now().Before(h.expires)
}
