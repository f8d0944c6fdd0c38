package tunnel

import (
	"errors"
	"sync/atomic"
)

// ErrBudget is returned by Open when the memory bound leaves no room for even
// the smallest window.
var ErrBudget = errors.New("memory budget exhausted")

// Budget bounds the sum of the receive windows of many sessions, over all
// links of one agent at the hub or over all links of the agent process. What
// is granted is counted, not what is queued, so the bound holds even if every
// peer sends all it may.
//
// Growth beyond the first window may take half of the budget, and each session
// at most half of what is left of that: sessions that once were busy and now sit
// in a pool leave room for new ones to open and for others to grow.
//
// The zero value and nil are unbounded. Safe for concurrent use.
type Budget struct {
	max   atomic.Int64 // bytes; 0 = unbounded
	used  atomic.Int64
	grown atomic.Int64 // the part of used beyond what sessions started with
}

// NewBudget returns a Budget of max bytes; 0 is unbounded.
func NewBudget(max int64) *Budget {
	b := new(Budget)
	b.max.Store(max)
	return b
}

// SetMax changes the bound. What is already granted stays.
func (b *Budget) SetMax(max int64) { b.max.Store(max) }

// Used returns the bytes granted now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

func (b *Budget) reserve(n int64) bool {
	if b == nil {
		return true
	}
	for {
		used, limit := b.used.Load(), b.max.Load()
		if limit > 0 && used+n > limit {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

func (b *Budget) release(n int64) {
	if b != nil {
		b.used.Add(-n)
	}
}

// grow reserves n bytes more for a session that has already grown by had.
func (b *Budget) grow(n, had int64) bool {
	if b == nil {
		return true
	}
	for {
		grown, pool := b.grown.Load(), b.max.Load()/2
		if pool > 0 && had+n > (pool-grown+had)/2 {
			return false
		}
		if b.grown.CompareAndSwap(grown, grown+n) {
			break
		}
	}
	if !b.reserve(n) {
		b.grown.Add(-n)
		return false
	}
	return true
}

// shrink gives back n bytes that grow reserved.
func (b *Budget) shrink(n int64) {
	if b != nil {
		b.grown.Add(-n)
		b.used.Add(-n)
	}
}
