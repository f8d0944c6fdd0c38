package ldapgroup_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// callCase is a call that ends with an error: nothing is tried with any member.
type callCase struct {
	name  string
	as    string // "user", "anonymous", "wrong password"; "" is the service account
	group string // "" is the first group
	want  perServer
}

// callTable runs the cases in which no member matters.
func callTable(t *testing.T, p *peer) {
	g := p.groups[0]
	p.set(t, g, "1|2|3")
	c := config(p.d)
	c.Groups = append(c.Groups, ldapgroup.GroupRule{DN: p.d.PeopleDN, Subtree: true}, ldapgroup.GroupRule{DN: "ou=none,dc=elsewhere,dc=invalid", Subtree: true})
	as := func(dn, password string) *ldapgroup.Engine {
		c := c
		c.Credentials = func(context.Context) (ldapgroup.Credentials, error) {
			return ldapgroup.Credentials{DN: dn, Password: password}, nil
		}
		return engine(t, c)
	}
	anonymous := c
	anonymous.Credentials = nil
	engines := map[string]*ldapgroup.Engine{
		"": engine(t, c), "user": as(p.d.UserDN(2), p.d.UserPassword), "anonymous": engine(t, anonymous),
		"wrong password": as(p.d.ServiceDN, "wrong"), "no such user": as("cn=nobody,"+p.d.BaseDN, "wrong"),
	}
	for _, tt := range []callCase{
		{name: "no such group", group: p.d.GroupDN("nosuch"), want: perServer{"": "group_not_found(32)"}},
		{name: "nor its parent", group: "cn=nosuch,ou=nosuch," + p.d.GroupsDN, want: perServer{"": "group_not_found(32)"}},
		{name: "a suffix the server does not have", group: "cn=x,ou=none,dc=elsewhere,dc=invalid",
			want: perServer{"": "group_not_found(32)"}},
		{name: "not a DN", group: "this is not a dn", want: perServer{"": "invalid"}},
		{name: "a space", group: " ", want: perServer{"": "invalid"}},
		{name: "a person", group: p.d.UserDN(3), want: perServer{"": "not_a_group"}},
		{name: "not allowed", group: "cn=x," + p.d.BaseDN, want: perServer{"": "forbidden"}},
		{name: "no rights", as: "user", want: perServer{"": "denied(50)"}},
		{name: "no rights, no such group", as: "user", group: p.d.GroupDN("nosuch"), want: perServer{"": "group_not_found(32)"}},
		{name: "anonymous", as: "anonymous", want: perServer{"": "account(8)", "389ds": "group_not_found", "samba": "account(1)"}},
		{name: "wrong password", as: "wrong password", want: perServer{"": "account(49)"}},
		{name: "no such user", as: "no such user", want: perServer{"": "account(49)"}},
	} {
		if tt.group == "" {
			tt.group = g.dn
		}
		for _, members := range []struct{ name, add, remove string }{
			{"add", "4", ""}, {"add existing", "1", ""}, {"remove", "", "1"}, {"remove absent", "", "9"}, {"both", "4|5", "1|9"},
		} {
			t.Run(tt.name+"/"+members.name, func(t *testing.T) {
				r, err := engines[tt.as].Change(context.Background(), tt.group,
					p.members(g.kind, members.add), p.members(g.kind, members.remove), ldapgroup.ChangeOptions{})
				var e *ldapgroup.Error
				if !asError(err, &e) {
					t.Fatalf("got %v, %v", r, err)
				}
				got := string(e.Class)
				if e.Answer != nil {
					got += fmt.Sprintf("(%d)", e.Answer.Code)
				}
				if want, _ := tt.want.of(p, g); got != want {
					t.Errorf("got %s (%v), want %s", got, err, want)
				}
			})
		}
	}
	// The group's own name may be spelled as one likes.
	respelled := strings.ReplaceAll(strings.ToUpper(g.dn), ",", " , ")
	r, err := engines[""].Change(context.Background(), respelled, p.members(g.kind, "1"), nil, ldapgroup.ChangeOptions{})
	if err != nil || !ldapgroup.SameName(r.Canonical, g.dn) || r.Canonical == respelled || r.Group != respelled {
		t.Errorf("the group in another spelling: %+v, %v", r, err)
	}
	if got := p.now(t, g); got != "1 2 3" {
		t.Errorf("the group lists %s", got)
	}
}
