package mtls

import (
	"crypto/x509"
	"sync"
	"time"
)

// leaves remembers the certificates of live links, so that the next
// configuration can judge them again. It is the process's: links outlive the
// configuration that let them in.
var leaves = &memory{bound: 16 << 10}

// memory maps digests to certificates until they expire. When it is full, the
// one that expires first is forgotten, whose link then does not survive the next
// reload: the agent logs in again.
type memory struct {
	bound int

	mu   sync.Mutex
	held map[[32]byte]*x509.Certificate // guarded by mu
}

func (m *memory) put(digest [32]byte, c *x509.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held == nil {
		m.held = make(map[[32]byte]*x509.Certificate)
	}
	if _, ok := m.held[digest]; !ok && len(m.held) >= m.bound {
		m.evictLocked(time.Now())
	}
	m.held[digest] = c
}

// evictLocked forgets what has expired, or if nothing has, what will first.
func (m *memory) evictLocked(now time.Time) {
	var first [32]byte
	var when time.Time
	for d, c := range m.held {
		if now.After(c.NotAfter) {
			delete(m.held, d)
		} else if when.IsZero() || c.NotAfter.Before(when) {
			first, when = d, c.NotAfter
		}
	}
	if len(m.held) >= m.bound {
		delete(m.held, first)
	}
}

func (m *memory) get(digest [32]byte) (*x509.Certificate, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.held[digest]
	return c, ok
}
