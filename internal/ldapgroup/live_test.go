package ldapgroup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// Connections that a restarted server no longer knows are replaced without
// the caller noticing.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
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
		_, err := e.Change(ctx, g.dn, p.members(g.kind, "3"), nil, ldapgroup.ChangeOptions{})
		var own *ldapgroup.Error
		if !asError(err, &own) || own.Class != ldapgroup.ClassUnavailable && own.Class != ldapgroup.ClassTimeout {
			t.Errorf("while it is down: %v", err)
		} else if own.Class == ldapgroup.ClassUnavailable && own.RetryAfter == 0 {
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
	t.Parallel()
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
			var acknowledged, refused, unsure atomic.Int64
			states := make([]map[[2]int]intent, workers)
			var wg sync.WaitGroup
			for w := range workers {
				states[w] = make(map[[2]int]intent)
				var mine []int
				for i := 1 + w; i <= last; i += workers {
					mine = append(mine, i)
				}
				worker := &churner{p: p, e: e, groups: names, mine: mine, state: states[w],
					acknowledged: &acknowledged, refused: &refused, unsure: &unsure}
				wg.Go(func() { worker.run(t, over) })
			}
			// Each kill comes in the middle of work, however slow the machine is.
			for kill := range 4 {
				mark := acknowledged.Load() + 10
				for deadline := time.Now().Add(30 * time.Second); acknowledged.Load() < mark; time.Sleep(time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("the workers got nothing done before kill %d", kill)
					}
				}
				time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
				p.d.Stop()
				time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
				p.d.Restart(t)
			}
			close(over)
			wg.Wait()
			t.Logf("%d calls acknowledged, %d refused, %d members left unsure on the way", acknowledged.Load(), refused.Load(), unsure.Load())
			p.admin = admin(t, p.d)
			defer p.admin.Close()
			for gi, name := range names {
				p.compare(t, peerGroup{kind: p.groups[0].kind, dn: name}, gi, states)
			}
		})
	}
}

// moreGroups makes groups like the first one, with user 20 in them, whom no
// worker touches.
func (p *peer) moreGroups(t *testing.T, n int) []string {
	t.Helper()
	var names []string
	for i := range n {
		name := fmt.Sprint("churn", i)
		if p.vendor == ldapgroup.Samba {
			p.addEntry(t, p.d.GroupDN(name), map[string][]string{"objectClass": {"group"}, "sAMAccountName": {name}, "member": {p.d.UserDN(20)}})
		} else {
			p.addEntry(t, p.d.GroupDN(name), map[string][]string{"objectClass": {"groupOfNames"}, "member": {p.d.UserDN(20)}})
		}
		names = append(names, p.d.GroupDN(name))
	}
	return names
}

// churner adds and removes members that are its own, by number, and remembers
// for each group and member what it was told.
type churner struct {
	p      *peer
	e      *ldapgroup.Engine
	groups []string
	mine   []int
	state  map[[2]int]intent

	acknowledged, refused, unsure *atomic.Int64
}

// run goes on until over, and then until it is sure of everything.
func (c *churner) run(t *testing.T, over <-chan struct{}) {
	for {
		select {
		case <-over:
			if c.sure() {
				return
			}
		default:
		}
		if !c.change(t) {
			return
		}
	}
}

func (c *churner) sure() bool {
	for _, x := range c.state {
		if !x.known {
			return false
		}
	}
	return true
}

