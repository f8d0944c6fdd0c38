package ldapgroup_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

const peopleDN = "ou=people,dc=example,dc=org"

// people turns "1 9" into DNs; what is no number stays.
func people(words string) []string {
	var out []string
	for _, w := range strings.Split(words, "|") {
		w = strings.TrimSpace(w)
		switch {
		case w == "":
		case strings.Trim(w, "0123456789") == "":
			out = append(out, "uid=u"+w+","+peopleDN)
		default:
			out = append(out, w)
		}
	}
	return out
}

func TestChangeOnOpenLDAP(t *testing.T) {
	plain := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	withMemberOf := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF(), MemberOf: true})
	for _, tt := range []struct {
		name, group   string
		adds, removes string // separated by |
		want          string
		after         string // default: u1 u2 u3
	}{
		{"add new", "gon", "4", "", "added/true", "u1 u2 u3 u4"},
		{"add existing", "gon", "1", "", "already_member/false", ""},
		{"add in another spelling", "gon", "UID=U1 ,  OU=People,DC=example, DC=org", "", "already_member/false", ""},
		{"add by another name of the attribute", "gon", "userid=u1," + peopleDN, "", "already_member/false", ""},
		{"add hex escaped", "gon", `uid=\75\31,` + peopleDN, "", "already_member/false", ""},
		{"mixed adds", "gon", "4|1|5", "", "added/true already_member/false added/true", "u1 u2 u3 u4 u5"},
		{"a duplicate in two spellings", "gon", "4|UID=u4 ," + peopleDN, "", "added/true added/true", "u1 u2 u3 u4"},
		{"a duplicate only the server knows", "gon", "4|userid=u4," + peopleDN, "", "added/true added/true", "u1 u2 u3 u4"},
		{"remove", "gon", "", "2", "removed/true", "u1 u3"},
		{"remove absent", "gon", "", "9", "not_member/false", ""},
		{"mixed removes", "gon", "", "1|9|2", "removed/true not_member/false removed/true", "u3"},
		{"remove twice", "gon", "", "1|1", "removed/true removed/true", "u2 u3"},
		{"add and remove", "gon", "4|1", "2|9", "added/true already_member/false removed/true not_member/false", "u1 u3 u4"},
		{"replace all", "gon", "4", "1|2|3", "added/true removed/true removed/true removed/true", "u4"},
		{"remove all", "gon", "", "1|2|3", strings.TrimSpace(strings.Repeat("failed/false/last_member ", 3)), ""},
		{"remove all and more", "gon", "", "1|2|9|3", "failed/false/last_member failed/false/last_member not_member/false failed/false/last_member", ""},
		{"no such entry", "gon", "99", "", "failed/false/member_not_found", ""},
		{"one of them no entry", "gon", "4|99|5", "", "added/true failed/false/member_not_found added/true", "u1 u2 u3 u4 u5"},
		{"remove without entry", "gon", "", "99", "not_member/false", ""},
		{"malformed", "gon", "4|not a dn", "", "added/true failed/false/invalid", "u1 u2 u3 u4"},
		{"outside of the bases", "gon", "4|cn=svc,dc=example,dc=org", "", "added/true failed/false/forbidden", "u1 u2 u3 u4"},
		{"outside, looking inside", "gon", `cn=svc\,ou=people,dc=example,dc=org`, "", "failed/false/forbidden", ""},

		{"unique: add", "gou", "1|4", "", "already_member/false added/true", "u1 u2 u3 u4"},
		{"unique: remove", "gou", "", "1|9", "removed/true not_member/false", "u2 u3"},
		{"unique: remove all", "gou", "", "1|2|3", strings.TrimSpace(strings.Repeat("failed/false/last_member ", 3)), ""},

		{"posix: by name", "px", "u4|u1", "", "added/true already_member/false", "u1 u2 u3 u4"},
		{"posix: by DN", "px", "4", "", "added/true", "u1 u2 u3 u4"},
		{"posix: the name as stored", "px", "U1|U4", "", "already_member/false added/true", "u1 u2 u3 u4"},
		{"posix: nobody", "px", "u99", "", "failed/false/member_not_found", ""},
		{"posix: remove", "px", "", "u1|u9|u99", "removed/true not_member/false not_member/false", "u2 u3"},
		{"posix: remove all", "px", "", "u1|u2|u3", "removed/true removed/true removed/true", ""},
		{"posix: a filter for a name", "px", "u*|*)(uid\\3du1", "", "failed/false/member_not_found failed/false/member_not_found", ""},
		{"posix: not ASCII", "px", "zoë", "", "failed/false/invalid", ""},
	} {
		for _, d := range []*testpeer.Directory{plain, withMemberOf} {
			t.Run(fmt.Sprintf("%s/memberof=%v", tt.name, d == withMemberOf), func(t *testing.T) {
				group, attribute := d.GroupDN(tt.group), map[string]string{"gon": "member", "gou": "uniqueMember", "px": "memberUid"}[tt.group]
				start := people("1|2|3")
				if tt.group == "px" {
					start = []string{"u1", "u2", "u3"}
				}
				set(t, d, group, attribute, start...)
				rec := &recorder{}
				c := config(d)
				c.Observer = rec.observer()
				e := engine(t, c)
				dry, err := e.Change(context.Background(), group, people(tt.adds), people(tt.removes), ChangeOptions{DryRun: true})
				if err != nil || !dry.DryRun {
					t.Fatalf("dry run: %v, %v", dry, err)
				}
				if n, m := rec.count(); n+m != 0 {
					t.Errorf("the dry run made %d requests and %d events", n, m)
					rec.reset()
				}
				r, err := e.Change(context.Background(), group, people(tt.adds), people(tt.removes), ChangeOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got := brief(r); got != tt.want {
					t.Errorf("outcomes %s, want %s", got, tt.want)
				}
				if got := brief(dry); got != tt.want && !strings.Contains(tt.want, "last_member") {
					t.Errorf("the dry run said %s", got)
				}
				if r.Canonical != group || r.Kind.Attribute() != attribute {
					t.Errorf("the result is about %q, %v", r.Canonical, r.Kind)
				}
				want := tt.after
				if want == "" && !strings.Contains(tt.name, "posix: remove all") {
					want = "u1 u2 u3"
				}
				if got := listed(t, d, group, attribute); got != want {
					t.Errorf("the group lists %s, want %s", got, want)
				}
				if _, m := rec.count(); m != len(r.Members) {
					t.Errorf("%d member events for %d members", m, len(r.Members))
				}
				// Once more: nothing changes, and what was done is a no-op.
				again, err := e.Change(context.Background(), group, people(tt.adds), people(tt.removes), ChangeOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for i, m := range again.Members {
					if m.Changed != ChangedNo || m.Outcome.Done() != r.Members[i].Outcome.Done() {
						t.Errorf("%s again: %s/%s", m.Member, m.Outcome, m.Changed)
					}
				}
				if got := listed(t, d, group, attribute); got != want {
					t.Errorf("then the group lists %s, want %s", got, want)
				}
			})
		}
	}
}

// A member without an entry is the server's to judge when nothing is looked up.
func TestWithoutLookup(t *testing.T) {
	for _, memberOf := range []bool{false, true} {
		d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF(), MemberOf: memberOf})
		c := config(d)
		c.Lookup = LookupNever
		e := engine(t, c)
		want := "already_member/false added/true added/true"
		if memberOf {
			want = "already_member/false added/true failed/false/member_not_found"
		}
		r, err := e.Change(context.Background(), d.GroupDN("gon"), people("1|4|99"), nil, ChangeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := brief(r); got != want {
			t.Errorf("memberof %v: %s, want %s", memberOf, got, want)
		}
	}
}

