package ldapgroup_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// modifies makes the nth modify request (all, if n is 0) meet rep.
func modifies(d *fake, n int, rep reply) {
	d.on = func(r *request) reply {
		if r.op == "modify" && (n == 0 || r.nth == n) {
			return rep
		}
		return reply{}
	}
}

func TestLostAnswers(t *testing.T) {
	for _, tt := range []struct {
		name          string
		n             int
		rep           reply
		adds, removes []string
		want          string
		left          int // members after; 10 at the start: u1 to u10
	}{
		{"before, one add", 1, reply{cutBefore: true}, persons(11, 11), nil, "added/true", 11},
		{"after, one add", 1, reply{cutAfter: true}, persons(11, 11), nil, "already_member/null", 11},
		{"after, several", 1, reply{cutAfter: true}, persons(11, 13), nil, "already_member/null already_member/null already_member/null", 13},
		{"before, several with one there", 1, reply{cutBefore: true}, persons(10, 12), nil, "already_member/null added/true added/true", 12},
		{"before, one there", 1, reply{cutBefore: true}, persons(10, 10), nil, "already_member/null", 10},
		{"before, many", 1, reply{cutBefore: true}, persons(11, 40), nil, repeat("added/true", 30), 40},
		{"after, many", 1, reply{cutAfter: true}, persons(11, 40), nil, repeat("already_member/null", 30), 40},
		{"before, remove", 1, reply{cutBefore: true}, nil, persons(1, 2), "removed/true removed/true", 8},
		{"after, remove", 1, reply{cutAfter: true}, nil, persons(1, 2), "not_member/null not_member/null", 8},
		{"after the adds, then removes", 1, reply{cutAfter: true}, persons(11, 11), persons(1, 1), "already_member/null removed/true", 10},
		{"no answer, carried out", 1, reply{silent: true}, persons(11, 11), nil, "already_member/null", 11},
		{"nonsense for an answer", 1, reply{raw: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}, persons(11, 11), nil, "already_member/null", 11},
		{"never", 0, reply{cutBefore: true}, persons(11, 12), persons(1, 1), "unknown/null/unavailable unknown/null/unavailable skipped/false/unavailable", 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFake()
			d.put(persons(1, 10)...)
			modifies(d, tt.n, tt.rep)
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				if got := brief(change(t, e, tt.adds, tt.removes)); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				if n := d.size(); n != tt.left {
					t.Errorf("%d members, want %d", n, tt.left)
				}
			})
		})
	}
}

func repeat(s string, n int) string { return strings.TrimSpace(strings.Repeat(s+" ", n)) }

// The read-back that resolves a lost answer may be lost too.
func TestReadBackIsRetried(t *testing.T) {
	d := newFake()
	lost, searches := false, 0
	d.on = func(r *request) reply {
		switch {
		case r.op == "modify" && !lost:
			lost = true
			return reply{cutAfter: true}
		case r.op == "search" && r.dn != "" && lost:
			if searches++; searches < 3 {
				return reply{cutBefore: true}
			}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		if got := brief(change(t, e, persons(1, 1), nil)); got != "already_member/null" {
			t.Error(got)
		}
	})
}

