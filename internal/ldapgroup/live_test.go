package ldapgroup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// Connections that a restarted server no longer knows are replaced without
// the caller noticing.
func TestServerRestarts(t *testing.T) {
	onEachServer(t, func(t *testing.T, p *peer) {
		c := config(p.d)
		rec := &recorder{}
		c.Observer = rec.observer()
		e := engine(t, c)
		g := p.groups[0]
		p.set(t, g, "1")
		wantText(t, "before", ask(t, e, g.dn, p.members(g.kind, "2"), nil), "added/true")
		p.d.Stop()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := e.Change(ctx, g.dn, p.members(g.kind, "3"), nil, ChangeOptions{})
		var own *Error
		if !asError(err, &own) || own.Class != ClassUnavailable && own.Class != ClassTimeout {
			t.Errorf("while it is down: %v", err)
		} else if own.Class == ClassUnavailable && own.RetryAfter == 0 {
			t.Error("nobody says when to try again")
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("that took %v", took)
		}
		p.d.Restart(t)
		wantText(t, "after", ask(t, e, g.dn, p.members(g.kind, "4"), p.members(g.kind, "2")), "added/true removed/true")
		p.d.Stop()
		p.d.Restart(t)
		// No call failed in between: only the connection tells.
		wantText(t, "after a restart unseen", ask(t, e, g.dn, p.members(g.kind, "5"), nil), "added/true")
		if e.Stats().Open == 0 {
			t.Error("the pool has no connection")
		}
		p.admin = admin(t, p.d)
		t.Cleanup(func() { p.admin.Close() })
		wantText(t, "the group", p.now(t, g), "1 4 5")
	})
}

// intent is what a worker knows of a member that nobody else touches.
type intent struct{ known, in bool }

// Many workers change groups while the server is killed again and again. Each
// acknowledged change must be there at the end, and none may have lied about
// what it changed.
func TestConvergence(t *testing.T) {
	const workers, groups, last = 8, 3, 17
	for _, s := range servers {
		if s.name != "openldap" && s.name != "samba" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			p := &peer{name: s.name, vendor: s.vendor, d: s.start(t)}
			p.addGroups(t)
			names := p.moreGroups(t, groups)
			c := config(p.d)
			c.ChangeTimeout = 30 * time.Second
			e := engine(t, c)
			over := make(chan struct{})
			tallies := make([]tally, workers)
			states := make([]map[[2]int]intent, workers)
			var wg sync.WaitGroup
			for w := range workers {
				states[w] = make(map[[2]int]intent)
				wg.Go(func() { churn(t, p, e, names, w, workers, last, states[w], &tallies[w], over) })
			}
			kills := 0
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); kills++ {
				time.Sleep(time.Duration(300+rand.IntN(500)) * time.Millisecond)
				p.d.Stop()
				time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
				p.d.Restart(t)
			}
			close(over)
			wg.Wait()
			var sum tally
			for _, x := range tallies {
				sum.calls += x.calls
				sum.refused += x.refused
				sum.unsure += x.unsure
			}
			t.Logf("%d calls, %d of them refused, %d members left unsure, %d kills", sum.calls, sum.refused, sum.unsure, kills)
			if sum.calls-sum.refused < 50 || kills < 3 {
				t.Errorf("too little happened: %d calls, %d refused, %d kills", sum.calls, sum.refused, kills)
			}
			p.admin = admin(t, p.d)
			defer p.admin.Close()
			for gi, name := range names {
				p.compare(t, peerGroup{kind: p.groups[0].kind, dn: name}, gi, states)
			}
		})
	}
}

// tally counts what a worker met.
type tally struct{ calls, refused, unsure int }

// moreGroups makes groups like the first one, with user 20 in them, whom no
// worker touches.
func (p *peer) moreGroups(t *testing.T, n int) []string {
	t.Helper()
	var names []string
	for i := range n {
		name := fmt.Sprint("churn", i)
		if p.vendor == Samba {
			p.addEntry(t, p.d.GroupDN(name), map[string][]string{"objectClass": {"group"}, "sAMAccountName": {name}, "member": {p.d.UserDN(20)}})
		} else {
			p.addEntry(t, p.d.GroupDN(name), map[string][]string{"objectClass": {"groupOfNames"}, "member": {p.d.UserDN(20)}})
		}
		names = append(names, p.d.GroupDN(name))
	}
	return names
}

// churn adds and removes the members that are worker w's own.
func churn(t *testing.T, p *peer, e *Engine, groups []string, w, workers, last int, state map[[2]int]intent, sum *tally, over <-chan struct{}) {
	var mine []int
	for i := 1 + w; i <= last; i += workers {
		mine = append(mine, i)
	}
	settled := func() bool {
		for _, x := range state {
			if !x.known {
				return false
			}
		}
		return true
	}
	for {
		select {
		case <-over:
			if settled() {
				return
			}
		default:
		}
		gi := rand.IntN(len(groups))
		var adds, removes []string
		var asked []int
		for _, i := range mine {
			if rand.IntN(2) == 0 {
				adds = append(adds, p.d.UserDN(i))
				asked = append(asked, i)
			}
		}
		for _, i := range mine {
			if !slices.Contains(asked, i) {
				removes = append(removes, p.d.UserDN(i))
			}
		}
		for _, i := range mine {
			if !slices.Contains(asked, i) {
				asked = append(asked, i)
			}
		}
		sum.calls++
		r, err := e.Change(context.Background(), groups[gi], adds, removes, ChangeOptions{})
		if err != nil {
			sum.refused++
			if c := class(err); c != ClassUnavailable && c != ClassTimeout {
				t.Errorf("worker %d: %v", w, err)
				return
			}
			continue // nothing was written
		}
		for k, m := range r.Members {
			key := [2]int{gi, asked[k]}
			was := state[key]
			if _, seen := state[key]; !seen {
				was = intent{known: true} // nobody was in
			}
			state[key] = judgeIntent(t, m, was)
			if !state[key].known {
				sum.unsure++
			}
		}
	}
}

