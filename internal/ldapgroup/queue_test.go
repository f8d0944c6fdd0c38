package ldapgroup_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// held makes the first modify wait until the channel is closed.
func held(d *fake, until func() chan struct{}) {
	d.on = func(r *request) reply {
		if r.op == "modify" && r.nth == 1 {
			return reply{wait: until()}
		}
		return reply{}
	}
}

// queued starts calls one after the other, so that they queue in that order
// behind one that is held, and returns their results in brief.
func queued(t *testing.T, d *fake, e *Engine, gate chan struct{}, calls ...[2][]string) []string {
	t.Helper()
	var wg sync.WaitGroup
	out := make([]string, len(calls))
	wg.Go(func() { change(t, e, persons(1000, 1000), nil) })
	synctest.Wait()
	d.saw("")
	for i, c := range calls {
		wg.Go(func() {
			r, err := e.Change(context.Background(), fakeGroup, c[0], c[1], ChangeOptions{})
			if err != nil {
				out[i] = string(class(err))
				return
			}
			out[i] = brief(r)
		})
		synctest.Wait()
	}
	close(gate)
	wg.Wait()
	return out
}

func TestNeighboursAreMerged(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	held(d, func() chan struct{} { return gate })
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		var calls [][2][]string
		for i := range 100 {
			calls = append(calls, [2][]string{persons(i, i), nil})
		}
		calls = append(calls, [2][]string{persons(7, 7), nil}) // once more
		out := queued(t, d, e, gate, calls...)
		for i, got := range out[:100] {
			if got != "added/true" {
				t.Errorf("call %d: %s", i, got)
			}
		}
		if out[100] != "already_member/false" {
			t.Errorf("the second to add the same member: %s", out[100])
		}
		if adds := d.saw("add"); fmt.Sprint(adds) != "[add 100]" {
			t.Errorf("requests %v", adds)
		}
	})
}

func TestContradictionsKeepTheirOrder(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	held(d, func() chan struct{} { return gate })
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		one, two := persons(1, 1), persons(2, 2)
		out := queued(t, d, e, gate, [2][]string{one, nil}, [2][]string{two, nil}, [2][]string{nil, one}, [2][]string{one, nil}, [2][]string{nil, one})
		if fmt.Sprint(out) != "[added/true added/true removed/true added/true removed/true]" {
			t.Errorf("got %v", out)
		}
		if d.has(person(1)) || !d.has(person(2)) {
			t.Error("the last word does not hold")
		}
	})
}

// What one caller did wrong is not the neighbours' trouble.
func TestMergedFailuresStayApart(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	d.on = func(r *request) reply {
		switch {
		case r.op != "modify":
		case r.nth == 1:
			return reply{wait: gate}
		default:
			for _, a := range r.adds {
				if a == person(13) {
					return reply{code: 19, diagnostic: "no"}
				}
			}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		var calls [][2][]string
		for i := range 20 {
			calls = append(calls, [2][]string{persons(i, i), nil})
		}
		for i, got := range queued(t, d, e, gate, calls...) {
			want := "added/true"
			if i == 13 {
				want = "failed/false/constraint"
			}
			if got != want {
				t.Errorf("call %d: %s", i, got)
			}
		}
	})
}

