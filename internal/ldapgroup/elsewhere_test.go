package ldapgroup_test

import (
	"context"
	"testing"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// Nobody whose entry is outside of the member bases is removed, by whatever
// request. A user name tells nothing about where its entry is.
func TestNobodyElsewhereIsRemoved(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{Seed: groupsLDIF()})
	for _, tt := range []struct {
		name, group, attribute string
		lookup                 Lookup
		do                     func(e *Engine, group string) (*Result, error)
		want, after            string
	}{
		{"change", "px", "memberUid", LookupAlways, func(e *Engine, g string) (*Result, error) {
			return e.Change(context.Background(), g, nil, []string{"u1", "gone"}, ChangeOptions{})
		}, "failed/false/forbidden removed/true", "u1 u2"},
		{"replace", "px", "memberUid", LookupAlways, func(e *Engine, g string) (*Result, error) {
			return e.Replace(context.Background(), g, nil, ReplaceOptions{Force: true})
		}, "failed/false/forbidden failed/false/forbidden removed/true", "u1 u2"},
		{"replace without lookup", "gon", "member", LookupNever, func(e *Engine, g string) (*Result, error) {
			return e.Replace(context.Background(), g, []string{d.GroupDN("px")}, ReplaceOptions{Force: true})
		}, "added/true failed/false/forbidden failed/false/forbidden failed/false/forbidden", "px u1 u2 u3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			group := d.GroupDN(tt.group)
			if tt.group == "px" {
				set(t, d, group, tt.attribute, "u1", "u2", "gone")
			}
			c := config(d)
			c.MemberBases, c.Lookup = []string{d.GroupsDN}, tt.lookup
			r, err := tt.do(engine(t, c), group)
			if err != nil || brief(r) != tt.want {
				t.Errorf("got %v, %v", r, err)
			}
			if got := listed(t, d, group, tt.attribute); got != tt.after {
				t.Errorf("the group has %s", got)
			}
		})
	}
}