func TestPlaceholder(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	c := config(d)
	c.Groups[0].Placeholder = d.UserDN(20)
	e := engine(t, c)
	ctx, group := context.Background(), d.GroupDN("gon")
	r, err := e.Change(ctx, group, nil, people("1|2|3"), ChangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := brief(r), strings.TrimSpace(strings.Repeat("removed/true/placeholder ", 3)); got != want {
		t.Errorf("got %s", got)
	}
	if got := listed(t, d, group, "member"); got != "u20" {
		t.Errorf("the group lists %s", got)
	}
	p, err := e.Read(ctx, group, ReadOptions{})
	if err != nil || p.Total != 0 {
		t.Errorf("the placeholder is read as a member: %+v, %v", p, err)
	}
	r, err = e.Change(ctx, group, nil, people("20"), ChangeOptions{})
	if err != nil || brief(r) != "failed/false/forbidden" {
		t.Errorf("the placeholder can be removed: %+v, %v", r, err)
	}
}

func TestCallsRefusedAsAWhole(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	c := config(d)
	c.Groups = append(c.Groups, GroupRule{DN: d.PeopleDN, Subtree: true}, GroupRule{DN: "ou=none,dc=other", Subtree: true})
	c.MaxMembers = 10
	rec := &recorder{}
	c.Observer = rec.observer()
	svc := engine(t, c)
	c.Credentials = func(context.Context) (Credentials, error) {
		return Credentials{DN: d.UserDN(1), Password: d.UserPassword}, nil
	}
	user := engine(t, c)
	c.Credentials = nil
	anonymous := engine(t, c)
	for _, tt := range []struct {
		name          string
		e             *Engine
		group         string
		adds, removes string
		class         Class
		code          uint16
	}{
		{"group not a DN", svc, "gon", "4", "", ClassInvalid, 0},
		{"group empty", svc, "", "4", "", ClassInvalid, 0},
		{"group with newline", svc, d.GroupDN("gon") + "\nmember: x", "4", "", ClassInvalid, 0},
		{"group by semicolons", svc, strings.ReplaceAll(d.GroupDN("gon"), ",", ";"), "4", "", ClassInvalid, 0},
		{"group not allowed", svc, "cn=svc,dc=example,dc=org", "4", "", ClassForbidden, 0},
		{"group only looks allowed", svc, `cn=gon\,ou=groups,dc=example,dc=org`, "4", "", ClassForbidden, 0},
		{"no such group", svc, d.GroupDN("nobody"), "4", "", ClassGroupNotFound, 32},
		{"outside of what the server has", svc, "cn=x,ou=none,dc=other", "4", "", ClassGroupNotFound, 32},
		{"a person", svc, d.UserDN(1), "4", "", ClassNotAGroup, 0},
		{"both lists", svc, d.GroupDN("gon"), "4", "4", ClassInvalid, 0},
		{"both lists, in two spellings", svc, d.GroupDN("gon"), "4", "userid=u4," + peopleDN, ClassInvalid, 0},
		{"too many", svc, d.GroupDN("gon"), "1|2|3|4|5|6|7|8|9|10|11", "", ClassTooLarge, 0},
		{"no rights", user, d.GroupDN("gon"), "4|1", "", ClassDenied, 50},
		{"no rights, and a no-op", user, d.GroupDN("gon"), "1", "", ClassDenied, 50},
		{"anonymous", anonymous, d.GroupDN("gon"), "4", "", ClassAccount, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := tt.e.Change(context.Background(), tt.group, people(tt.adds), people(tt.removes), ChangeOptions{})
			var e *Error
			if !asError(err, &e) {
				t.Fatalf("got %v, %v", r, err)
			}
			if e.Class != tt.class || (e.Answer == nil) != (tt.code == 0) || e.Answer != nil && e.Answer.Code != tt.code {
				t.Errorf("got %v (%+v), want class %s, code %d", e, e.Answer, tt.class, tt.code)
			}
			if e.Group != tt.group || e.Directory == "" {
				t.Errorf("the error does not say where: %+v", e)
			}
			if strings.Contains(err.Error(), d.ServicePassword) || strings.Contains(err.Error(), d.UserPassword) {
				t.Errorf("a password is in %v", err)
			}
		})
	}
	if got := listed(t, d, d.GroupDN("gon"), "member"); got != "u1 u2 u3" {
		t.Errorf("the group lists %s", got)
	}
}