// judgeIntent holds a result against what was known before, and returns what
// is known after.
func judgeIntent(t *testing.T, m MemberResult, was intent) intent {
	wanted := m.Action == Add
	switch {
	case m.Outcome.Done():
		if was.known && m.Changed == ChangedYes && was.in == wanted || was.known && m.Changed == ChangedNo && was.in != wanted {
			t.Errorf("%s: %s, changed %s, but it was in: %v", m.Member, m.Outcome, m.Changed, was.in)
		}
		return intent{known: true, in: wanted}
	case m.Outcome == Skipped || m.Outcome == Failed && m.Err.Class == ClassUnavailable:
		if m.Changed != ChangedNo {
			t.Errorf("%s: %s, changed %s", m.Member, m.Outcome, m.Changed)
		}
		return was
	case m.Outcome == Unknown:
		if m.Changed != ChangedUnknown {
			t.Errorf("%s: %s, changed %s", m.Member, m.Outcome, m.Changed)
		}
		return intent{}
	}
	t.Errorf("%s: %s, %v", m.Member, m.Outcome, m.Err)
	return intent{}
}

// compare holds a group against what the workers were told.
func (p *peer) compare(t *testing.T, g peerGroup, gi int, states []map[[2]int]intent) {
	t.Helper()
	want := []string{"20"}
	for _, state := range states {
		for key, x := range state {
			if key[0] == gi && x.in {
				want = append(want, fmt.Sprint(key[1]))
			}
		}
	}
	slices.Sort(want)
	wantText(t, g.dn, p.now(t, g), strings.Join(want, " "))
}

// A big group, in chunks: filled, filled again, half of it exchanged, emptied.
func TestBigGroup(t *testing.T) {
	const n = 3000
	for name, start := range map[string]func(*testing.T) (d *testpeer.Directory, group string, members []string){
		"openldap": func(t *testing.T) (*testpeer.Directory, string, []string) {
			d := testpeer.Slapd(t, testpeer.SlapdOptions{People: n})
			return d, d.GroupDN("empty"), several(n, d.UserDN)
		},
		"samba": func(t *testing.T) (*testpeer.Directory, string, []string) {
			p := &peer{name: "samba", vendor: Samba, d: testpeer.Samba(t, testpeer.SambaOptions{})}
			p.addGroups(t)
			return p.d, p.groups[0].dn, several(n, p.d.ContactDN)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, group, members := start(t)
			c := config(d)
			c.MemberBases = []string{d.BaseDN}
			rec := &recorder{}
			c.Observer = rec.observer()
			e := engine(t, c)
			begin := time.Now()
			step := func(what string, adds, removes []string, requests int, want map[Outcome]int) {
				t.Helper()
				rec.reset()
				at := time.Now()
				r, err := e.Change(context.Background(), group, adds, removes, ChangeOptions{})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := make(map[Outcome]int)
				for _, m := range r.Members {
					got[m.Outcome]++
				}
				modifies, _ := rec.count()
				t.Logf("%s: %v, %d requests, %v", what, got, modifies, time.Since(at).Round(time.Millisecond))
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: %v, want %v", what, got, want)
				}
				if modifies > requests {
					t.Errorf("%s took %d requests, %d are enough", what, modifies, requests)
				}
			}
			step("fill", members, nil, 3, map[Outcome]int{Added: n})
			step("fill again", members, nil, 3, map[Outcome]int{AlreadyMember: n})
			step("remove every third", nil, every(3, members), 1, map[Outcome]int{Removed: n / 3})
			step("fill up", members, nil, 6, map[Outcome]int{Added: n / 3, AlreadyMember: n - n/3})
			readAll(t, e, group, n)
			step("remove all", nil, members, 3, map[Outcome]int{Removed: n})
			step("remove all again", nil, members, 3, map[Outcome]int{NotMember: n})
			if took := time.Since(begin); took > 2*time.Minute {
				t.Errorf("that took %v", took)
			}
		})
	}
}

func readAll(t *testing.T, e *Engine, group string, atLeast int) {
	t.Helper()
	total := 0
	for cursor := ""; ; {
		p, err := e.Read(context.Background(), group, ReadOptions{Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		total += len(p.Members)
		if cursor = p.Next; cursor == "" {
			break
		}
	}
	if total < atLeast {
		t.Errorf("%d members in pages, want %d", total, atLeast)
	}
}

func several(n int, name func(int) string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = name(i + 1)
	}
	return out
}

func every(n int, of []string) []string {
	var out []string
	for i := 0; i < len(of); i += n {
		out = append(out, of[i])
	}
	return out
}