// Two removals that together empty a group: the first is carried out, as it
// would have been without merging.
func TestMergedLastMembers(t *testing.T) {
	d := newFake()
	d.put(person(1), person(2))
	var gate chan struct{}
	d.on = func(r *request) reply {
		switch {
		case r.op != "modify":
		case r.nth == 1:
			return reply{wait: gate}
		case len(r.removes) == d.size():
			return reply{code: 65}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		out := queued(t, d, e, gate, [2][]string{nil, persons(1000, 1000)}, [2][]string{nil, persons(1, 1)}, [2][]string{nil, persons(2, 2)})
		if fmt.Sprint(out) != "[removed/true removed/true failed/false/last_member]" {
			t.Errorf("got %v", out)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	held(d, func() chan struct{} { return gate })
	bubble(t, d, func(c *Config) { c.MaxQueue = 3 }, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		var calls [][2][]string
		for i := range 5 {
			calls = append(calls, [2][]string{persons(i, i), nil})
		}
		out := queued(t, d, e, gate, calls...)
		if fmt.Sprint(out) != "[added/true added/true added/true unavailable unavailable]" {
			t.Errorf("got %v", out)
		}
	})
}

func TestCallerLeavesTheQueue(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	held(d, func() chan struct{} { return gate })
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { change(t, e, persons(1, 1), nil) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := e.Change(ctx, fakeGroup, persons(2, 2), nil, ChangeOptions{})
		if class(err) != ClassTimeout || !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		close(gate)
		wg.Wait()
		if d.has(person(2)) {
			t.Error("the request of a caller who left was sent")
		}
		if n := e.Stats().Queued; n != 0 {
			t.Errorf("%d calls queued", n)
		}
	})
}

// A caller who leaves takes the connection with it, and nobody else's.
func TestCallerLeavesDuringARequest(t *testing.T) {
	d := newFake()
	var gate chan struct{}
	held(d, func() chan struct{} { return gate })
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate = make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		begin := time.Now()
		r, err := e.Change(ctx, fakeGroup, persons(1, 2), persons(3, 3), ChangeOptions{})
		if err != nil || brief(r) != "unknown/null/canceled unknown/null/canceled skipped/false/canceled" || time.Since(begin) > time.Second {
			t.Errorf("after %s: %v, %v", time.Since(begin), r, err)
		}
		if got := brief(change(t, e, persons(4, 4), nil)); got != "added/true" {
			t.Errorf("the next one: %s", got)
		}
		close(gate)
	})
}

func TestOneOfSeveralCallersLeaves(t *testing.T) {
	d := newFake()
	var gate, second chan struct{}
	d.on = func(r *request) reply {
		switch {
		case r.op == "modify" && len(r.adds) == 1:
			return reply{wait: gate}
		case r.op == "modify":
			return reply{wait: second}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		gate, second = make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { change(t, e, persons(9, 9), nil) })
		synctest.Wait()
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			r, err := e.Change(ctx, fakeGroup, persons(1, 1), nil, ChangeOptions{})
			if err != nil || brief(r) != "unknown/null/timeout" {
				t.Errorf("the one who leaves: %v, %v", r, err)
			}
		})
		wg.Go(func() {
			r, err := e.Change(context.Background(), fakeGroup, persons(2, 2), nil, ChangeOptions{})
			if err != nil || brief(r) != "added/true" {
				t.Errorf("the one who stays: %v, %v", r, err)
			}
		})
		synctest.Wait()
		close(gate)
		time.Sleep(5 * time.Second)
		close(second)
		wg.Wait()
		if !d.has(person(1)) {
			t.Error("the request of both was not carried out")
		}
	})
}

// What a caller who left was told stays true: what had not been sent for it by
// then is not sent for the sake of its neighbours, and who stays is told of
// what was done for it alone.
func TestNothingIsSentForWhoHasLeft(t *testing.T) {
	d := newFake()
	var gate, second chan struct{}
	var hold atomic.Bool
	d.on = func(r *request) reply {
		switch {
		case r.op == "modify" && r.nth == 1:
			return reply{wait: gate}
		case r.op == "search" && r.dn == "" && hold.Load():
			return reply{wait: second}
		}
		return reply{}
	}
	bubble(t, d, func(c *Config) { c.MaxConns = 2 }, func(t *testing.T, e *Engine) {
		gate, second = make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { change(t, e, persons(9, 9), nil) })
		synctest.Wait()
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			r, err := e.Change(ctx, fakeGroup, []string{person(1), person(3)}, nil, ChangeOptions{})
			if class(err) != ClassTimeout {
				t.Errorf("the one who leaves: %v, %v", r, err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			r, err := e.Change(context.Background(), fakeGroup, persons(1, 2), nil, ChangeOptions{})
			if err != nil || brief(r) != "added/true added/true" {
				t.Errorf("the one who stays: %v, %v", brief(r), err)
			}
		})
		synctest.Wait()
		// Both connections are lent when the batch of the two begins.
		hold.Store(true)
		for range 2 {
			wg.Go(func() { _ = e.Ping(context.Background()) })
			synctest.Wait()
		}
		close(gate)
		time.Sleep(2 * time.Second)
		close(second)
		wg.Wait()
		if d.has(person(3)) || !d.has(person(1)) || !d.has(person(2)) {
			t.Errorf("sent for the one who left: %v, for the other: %v %v", d.has(person(3)), d.has(person(1)), d.has(person(2)))
		}
	})
}