// change makes some members of a group and removes the others. It returns
// false when the test has failed.
func (c *churner) change(t *testing.T) bool {
	var adds, removes []int
	for _, i := range c.mine {
		if rand.IntN(2) == 0 {
			adds = append(adds, i)
		} else {
			removes = append(removes, i)
		}
	}
	gi := rand.IntN(len(c.groups))
	names := func(numbers []int) (out []string) {
		for _, i := range numbers {
			out = append(out, c.p.d.UserDN(i))
		}
		return out
	}
	r, err := c.e.Change(context.Background(), c.groups[gi], names(adds), names(removes), ldapgroup.ChangeOptions{})
	if err != nil {
		c.refused.Add(1)
		if k := class(err); k != ldapgroup.ClassUnavailable && k != ldapgroup.ClassTimeout {
			t.Error(err)
			return false
		}
		return true // nothing was written
	}
	c.acknowledged.Add(1)
	for k, i := range append(adds, removes...) {
		key := [2]int{gi, i}
		was, seen := c.state[key]
		if !seen {
			was = intent{known: true} // nobody was in
		}
		c.state[key] = judgeIntent(t, r.Members[k], was)
		if !c.state[key].known {
			c.unsure.Add(1)
		}
	}
	return true
}

// judgeIntent holds a result against what was known before, and returns what
// is known after.
func judgeIntent(t *testing.T, m ldapgroup.MemberResult, was intent) intent {
	wanted := m.Action == ldapgroup.Add
	switch {
	case m.Outcome.Done():
		if was.known && m.Changed == ldapgroup.ChangedYes && was.in == wanted || was.known && m.Changed == ldapgroup.ChangedNo && was.in != wanted {
			t.Errorf("%s: %s, changed %s, but it was in: %v", m.Member, m.Outcome, m.Changed, was.in)
		}
		return intent{known: true, in: wanted}
	case m.Outcome == ldapgroup.Skipped || m.Outcome == ldapgroup.Failed && m.Err.Class == ldapgroup.ClassUnavailable:
		if m.Changed != ldapgroup.ChangedNo {
			t.Errorf("%s: %s, changed %s", m.Member, m.Outcome, m.Changed)
		}
		return was
	case m.Outcome == ldapgroup.Unknown:
		if m.Changed != ldapgroup.ChangedUnknown {
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
	t.Parallel()
	const n = 3000
	for name, start := range map[string]func(*testing.T) (d *testpeer.Directory, group string, members []string){
		"openldap": func(t *testing.T) (*testpeer.Directory, string, []string) {
			d := testpeer.Slapd(t, testpeer.SlapdOptions{People: n})
			return d, d.GroupDN("empty"), several(n, d.UserDN)
		},
		"samba": func(t *testing.T) (*testpeer.Directory, string, []string) {
			p := &peer{name: "samba", vendor: ldapgroup.Samba, d: testpeer.Samba(t, testpeer.SambaOptions{})}
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
			step := func(what string, adds, removes []string, requests int, want map[ldapgroup.Outcome]int) {
				t.Helper()
				rec.reset()
				at := time.Now()
				r, err := e.Change(context.Background(), group, adds, removes, ldapgroup.ChangeOptions{})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := make(map[ldapgroup.Outcome]int)
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
			step("fill", members, nil, 3, map[ldapgroup.Outcome]int{ldapgroup.Added: n})
			step("fill again", members, nil, 3, map[ldapgroup.Outcome]int{ldapgroup.AlreadyMember: n})
			step("remove every third", nil, every(3, members), 1, map[ldapgroup.Outcome]int{ldapgroup.Removed: n / 3})
			step("fill up", members, nil, 6, map[ldapgroup.Outcome]int{ldapgroup.Added: n / 3, ldapgroup.AlreadyMember: n - n/3})
			readAll(t, e, group, n)
			step("remove all", nil, members, 3, map[ldapgroup.Outcome]int{ldapgroup.Removed: n})
			step("remove all again", nil, members, 3, map[ldapgroup.Outcome]int{ldapgroup.NotMember: n})
			if took := time.Since(begin); took > 2*time.Minute {
				t.Errorf("that took %v", took)
			}
		})
	}
}

func readAll(t *testing.T, e *ldapgroup.Engine, group string, atLeast int) {
	t.Helper()
	total := 0
	for cursor := ""; ; {
		p, err := e.Read(context.Background(), group, ldapgroup.ReadOptions{Cursor: cursor})
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
