package ldapgroup_test

import (
	"cmp"
	"context"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// memberCase is a row: what is asked of a group, and what comes of it.
type memberCase struct {
	name    string
	only    func(*peer, peerGroup) bool
	start   string // members before; "" is 1|2|3, "-" is nobody
	add     string
	remove  string
	want    perServer // with Lookup always
	raw     perServer // with Lookup never, where it differs
	after   perServer // what the group lists; "" is as before
	rawThen perServer // the same with Lookup never, where it differs
}

func namesDNs(_ *peer, g peerGroup) bool   { return g.kind != ldapgroup.PosixGroup }
func mayBeEmpty(_ *peer, g peerGroup) bool { return g.empty }

const (
	nothing = "-" // an empty group, in perServer
	exists  = "already_member/false"
	absent  = "not_member/false"
)

// existing is the answer to an add of a member, alone in its request.
var existing = perServer{"": exists + "(20)", "samba": exists + "(68)"}

// missing is the answer to a delete of what is no member.
var missing = perServer{"": absent + "(16)", "samba": absent + "(53)"}

// with puts words around each server's expectation.
func (w perServer) with(before, after string) perServer {
	out := make(perServer, len(w))
	for k, v := range w {
		out[k] = strings.TrimSpace(before + " " + v + " " + after)
	}
	return out
}

// memberCases say, for each server and each kind of group, what becomes of a
// request.
var memberCases = []memberCase{
	{name: "add new", add: "4", want: perServer{"": "added/true"}, after: perServer{"": "1 2 3 4"}},
	{name: "add existing", add: "1", want: existing},
	{name: "add existing in other case and spacing", add: "1^", want: existing,
		raw:     perServer{"": exists + "(20)", "samba": exists + "(68)", "posixGroup": "added/true"},
		rawThen: perServer{"posixGroup": "1 2 3 u1", "": "1 2 3"}},
	{name: "add existing with hex escapes", only: namesDNs, add: "1%", want: existing},
	{name: "add three of which one exists", add: "4|1|5", want: existing.with("added/true", "added/true"),
		after: perServer{"": "1 2 3 4 5"}},
	{name: "add twice", add: "4|4", want: perServer{"": "added/true added/true"}, after: perServer{"": "1 2 3 4"}},
	{name: "add twice in two spellings", only: namesDNs, add: "4|4^|4%", want: perServer{"": "added/true added/true added/true"},
		after: perServer{"": "1 2 3 4"}},
	{name: "remove", remove: "2", want: perServer{"": "removed/true"}, after: perServer{"": "1 3"}},
	{name: "remove in another spelling", only: namesDNs, remove: "2^|3%", want: perServer{"": "removed/true removed/true"},
		after: perServer{"": "1"}},
	{name: "remove absent", remove: "9", want: missing},
	{name: "remove absent in another spelling", only: namesDNs, remove: "9^", want: missing},
	{name: "remove three of which one is absent", remove: "1|9|2", want: missing.with("removed/true", "removed/true"),
		after: perServer{"": "3"}},
	{name: "remove twice", remove: "1|1", want: perServer{"": "removed/true removed/true"}, after: perServer{"": "2 3"}},
	{name: "remove twice in two spellings", only: namesDNs, remove: "1|1^|1%", want: perServer{"": "removed/true removed/true removed/true"},
		after: perServer{"": "2 3"}},
	{name: "add, and remove absent", add: "4", remove: "9", want: missing.with("added/true", ""), after: perServer{"": "1 2 3 4"}},
	{name: "add existing, and remove", add: "1", remove: "2", want: existing.with("", "removed/true"), after: perServer{"": "1 3"}},
	{name: "everything at once", add: "4|1|4|ghost|5|not a dn", remove: "9|2|2|ghost2",
		only: namesDNs,
		want: perServer{
			"": "added/true already_member/false(20) added/true failed/false/member_not_found added/true failed/false/invalid " +
				"not_member/false(16) removed/true removed/true failed/false/invalid",
			"samba": "added/true already_member/false(68) added/true failed/false/member_not_found added/true failed/false/invalid " +
				"not_member/false(53) removed/true removed/true failed/false/invalid",
		},
		raw: perServer{
			"": "added/true already_member/false(20) added/true added/true added/true failed/false/invalid " +
				"not_member/false(16) removed/true removed/true failed/false/invalid",
			"memberof": "added/true already_member/false(20) added/true failed/false(19)/member_not_found added/true failed/false/invalid " +
				"not_member/false(16) removed/true removed/true failed/false/invalid",
			"samba": "added/true already_member/false(68) added/true failed/false(32)/member_not_found added/true failed/false/invalid " +
				"not_member/false(53) removed/true removed/true failed/false/invalid",
		},
		after:   perServer{"": "1 3 4 5"},
		rawThen: perServer{"": "1 3 4 5 ghost", "memberof": "1 3 4 5", "samba": "1 3 4 5"}},

	{name: "remove the last member", start: "1", remove: "1",
		want: perServer{"": "removed/true", "openldap/groupOfNames": "failed/false(65)/last_member",
			"openldap/groupOfUniqueNames": "failed/false(65)/last_member", "memberof": "failed/false(65)/last_member"},
		after: perServer{"": nothing, "openldap/groupOfNames": "1", "openldap/groupOfUniqueNames": "1", "memberof": "1"}},
	{name: "remove all members, and one that is none", remove: "1|2|9|3",
		want: perServer{
			"": "removed/true removed/true not_member/false(16) removed/true", "samba": "removed/true removed/true not_member/false(53) removed/true",
			"openldap/groupOfNames":       "failed/false(65)/last_member failed/false(65)/last_member not_member/false(16) failed/false(65)/last_member",
			"openldap/groupOfUniqueNames": "failed/false(65)/last_member failed/false(65)/last_member not_member/false(16) failed/false(65)/last_member",
			"memberof":                    "failed/false(65)/last_member failed/false(65)/last_member not_member/false(16) failed/false(65)/last_member"},
		after: perServer{"": nothing, "openldap/groupOfNames": "1 2 3", "openldap/groupOfUniqueNames": "1 2 3", "memberof": "1 2 3"}},
	{name: "put another in the last one's place", start: "1", add: "2", remove: "1", want: perServer{"": "added/true removed/true"},
		after: perServer{"": "2"}},
	{name: "remove from an empty group", only: mayBeEmpty, start: "-", remove: "1", want: missing,
		after: perServer{"": nothing}},
	{name: "add to an empty group", only: mayBeEmpty, start: "-", add: "1", want: perServer{"": "added/true"}, after: perServer{"": "1"}},

	{name: "add a member without an entry", add: "ghost", want: perServer{"": "failed/false/member_not_found"},
		raw:     perServer{"": "added/true", "memberof": "failed/false(19)/member_not_found", "samba": "failed/false(32)/member_not_found"},
		rawThen: perServer{"": "1 2 3 ghost", "memberof": "1 2 3", "samba": "1 2 3"}},
	{name: "remove a member without an entry that is none", remove: "ghost", want: missing},
	{name: "remove a member without an entry", start: "1|ghost", remove: "ghost",
		only: func(p *peer, _ peerGroup) bool { return p.name == "openldap" || p.name == "389ds" },
		want: perServer{"": "removed/true"}, after: perServer{"": "1"}},
	{name: "a name with other letters", only: namesDNs, add: "zoe|zoe%", want: perServer{"": "added/true added/true"},
		after: perServer{"": "1 2 3 zoë"}},
	{name: "a user name with other letters", add: "zoë|4", only: func(_ *peer, g peerGroup) bool { return g.kind == ldapgroup.PosixGroup },
		want: perServer{"": "failed/false/invalid added/true"}, after: perServer{"": "1 2 3 4"}},

	{name: "malformed", only: namesDNs, add: "not a dn|uid=a,,dc=x|empty|4", remove: "not one either",
		want:  perServer{"": "failed/false/invalid failed/false/invalid failed/false/invalid added/true failed/false/invalid"},
		after: perServer{"": "1 2 3 4"}},
	{name: "forms of Active Directory that nobody enabled", only: namesDNs, add: "<SID=S-1-5-11>|<GUID=00>",
		want: perServer{"": "failed/false/invalid failed/false/invalid"}},
	{name: "outside of the member bases", only: namesDNs, add: "svc", want: perServer{"": "failed/false/forbidden"},
		raw: perServer{"": "added/true"}, rawThen: perServer{"": "1 2 3 svc"}},
	{name: "a group as a member", only: namesDNs, add: "group", want: perServer{"": "failed/false/forbidden"},
		raw: perServer{"": "added/true"}, rawThen: perServer{"": "1 2 3 of-groupofnames", "samba": "1 2 3 of-group"}},
	{name: "another suffix", only: namesDNs, add: "cn=x,dc=elsewhere,dc=invalid", want: perServer{"": "failed/false/forbidden"},
		raw:     perServer{"": "added/true", "memberof": "failed/false(19)/member_not_found", "samba": "failed/false(32)/member_not_found"},
		rawThen: perServer{"": "1 2 3 x", "memberof": "1 2 3", "samba": "1 2 3"}},
}

func TestCaseTable(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, p *peer) {
		c := config(p.d)
		variants := map[string]*ldapgroup.Engine{"": engine(t, c)}
		if p.vendor != ldapgroup.DS389 { // it answers slowly
			for name, v := range map[string]ldapgroup.Verify{"/verified": ldapgroup.VerifyAlways, "/unverified": ldapgroup.VerifyNever} {
				c := c
				c.Verify = v
				variants[name] = engine(t, c)
			}
		}
		c.Lookup, c.MemberBases, c.AnyMember = ldapgroup.LookupNever, nil, true
		raw := engine(t, c)
		for _, g := range p.groups {
			t.Run(g.kind.String(), func(t *testing.T) {
				for _, tt := range memberCases {
					if tt.only != nil && !tt.only(p, g) {
						continue
					}
					for name, e := range variants {
						t.Run(tt.name+name, func(t *testing.T) { tt.run(t, p, g, e, tt.want, tt.after) })
					}
					if p.vendor == ldapgroup.DS389 && g.kind != ldapgroup.GroupOfNames {
						continue // it answers slowly, and all its kinds alike when nothing is looked up
					}
					t.Run(tt.name+"/without lookup", func(t *testing.T) {
						tt.run(t, p, g, raw, either(tt.raw, tt.want), either(tt.rawThen, tt.after))
					})
				}
			})
		}
		t.Run("calls", func(t *testing.T) { callTable(t, p) })
	})
}

