package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

const (
	apiCaller   = "idm"
	apiPassword = "idm-secret"
	// apiHash is the password's, at the lowest cost.
	apiHash = "$2a$04$DiaWuk84wahqJwzBHriEpuTxyKtCpFJZVkZYCM4gT587NeYw1LkjC"
)

// apiLines put ldap_admin into the site without TLS. They go through the
// connector ldaps.
func apiLines(d *testpeer.Directory, more ...string) []string {
	lines := []string{
		"connector ldaps", "tls ldaps", "server_name localhost", "tls_ca " + d.CA.File,
		"bind_dn " + d.ServiceDN, "bind_password {file.$DIR/ldap.password}",
		"groups_below " + d.GroupsDN, "members_below " + d.PeopleDN,
	}
	return []string{
		"basic_auth /ldap/* {\n\t\t" + apiCaller + " " + apiHash + "\n\t}",
		"ldap_admin {\n\t\t" + strings.Join(append(lines, more...), "\n\t\t") + "\n\t}",
	}
}

// The convergence test: what workers were told is what the directory holds in
// the end, whatever breaks on the way.
const (
	convergeWorkers = 64
	convergeGroups  = 20
	convergeMembers = 500
	convergeTime    = 30 * time.Second
	agentLife       = 5 * time.Second
)

// convergence is one run. Each pair of a group and a member belongs to one
// worker, so that what it was told last is what must be.
type convergence struct {
	s   *site
	d   *testpeer.Directory
	api string

	acknowledged, repeated atomic.Int64
	mu                     sync.Mutex
	answers                map[string]int             // guarded by mu; by status and outcome
	intent                 map[string]map[string]bool // guarded by mu; members by group, as last acknowledged
}

func TestMembershipsConverge(t *testing.T) {
	var seed strings.Builder
	for g := range convergeGroups {
		fmt.Fprintf(&seed, "dn: cn=g%d,ou=groups,dc=example,dc=org\nobjectClass: groupOfNames\ncn: g%[1]d\nmember: cn=admin,dc=example,dc=org\n\n", g)
	}
	s, d, _ := startDirectory(t, testpeer.SlapdOptions{TLS: true, People: convergeMembers, Seed: []string{seed.String()}}, func(o *siteOptions) { o.noAgent = true })
	s.write("ldap.password", d.ServicePassword+"\n")
	s.reload(func(o *siteOptions) { o.lines = apiLines(d, "timeout 1s") }) // so that callers get to see what breaks
	agent := s.agentProcess(nil)
	s.eventually("the agent is connected", func() bool { status, _ := s.get("/readyz?connector=ldaps"); return status == http.StatusOK })

	c := &convergence{s: s, d: d, api: "http://" + s.http + "/ldap", answers: make(map[string]int), intent: make(map[string]map[string]bool)}
	ctx, cancel := context.WithTimeout(t.Context(), convergeTime)
	defer cancel()
	var workers sync.WaitGroup
	for w := range convergeWorkers {
		workers.Go(func() { c.work(ctx, w) })
	}
	for began, restarted := time.Now(), false; ctx.Err() == nil; {
		select {
		case <-time.After(agentLife):
		case <-ctx.Done():
		}
		agent.Kill()
		agent = s.agentProcess(nil)
		if !restarted && time.Since(began) > convergeTime/2 {
			restarted = true
			d.Restart(t)
		}
	}
	workers.Wait() // until each has had its last request acknowledged
	c.check()
	for _, answer := range slices.Sorted(maps.Keys(c.answers)) {
		t.Logf("%6d  %s", c.answers[answer], answer)
	}
	t.Logf("%d changes acknowledged, %d requests repeated", c.acknowledged.Load(), c.repeated.Load())
	if c.acknowledged.Load() < convergeWorkers {
		t.Error("hardly anything was changed")
	}
	if c.repeated.Load() == 0 || s.metric(closed("ldaps", "link_lost")) == 0 {
		t.Error("the disturbances did not disturb")
	}
}

// work changes memberships at random until ctx ends.
func (c *convergence) work(ctx context.Context, worker int) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: 2 * soon}
	defer client.CloseIdleConnections()
	r := rand.New(rand.NewPCG(uint64(worker), 1))
	var mine []string
	for i := worker + 1; i <= convergeMembers; i += convergeWorkers {
		mine = append(mine, c.d.UserDN(i))
	}
	state := make(map[string]map[string]bool) // members by group, those of this worker
	for ctx.Err() == nil {
		group := c.d.GroupDN(fmt.Sprintf("g%d", r.IntN(convergeGroups)))
		if state[group] == nil {
			state[group] = make(map[string]bool)
		}
		r.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
		members, add := mine[:1+r.IntN(min(4, len(mine)))], r.IntN(2) == 0
		if !c.settle(client, group, members, add, state[group]) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for group, members := range state {
		if c.intent[group] == nil {
			c.intent[group] = make(map[string]bool)
		}
		maps.Copy(c.intent[group], members)
	}
}

