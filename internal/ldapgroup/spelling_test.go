package ldapgroup_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// A desired state that differs from the group in spelling alone changes
// nothing, in whichever of the two the odd spelling is: a comparison of
// strings would remove members that are wanted.
func TestReplaceMindsNoSpelling(t *testing.T) {
	t.Parallel()
	onEachServer(t, func(t *testing.T, p *peer) {
		for _, g := range p.groups {
			if g.kind == ldapgroup.PosixGroup {
				continue
			}
			for _, tt := range []struct {
				name, stored, wanted string
				raw                  bool // also when nothing is looked up
			}{
				{"wanted in other case and spacing", "1|2|3", "1^|2^|3^", true},
				{"wanted with hex escapes", "1|2|zoe", "1%|2%|zoe%", true},
				{"stored in other case and spacing", "1^|2^|3", "1|2|3", true},
				{"stored with hex escapes", "1%|2|zoe%", "1|2|zoe", true},
				{"both", "1^|2%|zoe", "1%|2^|zoe%", true},
				{"wanted by the attribute's other name", "1|2", "userid=u1|2", false},
			} {
				// To the others that is no entry, or nothing at all: they cannot
				// be asked, and then nobody may be removed.
				foreign := strings.Contains(tt.wanted, "userid=") && p.vendor != ldapgroup.OpenLDAP
				wanted := p.members(g.kind, strings.ReplaceAll(tt.wanted, "userid=u1", "userid=u1,"+p.d.PeopleDN))
				for _, lookup := range []ldapgroup.Lookup{ldapgroup.LookupAlways, ldapgroup.LookupNever} {
					if lookup == ldapgroup.LookupNever && !tt.raw {
						continue
					}
					t.Run(fmt.Sprintf("%v/%s/lookup %d", g.kind, tt.name, lookup), func(t *testing.T) {
						p.set(t, g, tt.stored)
						before := p.stored(t, g)
						rec := &recorder{}
						c := config(p.d)
						c.Lookup, c.Observer = lookup, rec.observer()
						r, err := engine(t, c).Replace(context.Background(), g.dn, wanted, ldapgroup.ReplaceOptions{Force: true})
						if err != nil {
							t.Fatal(err)
						}
						if foreign {
							wantText(t, "outcome", told(r), "failed/false/member_not_found skipped/false/directory")
						} else if r.AlreadyRight != len(wanted) || len(r.Members) != 0 {
							t.Errorf("%d of %d members are right, and %s", r.AlreadyRight, len(wanted), told(r))
						}
						if n, _ := rec.count(); n != 0 {
							t.Errorf("%d requests were made", n)
						}
						wantText(t, "the group", p.stored(t, g), before)
					})
				}
			}
		}
	})
}

// stored is what the group lists, to the letter.
func (p *peer) stored(t *testing.T, g peerGroup) string {
	t.Helper()
	r, err := p.admin.Search(ldap.NewSearchRequest(g.dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{g.kind.Attribute()}, nil))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(r.Entries[0].GetAttributeValues(g.kind.Attribute()), "\n")
}