// either is cmp.Or for expectations.
func either(a, b perServer) perServer {
	if a != nil {
		return a
	}
	return b
}

func (tt *memberCase) run(t *testing.T, p *peer, g peerGroup, e *ldapgroup.Engine, wants, afters perServer) {
	p.set(t, g, cmp.Or(tt.start, "1|2|3"))
	before := p.now(t, g)
	want, ok := wants.of(p, g)
	if !ok {
		t.Fatal("the table does not say what to expect")
	}
	after, ok := afters.of(p, g)
	if !ok || after == "" {
		after = before
	}
	after = strings.TrimPrefix(after, nothing)
	adds, removes := p.members(g.kind, tt.add), p.members(g.kind, tt.remove)
	r, err := e.Change(context.Background(), g.dn, adds, removes, ldapgroup.ChangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := told(r); got != want {
		t.Errorf("outcomes\n got %s\nwant %s", got, want)
	}
	if got := p.now(t, g); got != after {
		t.Errorf("the group lists %q, want %q", got, after)
	}
	if r.Kind != g.kind {
		t.Errorf("the group is taken for a %v", r.Kind)
	}
	// What was done is a no-op now, and what failed fails as before.
	again, err := e.Change(context.Background(), g.dn, adds, removes, ldapgroup.ChangeOptions{})
	if err != nil {
		t.Fatalf("again: %v", err)
	}
	for i, m := range again.Members {
		was := r.Members[i]
		if m.Changed != ldapgroup.ChangedNo || m.Outcome.Done() != was.Outcome.Done() || m.Outcome == ldapgroup.Added || m.Outcome == ldapgroup.Removed {
			t.Errorf("%q again: %s/%s, was %s", m.Member, m.Outcome, m.Changed, was.Outcome)
		}
	}
	if got := p.now(t, g); got != after {
		t.Errorf("again, and the group lists %q, want %q", got, after)
	}
}
