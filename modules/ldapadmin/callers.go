package ldapadmin

import "sync"

// callers counts the requests that are being served, by who sent them. Safe for
// concurrent use.
type callers struct {
	mu   sync.Mutex
	busy map[callerID]int // entries above zero only
}

// callerID tells callers apart: a user and a certificate of one name are two.
type callerID struct{ kind, id string }

// enter counts one more request of the caller; false when it has limit already.
// Whoever entered leaves.
func (c *callers) enter(who callerID, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[who] >= limit {
		return false
	}
	if c.busy == nil {
		c.busy = make(map[callerID]int)
	}
	c.busy[who]++
	return true
}

func (c *callers) leave(who callerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[who]--; c.busy[who] <= 0 {
		delete(c.busy, who)
	}
}
