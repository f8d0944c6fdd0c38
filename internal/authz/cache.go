package authz

import (
	"sync"
	"time"
)

// cache keeps answers by canonical request, up to a number of them; the one
// that nobody has asked for the longest makes room for a new one. Errors are
// never kept: an engine that is back is believed at once.
type cache struct {
	allowTTL, denyTTL time.Duration // 0 keeps no such answers
	size              int

	mu      sync.Mutex
	entries map[string]*entry
	ring    entry  // sentinel; ring.next was used last, ring.prev longest ago
	age     uint64 // counts flushes
}

type entry struct {
	key        string
	decision   Decision
	born, dies time.Time
	prev, next *entry
}

func newCache(allowTTL, denyTTL time.Duration, size int) *cache {
	c := &cache{allowTTL: allowTTL, denyTTL: denyTTL, size: size, entries: make(map[string]*entry)}
	c.ring.prev, c.ring.next = &c.ring, &c.ring
	return c
}

// get finds a live answer. What is left of its lease is what the caller gets:
// a lease begins when the engine gives it.
func (c *cache) get(key []byte) (Decision, bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[string(key)]
	if e == nil {
		return Decision{}, false
	}
	if !now.Before(e.dies) {
		c.removeLocked(e)
		return Decision{}, false
	}
	e.unlink()
	e.linkAfter(&c.ring)
	d := e.decision
	d.Cached = true
	if d.Lease > 0 {
		d.Lease -= now.Sub(e.born) // more than 0, as dies is no later than born+Lease
	}
	return d, true
}

// put keeps an answer. age and asked must be from before the engine was asked,
// so that neither a flush nor a moment of a lease is missed.
func (c *cache) put(key string, age uint64, asked time.Time, d Decision) {
	var ttl time.Duration
	switch d.Outcome {
	case Allow:
		ttl = c.allowTTL
	case Deny:
		ttl = c.denyTTL
	default:
		return
	}
	if d.Lease > 0 {
		ttl = min(ttl, d.Lease)
	}
	if ttl <= 0 || d.Err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.age != age {
		return // from a policy that is no more
	}
	if old := c.entries[key]; old != nil {
		c.removeLocked(old)
	}
	for len(c.entries) >= c.size {
		c.removeLocked(c.ring.prev)
	}
	e := &entry{key: key, decision: d, born: asked, dies: asked.Add(ttl)}
	c.entries[key] = e
	e.linkAfter(&c.ring)
}

// now returns the age that put wants.
func (c *cache) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.age
}

// flush forgets everything, and whatever is being asked right now.
func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.age++
	clear(c.entries)
	c.ring.prev, c.ring.next = &c.ring, &c.ring
}

func (c *cache) removeLocked(e *entry) {
	delete(c.entries, e.key)
	e.unlink()
}

func (e *entry) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

func (e *entry) linkAfter(p *entry) {
	e.prev, e.next = p, p.next
	p.next.prev, p.next = e, e
}