func TestPassingAnswers(t *testing.T) {
	for _, tt := range []struct {
		name string
		n    int // of the modify; 0: all
		rep  reply
		want string
	}{
		{"busy once", 1, reply{code: 51}, "added/true"},
		{"unavailable once", 1, reply{code: 52}, "added/true"},
		{"unavailable, and carried out", 1, reply{code: 52, apply: true}, "already_member/null"},
		{"other once", 1, reply{code: 80}, "added/true"},
		{"operations error once", 1, reply{code: 1}, "added/true"},
		{"busy for ever", 0, reply{code: 51}, "unavailable 51"},
		{"unavailable for ever", 0, reply{code: 52}, "unavailable 52"},
		{"other for ever", 0, reply{code: 80}, "directory 80"},
		{"time limit for ever", 0, reply{code: 3}, "timeout 3"},
		{"not bound for ever", 0, reply{code: 1, diagnostic: "000004DC: LdapErr: DSID-0C090A71"}, "account 1"},
		{"referral", 0, reply{code: 10, referral: "ldap://elsewhere.example/"}, "referral 10 ldap://elsewhere.example/"},
		{"no rights", 0, reply{code: 50}, "denied 50"},
		{"read only", 0, reply{code: 53, diagnostic: "shadow context"}, "directory 53"},
		{"group gone", 0, reply{code: 32, matched: "ou=groups"}, "group_not_found 32"},
		{"confidentiality", 0, reply{code: 13}, "account 13"},
		{"unknown code", 0, reply{code: 118}, "directory 118"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFake()
			modifies(d, tt.n, tt.rep)
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				r, err := e.Change(context.Background(), fakeGroup, persons(1, 1), nil, ChangeOptions{})
				var (
					got string
					own *Error
				)
				if asError(err, &own) {
					if own.Answer == nil {
						t.Fatal(err)
					}
					got = strings.TrimSpace(fmt.Sprintf("%s %d %s", own.Class, own.Answer.Code, own.Referral))
					if (own.Class == ClassUnavailable) != (own.RetryAfter > 0) {
						t.Errorf("%s: try again after %d", own.Class, own.RetryAfter)
					}
				} else {
					got = brief(r)
				}
				if got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				if n := len(d.saw("add")); n > 6 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// One bad value among a thousand costs a few more requests and nobody else's
// membership.
func TestBadValueAmongMany(t *testing.T) {
	d := newFake()
	bad := map[string]bool{person(1): true, person(444): true, person(1000): true}
	d.on = func(r *request) reply {
		for _, a := range r.adds {
			if bad[a] {
				return reply{code: 19, diagnostic: "no"}
			}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		r := change(t, e, persons(1, 1000), nil)
		for _, m := range r.Members {
			if bad[m.Member] != (m.Outcome == Failed) || bad[m.Member] == (m.Outcome == Added) {
				t.Errorf("%s: %s", m.Member, m.Outcome)
			}
		}
		if d.size() != 997 {
			t.Errorf("%d members", d.size())
		}
		if n := len(d.saw("add")); n > 60 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestNoOpsAmongMany(t *testing.T) {
	d := newFake()
	d.put(persons(1, 500)...)
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		r := change(t, e, persons(1, 1000), nil)
		for i, m := range r.Members {
			want := AlreadyMember
			if i >= 500 {
				want = Added
			}
			if m.Outcome != want || m.Changed == ChangedUnknown || want == AlreadyMember && (m.Answer == nil || m.Answer.Name != "attributeOrValueExists") {
				t.Fatalf("%s: %+v", m.Member, m)
			}
		}
		if adds := d.saw("add"); fmt.Sprint(adds) != "[add 1000 add 500]" {
			t.Errorf("requests %v", adds)
		}
	})
}

func TestChunks(t *testing.T) {
	long := strings.Repeat("x", 1900)
	var heavy []string
	for i := range 700 {
		heavy = append(heavy, fmt.Sprintf("uid=%s%d,ou=people", long, i))
	}
	for _, tt := range []struct {
		members []string
		want    string
	}{
		{persons(1, 2500), "[add 1000 add 1000 add 500]"},
		{heavy, "[add 545 add 155]"},
	} {
		d := newFake()
		bubble(t, d, nil, func(t *testing.T, e *Engine) {
			if r := change(t, e, tt.members, nil); !r.Complete() {
				t.Error("incomplete")
			}
			if adds := d.saw("add"); fmt.Sprint(adds) != tt.want {
				t.Errorf("requests %v, want %s", adds, tt.want)
			}
		})
	}
}

// What Windows says, word for word as others have logged it.
func TestActiveDirectoryAnswers(t *testing.T) {
	const tail = "\n\x00"
	for _, tt := range []struct {
		name   string
		remove bool
		member bool // is one
		rep    reply
		want   string
	}{
		{"already a member", false, true, reply{code: 68, diagnostic: "00000562: UpdErr: DSID-031A11DA, problem 6005 (ENTRY_EXISTS), data 0" + tail}, "already_member/false"},
		{"no member", true, false, reply{code: 53, diagnostic: "00000561: SvcErr: DSID-031A11E5, problem 5003 (WILL_NOT_PERFORM), data 0" + tail}, "not_member/false"},
		{"primary group", false, false, reply{code: 68, diagnostic: "00002071: UpdErr: DSID-031A11DA, problem 6005 (ENTRY_EXISTS), data 0" + tail}, "already_member/false/primary_group"},
		{"another entry exists", false, false, reply{code: 68, diagnostic: "00002071 without a colon"}, "failed/false/constraint"},
		{"Samba: already", false, true, reply{code: 68, diagnostic: "Attribute member already exists for target GUID 9160c6b5"}, "already_member/false"},
		{"Samba: no member", true, false, reply{code: 53, diagnostic: "Attribute member doesn't exist for target GUID 9160c6b5"}, "not_member/false"},
		{"will not, for another reason", true, true, reply{code: 53, diagnostic: "0000209A: SvcErr: DSID-031A1081, problem 5003 (WILL_NOT_PERFORM), data 0" + tail}, "failed/false/constraint"},
		{"empty group", true, false, reply{code: 16}, "not_member/false"},
		{"member has no entry", false, false, reply{code: 32, diagnostic: "00000525: NameErr: DSID-031A1292, problem 2001 (NO_OBJECT), data 0, best match of:\n\t''\n" + tail}, "failed/false/member_not_found"},
		{"group has no entry", false, false, reply{code: 32, diagnostic: "0000208D: NameErr: DSID-03100238, problem 2001 (NO_OBJECT), data 0, best match of:\n\t'OU=x'" + tail}, "group_not_found"},
		{"Samba: group has no entry", false, false, reply{code: 32, diagnostic: "00002030: No such Base DN"}, "group_not_found"},
		{"no entry, whose is not said", false, false, reply{code: 32}, "failed/false/member_not_found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFake().active()
			if tt.member {
				d.put(person(1))
			}
			modifies(d, 0, tt.rep)
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				adds, removes := persons(1, 1), []string(nil)
				if tt.remove {
					adds, removes = removes, adds
				}
				r, err := e.Change(context.Background(), fakeGroup, adds, removes, ChangeOptions{})
				got := string(class(err))
				if err == nil {
					got = brief(r)
					if a := r.Members[0].Answer; a == nil || strings.ContainsAny(a.Diagnostic, "\x00") || strings.HasSuffix(a.Diagnostic, "\n") {
						t.Errorf("answer %+v", a)
					}
				}
				if got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		})
	}
}

func TestOperationsHaveDeadlines(t *testing.T) {
	d := newFake()
	modifies(d, 0, reply{silent: true, code: 51})
	bubble(t, d, func(c *Config) { c.OpTimeout, c.ChangeTimeout = 5*time.Second, 12*time.Second }, func(t *testing.T, e *Engine) {
		begin := time.Now()
		r, err := e.Change(context.Background(), fakeGroup, persons(1, 1), nil, ChangeOptions{})
		if err != nil || brief(r) != "unknown/null/timeout" {
			t.Errorf("got %v, %v", r, err)
		}
		if took := time.Since(begin); took != 12*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
