package authz

import (
	"context"
	"errors"
	"time"
)

// errNobody is the answer of a chain without links.
var errNobody = errors.New("nobody decides")

// Chain asks several Deciders in order, say local rules before a remote PDP.
//
//   - The first that does not allow ends it, and its answer, a denial or an
//     error, is the answer. Later ones are not asked: no allow can repair an
//     earlier error.
//   - When all allow, the last one's answer is the answer, with the shortest
//     of all leases and the smallest bound of each obligation, and it is Cached
//     only if all were. An Err of any, which says that it allows although it
//     could not ask, is in the answer.
//   - A chain of none is an error.
func Chain(deciders ...Decider) Decider {
	if len(deciders) == 1 {
		return deciders[0]
	}
	return chain(deciders)
}

type chain []Decider

// Decide implements Decider.
func (c chain) Decide(ctx context.Context, r *Request) Decision {
	answer := Decision{Err: errNobody}
	for i, decider := range c {
		d := decider.Decide(ctx, r)
		if d.Outcome != Allow {
			return d
		}
		if i > 0 {
			d = bothAllow(answer, d)
		}
		answer = d
	}
	return answer
}

// DecideBatch implements BatchDecider: each of the Deciders is asked about
// those questions that the ones before it have allowed.
func (c chain) DecideBatch(ctx context.Context, rs []*Request) []Decision {
	out := make([]Decision, len(rs))
	open := make([]int, len(rs)) // indexes of what all have allowed so far
	for i := range rs {
		open[i] = i
		out[i] = Decision{Err: errNobody}
	}
	for n, decider := range c {
		ask := make([]*Request, len(open))
		for j, i := range open {
			ask[j] = rs[i]
		}
		var allowed []int
		for j, d := range DecideAll(ctx, decider, ask) {
			i := open[j]
			if d.Outcome == Allow {
				allowed = append(allowed, i)
				if n > 0 {
					d = bothAllow(out[i], d)
				}
			}
			out[i] = d
		}
		if open = allowed; len(open) == 0 {
			break
		}
	}
	return out
}

// bothAllow joins two permits: what the later says, within the bounds of both.
func bothAllow(earlier, later Decision) Decision {
	later.Lease = smaller(later.Lease, earlier.Lease)
	later.MaxDuration = smaller(later.MaxDuration, earlier.MaxDuration)
	later.MaxBytes = smaller(later.MaxBytes, earlier.MaxBytes)
	later.Cached = later.Cached && earlier.Cached
	if later.Err == nil {
		later.Err = earlier.Err
	}
	return later
}

// smaller returns the smaller bound; 0 is none.
func smaller[T time.Duration | int64](a, b T) T {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
