package authz

import (
	"context"
	"errors"
	"sync"
)

// BatchDecider is a Decider that answers many questions better together than
// one by one, such as a PDP on the network that takes a list. The hub uses it
// for live sessions.
type BatchDecider interface {
	Decider
	// DecideBatch answers rs: as many decisions, in the same order. Each stands
	// for itself; when the whole call fails, all are errors. A single question
	// is put to Decide instead.
	DecideBatch(ctx context.Context, rs []*Request) []Decision
}

// Flusher is a Decider that remembers answers. Flush makes it forget them, and
// is called when the policy behind it may have changed.
type Flusher interface {
	Decider
	Flush()
}

// Notifier is a Decider that knows when its policy changes without the
// configuration being loaded anew.
type Notifier interface {
	Decider
	// OnChange has changed called after each change, once the new policy is what
	// Decide answers by. There is one such function; a later call replaces it
	// and nil removes it. changed may be called from any goroutine and does not
	// block.
	OnChange(changed func())
}

// eachAtOnce bounds how many questions DecideAll asks at a time when it has to
// ask one by one.
const eachAtOnce = 8

var errBadBatch = errors.New("the policy engine answered a batch with another number of decisions")

// DecideAll asks d about all of rs: together if d can, else one by one, a few
// at a time.
func DecideAll(ctx context.Context, d Decider, rs []*Request) []Decision {
	if len(rs) == 1 {
		return []Decision{d.Decide(ctx, rs[0])}
	}
	b, ok := d.(BatchDecider)
	if !ok {
		return DecideEach(ctx, d, rs, eachAtOnce)
	}
	out := b.DecideBatch(ctx, rs)
	if len(out) != len(rs) { // which answer belongs to whom nobody can tell
		out = make([]Decision, len(rs))
		for i := range out {
			out[i] = Fail(KindDecode, errBadBatch)
		}
	}
	return out
}

// DecideEach asks d about each of rs, at most atOnce at a time.
func DecideEach(ctx context.Context, d Decider, rs []*Request, atOnce int) []Decision {
	out := make([]Decision, len(rs))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(atOnce, len(rs)) {
		wg.Go(func() {
			for i := range next {
				out[i] = d.Decide(ctx, rs[i])
			}
		})
	}
	for i := range rs {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}