// settle sends one change until all of it is acknowledged, as a caller would.
func (c *convergence) settle(client *http.Client, group string, members []string, add bool, state map[string]bool) bool {
	sure := make(map[string]bool) // whose state before the request is known
	for _, m := range members {
		sure[m] = true
	}
	left := members
	for end := time.Now().Add(4 * soon); len(left) > 0; {
		if time.Now().After(end) {
			c.s.t.Errorf("%s: not acknowledged within %v: %q", group, 4*soon, left)
			return false
		}
		answer, wait := c.send(client, group, left, add)
		if answer == nil {
			for _, m := range left {
				sure[m] = false // it may have been made, and we were not told
			}
		} else {
			left = c.take(answer, add, state, sure)
		}
		if len(left) > 0 {
			c.repeated.Add(1)
			time.Sleep(wait)
		}
	}
	return true
}

// send sends the change once. The answer is nil when there is none that tells
// about members.
func (c *convergence) send(client *http.Client, group string, members []string, add bool) (*groupapi.Answer, time.Duration) {
	api, err := groupapi.NewClient(c.api, client, func(r *http.Request) error { r.SetBasicAuth(apiCaller, apiPassword); return nil })
	if err != nil {
		c.s.t.Error(err)
		return nil, time.Second
	}
	api.Once()
	patch := groupapi.Patch{Add: members}
	if !add {
		patch = groupapi.Patch{Remove: members}
	}
	answer, err := api.Patch(context.Background(), group, patch, groupapi.WriteOptions{})
	var p *groupapi.Problem
	switch {
	case err == nil:
		c.count("200 or 207")
		return answer, 100 * time.Millisecond
	case errors.As(err, &p):
		c.count(fmt.Sprintf("%d %s", p.Status, p.Code))
		if p.Status < 500 {
			c.s.t.Errorf("%s: %v", group, p)
		} else if p.RetryAfter == 0 {
			c.s.t.Errorf("%s: %d %s without Retry-After", group, p.Status, p.Code)
		}
		return nil, 500 * time.Millisecond
	default:
		var u *url.Error
		if !errors.As(err, &u) {
			c.s.t.Error(err)
		}
		c.count("no answer")
		return nil, 500 * time.Millisecond
	}
}

// take looks at each result, holds it against what is known, and returns the
// members that are not settled.
func (c *convergence) take(answer *groupapi.Answer, add bool, state, sure map[string]bool) (left []string) {
	for _, r := range answer.Results {
		c.count(string(r.Outcome))
		if !r.Outcome.Good() {
			left = append(left, r.Member)
			sure[r.Member] = sure[r.Member] && r.Outcome != groupapi.Unknown
			continue
		}
		was, now := state[r.Member], r.Outcome == groupapi.Added || r.Outcome == groupapi.AlreadyMember
		if now != add {
			c.s.t.Errorf("%s: %s is %s, and was to be added: %v", answer.Group, r.Member, r.Outcome, add)
		}
		if r.Changed == nil {
			c.count("changed not known")
		} else if sure[r.Member] && *r.Changed != (was != add) {
			c.s.t.Errorf("%s: %s is %s with changed %v, and was a member: %v", answer.Group, r.Member, r.Outcome, *r.Changed, was)
		}
		state[r.Member] = add
		c.acknowledged.Add(1)
	}
	return left
}

func (c *convergence) count(answer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[answer]++
}

// check compares each group with what was acknowledged last.
func (c *convergence) check() {
	t := c.s.t
	conn := dialLDAP(t, c.d.URL)
	for g := range convergeGroups {
		group := c.d.GroupDN(fmt.Sprintf("g%d", g))
		want := []string{c.d.AdminDN}
		for m, in := range c.intent[group] {
			if in {
				want = append(want, m)
			}
		}
		entries := search(t, conn, subtree(group, "(objectClass=*)", "member"))
		if len(entries) != 1 {
			t.Fatalf("%s: %d entries", group, len(entries))
		}
		got := entries[0].GetAttributeValues("member")
		slices.Sort(got)
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%s: the directory has %d members, %d were acknowledged; %d differ", group, len(got), len(want), differences(got, want))
		}
	}
}

func differences(a, b []string) (n int) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			n++
		}
	}
	for _, s := range b {
		if !slices.Contains(a, s) {
			n++
		}
	}
	return n
}
