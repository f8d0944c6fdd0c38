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
//     of all leases, and it is Cached only if all were.
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
			d.Lease = shorter(d.Lease, answer.Lease)
			d.Cached = d.Cached && answer.Cached
		}
		answer = d
	}
	return answer
}

// shorter returns the shorter lease; 0 is without end.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}