func TestIsMember(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	e := engine(t, config(d))
	for _, tt := range []struct {
		group, member string
		want          bool
	}{
		{"gon", d.UserDN(1), true},
		{"gon", "UID=U1,  ou=PEOPLE,dc=example,dc=org", true},
		{"gon", "userid=u1," + peopleDN, true},
		{"gon", d.UserDN(4), false},
		{"gon", d.UserDN(99), false},
		{"gou", d.UserDN(1), true},
		{"gou", d.UserDN(4), false},
		{"px", "u1", true},
		{"px", d.UserDN(1), true},
		{"px", "u4", false},
		{"px", "nobody", false},
	} {
		m, err := e.IsMember(context.Background(), d.GroupDN(tt.group), tt.member)
		if err != nil {
			t.Errorf("%s in %s: %v", tt.member, tt.group, err)
		} else if m.IsMember != tt.want || m.Primary {
			t.Errorf("%s in %s: %+v", tt.member, tt.group, m)
		}
	}
}

func TestReadInPages(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{People: 25, Seed: groupsLDIF()})
	e := engine(t, config(d))
	ctx, group := context.Background(), d.GroupDN("gon")
	var all []string
	for i := 1; i <= 25; i++ {
		all = append(all, d.UserDN(i))
	}
	set(t, d, group, "member", all...)
	var (
		got  []string
		etag string
	)
	for cursor, pages := "", 0; ; pages++ {
		p, err := e.Read(ctx, group, ReadOptions{Cursor: cursor, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		if p.Total != 25 && pages < 2 {
			t.Errorf("page %d: %d members in all", pages, p.Total)
		}
		if etag == "" {
			etag = p.ETag
		}
		got = append(got, p.Members...)
		if pages == 0 {
			// A change between two pages disturbs nothing.
			set(t, d, group, "member", all[5:]...)
		}
		if cursor = p.Next; cursor == "" {
			break
		}
	}
	if len(got) != 25 {
		t.Errorf("%d members in pages", len(got))
	}
	p, err := e.Read(ctx, group, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if p.ETag == etag || p.Total != 20 {
		t.Errorf("the change is not seen: %s, %d", p.ETag, p.Total)
	}
	_, err = e.Read(ctx, group, ReadOptions{Cursor: "abc"})
	if class(err) != ClassInvalid {
		t.Errorf("a made up cursor: %v", err)
	}
}

func TestIfMatch(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	e := engine(t, config(d))
	ctx, group := context.Background(), d.GroupDN("gon")
	p, err := e.Read(ctx, group, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.Change(ctx, group, people("4"), people("1"), ChangeOptions{IfMatch: p.ETag})
	if err != nil || brief(r) != "added/true removed/true" {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, dry := range []bool{false, true} {
		_, err = e.Change(ctx, group, people("5"), nil, ChangeOptions{IfMatch: p.ETag, DryRun: dry})
		if class(err) != ClassPrecondition {
			t.Errorf("with an old ETag: %v", err)
		}
	}
	if got := listed(t, d, group, "member"); got != "u2 u3 u4" {
		t.Errorf("the group lists %s", got)
	}
}

func TestReplace(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	c := config(d)
	c.Groups = append(c.Groups, GroupRule{DN: d.GroupDN("gou")})
	e := engine(t, c)
	ctx, group := context.Background(), d.GroupDN("gon")
	etag := func() string {
		p, err := e.Read(ctx, group, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p.ETag
	}
	for _, tt := range []struct {
		name, members string
		o             ReplaceOptions
		class         Class
		want, after   string
		right         int
	}{
		{name: "no ETag", members: "1|2|3", class: ClassNoPrecondition},
		{name: "old ETag", members: "1|2|3", o: ReplaceOptions{IfMatch: `"x"`}, class: ClassPrecondition},
		{name: "empty", o: ReplaceOptions{IfMatch: "now"}, class: ClassTooManyRemoved},
		{name: "too many gone", members: "1|2|4", o: ReplaceOptions{IfMatch: "now"}, class: ClassTooManyRemoved},
		{name: "nothing to do", members: "1|2|3", o: ReplaceOptions{IfMatch: "now"}, right: 3},
		{name: "other spellings", members: "userid=u1," + peopleDN + `|UID=U2 , OU=people,dc=example,dc=org|uid=\75\33,` + peopleDN, o: ReplaceOptions{IfMatch: "now"}, right: 3},
		{name: "more", members: "1|2|3|4", o: ReplaceOptions{IfMatch: "now"}, right: 3, want: "added/true", after: "u1 u2 u3 u4"},
		{name: "others", members: "4|5|1", o: ReplaceOptions{Force: true}, right: 1, want: "added/true added/true removed/true removed/true", after: "u1 u4 u5"},
		{name: "a missing one", members: "1|4|99", o: ReplaceOptions{Force: true}, right: 1,
			want: "failed/false/member_not_found added/true skipped/false/directory skipped/false/directory", after: "u1 u2 u3 u4"},
		{name: "all gone", o: ReplaceOptions{Force: true}, want: "failed/false/last_member failed/false/last_member failed/false/last_member"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set(t, d, group, "member", people("1|2|3")...)
			if tt.o.IfMatch == "now" {
				tt.o.IfMatch = etag()
			}
			dry := tt.o
			dry.DryRun = true
			would, dryErr := e.Replace(ctx, group, people(tt.members), dry)
			r, err := e.Replace(ctx, group, people(tt.members), tt.o)
			if tt.class != "" {
				if class(err) != tt.class || class(dryErr) != tt.class {
					t.Errorf("got %v, dry %v, want %s", err, dryErr, tt.class)
				}
			} else if err != nil || dryErr != nil {
				t.Fatal(err, dryErr)
			} else {
				if got := brief(r); got != tt.want || r.AlreadyRight != tt.right || would.AlreadyRight != tt.right {
					t.Errorf("got %s and %d right, want %s and %d", got, r.AlreadyRight, tt.want, tt.right)
				}
				if r.Complete() && r.ETag != etag() {
					t.Errorf("ETag %s, read %s", r.ETag, etag())
				}
			}
			if tt.after == "" {
				tt.after = "u1 u2 u3"
			}
			if got := listed(t, d, group, "member"); got != tt.after {
				t.Errorf("the group lists %s, want %s", got, tt.after)
			}
		})
	}
	// A value whose entry is gone is wanted, and there.
	set(t, d, group, "member", people("1|2|99")...)
	r, err := e.Replace(ctx, group, people("1|2|99"), ReplaceOptions{IfMatch: etag()})
	if err != nil || len(r.Members) != 0 || r.AlreadyRight != 3 {
		t.Errorf("with a dangling value: %+v, %v", r, err)
	}
	_, err = e.Replace(ctx, d.GroupDN("gou"), people("1"), ReplaceOptions{Force: true})
	if class(err) != ClassForbidden {
		t.Errorf("a group whose rule does not allow it: %v", err)
	}
}

func TestCheck(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF(), TLS: true})
	c := config(d)
	c.Groups = append(c.Groups, GroupRule{DN: d.GroupDN("gon"), Placeholder: d.UserDN(20)}, GroupRule{DN: d.GroupDN("gone")})
	r, err := engine(t, c).Check(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Server.Vendor != OpenLDAP || fmt.Sprint(r.Server.Kinds) != "[groupOfNames groupOfUniqueNames posixGroup]" {
		t.Errorf("the server is %+v", r.Server)
	}
	var bad []string
	for _, f := range r.Findings {
		if !f.OK {
			bad = append(bad, f.What+" "+f.Target)
		}
	}
	if len(bad) != 1 || bad[0] != "group "+d.GroupDN("gone") || r.OK() || len(r.Findings) != 7 {
		t.Errorf("findings: %+v", r.Findings)
	}
	c.Credentials = func(context.Context) (Credentials, error) {
		return Credentials{DN: d.ServiceDN, Password: "wrong"}, nil
	}
	r, err = engine(t, c).Check(context.Background())
	if class(err) != ClassAccount || r.OK() || len(r.Findings) != 1 {
		t.Errorf("with a wrong password: %+v, %v", r, err)
	}
}

// Of several writers who hold the same ETag one gets through, also when they
// know nothing of each other: OpenLDAP checks the entry's change number.
func TestIfMatchAmongStrangers(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{People: 60, Seed: groupsLDIF()})
	ctx, group := context.Background(), d.GroupDN("gon")
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		wins = map[string]int{}
	)
	for w := range 6 {
		e := engine(t, config(d))
		wg.Go(func() {
			for i := 10 + w; i <= 60; {
				p, err := e.Read(ctx, group, ReadOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				r, err := e.Change(ctx, group, []string{d.UserDN(i)}, nil, ChangeOptions{IfMatch: p.ETag})
				if class(err) == ClassPrecondition {
					continue
				}
				if err != nil || brief(r) != "added/true" {
					t.Errorf("u%d: %v, %v", i, r, err)
					return
				}
				mu.Lock()
				wins[p.ETag]++
				mu.Unlock()
				i += 6
			}
		})
	}
	wg.Wait()
	for etag, n := range wins {
		if n > 1 {
			t.Errorf("%d writers got through with %s", n, etag)
		}
	}
	if len(wins) != 51 {
		t.Errorf("%d states of the group, want 51", len(wins))
	}
}
