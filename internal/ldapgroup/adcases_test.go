package ldapgroup_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// domain is a Samba domain controller and what its admin sees.
type domain struct {
	*peer
	t     *testing.T
	group peerGroup
}

func startDomain(t *testing.T) *domain {
	t.Helper()
	p := &peer{name: "samba", vendor: ldapgroup.Samba, d: testpeer.Samba(t, testpeer.SambaOptions{})}
	p.addGroups(t)
	return &domain{peer: p, t: t, group: p.groups[0]}
}

// entry reads an entry as the admin.
func (d *domain) entry(dn string, attributes ...string) *ldap.Entry {
	d.t.Helper()
	r, err := d.admin.Search(ldap.NewSearchRequest(dn, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", attributes, nil))
	if err != nil {
		d.t.Fatalf("read %s: %v", dn, err)
	}
	return r.Entries[0]
}

// sid is the text form of the entry's SID.
func (d *domain) sid(dn string) string {
	d.t.Helper()
	b := d.entry(dn, "objectSid").GetRawAttributeValue("objectSid")
	s := "S-1-" + strconv.FormatUint(binary.BigEndian.Uint64(append([]byte{0, 0}, b[2:8]...)), 10)
	for i := 8; i < len(b); i += 4 {
		s += "-" + strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[i:])), 10)
	}
	return s
}

func (d *domain) rid(dn string) string {
	d.t.Helper()
	sid := d.sid(dn)
	return sid[strings.LastIndexByte(sid, '-')+1:]
}

// newGroup makes a group that has never had a member.
func (d *domain) newGroup(name string) peerGroup {
	d.t.Helper()
	g := peerGroup{kind: ldapgroup.ADGroup, dn: d.d.GroupDN(name), empty: true}
	r := ldap.NewAddRequest(g.dn, nil)
	r.Attribute("objectClass", []string{"group"})
	r.Attribute("sAMAccountName", []string{name})
	if err := d.admin.Add(r); err != nil {
		d.t.Fatalf("add %s: %v", g.dn, err)
	}
	return g
}

// ask calls Change and tells the result.
func ask(t *testing.T, e *ldapgroup.Engine, g string, adds, removes []string) string {
	t.Helper()
	r, err := e.Change(context.Background(), g, adds, removes, ldapgroup.ChangeOptions{})
	if err != nil {
		return string(class(err))
	}
	return told(r)
}

func wantText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s\n got %s\nwant %s", what, got, want)
	}
}

func TestActiveDirectoryGroupThatNeverHadAMember(t *testing.T) {
	d := startDomain(t)
	e := engine(t, config(d.d))
	g := d.newGroup("fresh")
	wantText(t, "remove", ask(t, e, g.dn, nil, d.members(ldapgroup.ADGroup, "1")), "not_member/false(16)")
	wantText(t, "remove two", ask(t, e, g.dn, nil, d.members(ldapgroup.ADGroup, "1|2")), "not_member/false(16) not_member/false(16)")
	wantText(t, "add", ask(t, e, g.dn, d.members(ldapgroup.ADGroup, "1"), nil), "added/true")
}

// A user's primary group does not list him, and is not left by a change of its
// members.
func TestActiveDirectoryPrimaryGroup(t *testing.T) {
	d := startDomain(t)
	g := d.newGroup("primary")
	for _, verify := range []ldapgroup.Verify{ldapgroup.VerifyAmbiguous, ldapgroup.VerifyAlways, ldapgroup.VerifyNever} {
		t.Run(fmt.Sprint("verify ", verify), func(t *testing.T) {
			c := config(d.d)
			c.Verify = verify
			e := engine(t, c)
			d.set(t, g, "5|6")
			setPrimary := func(dn, rid string) {
				t.Helper()
				r := ldap.NewModifyRequest(dn, nil)
				r.Replace("primaryGroupID", []string{rid})
				if err := d.admin.Modify(r); err != nil {
					t.Fatal(err)
				}
			}
			before := d.entry(d.d.UserDN(5), "primaryGroupID").GetAttributeValue("primaryGroupID")
			setPrimary(d.d.UserDN(5), d.rid(g.dn))
			defer func() {
				setPrimary(d.d.UserDN(5), before)
				d.set(t, g, "-")
			}()
			if got := d.now(t, g); got != "6" {
				t.Fatalf("the group lists %q, so it is not user 5's primary one", got)
			}
			five := d.members(ldapgroup.ADGroup, "5")
			wantText(t, "add", ask(t, e, g.dn, five, nil), "already_member/false(68)/primary_group")
			wantText(t, "remove", ask(t, e, g.dn, nil, five), "failed/false(53)/primary_group/primary_group")
			wantText(t, "add among others", ask(t, e, g.dn, d.members(ldapgroup.ADGroup, "4|5|6"), nil),
				"added/true already_member/false(68)/primary_group already_member/false(68)")
			wantText(t, "remove among others", ask(t, e, g.dn, nil, d.members(ldapgroup.ADGroup, "4|5|9")),
				"removed/true failed/false(53)/primary_group/primary_group not_member/false(53)")
			wantText(t, "the group", d.now(t, g), "6")
			m, err := e.IsMember(context.Background(), g.dn, d.d.UserDN(5))
			if err != nil || !m.IsMember || !m.Primary {
				t.Errorf("IsMember: %+v, %v", m, err)
			}
			dry, err := e.Change(context.Background(), g.dn, five, d.members(ldapgroup.ADGroup, "6"), ldapgroup.ChangeOptions{DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			wantText(t, "dry run", told(dry), "already_member/false/primary_group removed/true")
		})
	}
}

func TestActiveDirectoryNamesBySIDAndGUID(t *testing.T) {
	d := startDomain(t)
	c := config(d.d)
	c.AllowSID = true
	e := engine(t, c)
	g := d.group.dn
	four := d.entry(d.d.UserDN(4), "objectSid", "objectGUID")
	guid := four.GetRawAttributeValue("objectGUID")
	dashed := fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(guid), binary.LittleEndian.Uint16(guid[4:]),
		binary.LittleEndian.Uint16(guid[6:]), guid[8:10], guid[10:])
	sid := d.sid(d.d.UserDN(4))
	unknownRID := sid[:strings.LastIndexByte(sid, '-')] + "-99999"
	for _, form := range []string{
		"<SID=" + sid + ">", "<sid=" + sid + ">",
		"<SID=" + hex.EncodeToString(four.GetRawAttributeValue("objectSid")) + ">",
		"<GUID=" + dashed + ">", "<Guid=" + hex.EncodeToString(guid) + ">",
	} {
		t.Run(form, func(t *testing.T) {
			d.set(t, d.group, "1|2|3")
			wantText(t, "add", ask(t, e, g, []string{form}, nil), "added/true")
			wantText(t, "the group", d.now(t, d.group), "1 2 3 4")
			wantText(t, "again", ask(t, e, g, []string{form}, nil), "already_member/false(68)")
			wantText(t, "by DN", ask(t, e, g, d.members(ldapgroup.ADGroup, "4"), nil), "already_member/false(68)")
			wantText(t, "remove", ask(t, e, g, nil, []string{form}), "removed/true")
			wantText(t, "remove again", ask(t, e, g, nil, []string{form}), "not_member/false(53)")
			wantText(t, "twice, in two forms", ask(t, e, g, append(d.members(ldapgroup.ADGroup, "4|5"), form), nil), "added/true added/true added/true")
			wantText(t, "the group", d.now(t, d.group), "1 2 3 4 5")
			wantText(t, "added and removed", ask(t, e, g, []string{form}, d.members(ldapgroup.ADGroup, "4")), "invalid")
		})
	}
	// A SID of another domain would make the server create an entry for it.
	foreign := func() int {
		r, err := d.admin.Search(ldap.NewSearchRequest("CN=ForeignSecurityPrincipals,"+d.d.BaseDN, ldap.ScopeWholeSubtree,
			ldap.NeverDerefAliases, 0, 0, false, "(objectClass=foreignSecurityPrincipal)", []string{"1.1"}, nil))
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Entries)
	}
	d.set(t, d.group, "1|2|3")
	before := foreign()
	for form, outcome := range map[string]string{
		"<SID=" + unknownRID + ">":              "failed/false/member_not_found",
		"<SID=S-1-5-21-1-2-3-1104>":             "failed/false/member_not_found",
		"<SID=S-1-5-11>":                        "failed/false/member_not_found",
		"<SID=garbage>":                         "failed/false/invalid",
		"<SID=>":                                "failed/false/invalid",
		"<GUID=00>":                             "failed/false/invalid",
		"<SID=" + sid + ">,CN=x":                "failed/false/invalid",
		"<WKGUID=" + dashed + ",DC=lab>":        "failed/false/invalid",
		"<SID=" + sid + ">;CN=u4," + d.d.BaseDN: "failed/false/invalid",
	} {
		wantText(t, form, ask(t, e, g, []string{form}, nil), outcome)
	}
	if got := foreign(); got != before {
		t.Errorf("%d foreign security principals came into being", got-before)
	}
	wantText(t, "the group", d.now(t, d.group), "1 2 3")
}

// Groups that give powers over the domain open for nobody who was only allowed
// what is around them.
func TestActiveDirectoryProtectedGroups(t *testing.T) {
	d := startDomain(t)
	admins, builtin := "CN=Domain Admins,CN=Users,"+d.d.BaseDN, "CN=Administrators,CN=Builtin,"+d.d.BaseDN
	c := config(d.d)
	c.Credentials = func(context.Context) (ldapgroup.Credentials, error) {
		return ldapgroup.Credentials{DN: d.d.AdminDN, Password: d.d.AdminPassword}, nil
	}
	c.Groups = []ldapgroup.GroupRule{{DN: d.d.BaseDN, Subtree: true}}
	wide := engine(t, c)
	was := len(values(t, d.d, admins, "member"))
	for _, g := range []string{admins, builtin, strings.ToUpper(admins), "CN=Domain Users,CN=Users," + d.d.BaseDN} {
		wantText(t, g, ask(t, wide, g, d.members(ldapgroup.ADGroup, "4"), nil), "protected_group")
		wantText(t, g, ask(t, wide, g, nil, d.members(ldapgroup.ADGroup, "4")), "protected_group")
	}
	if got := len(values(t, d.d, admins, "member")); got != was {
		t.Errorf("domain admins: %d, were %d", got, was)
	}
	c.Groups = append(c.Groups, ldapgroup.GroupRule{DN: admins})
	wantText(t, "named by a rule", ask(t, engine(t, c), admins, d.members(ldapgroup.ADGroup, "4"), nil), "added/true")
	// The server marks the members of such groups, which does not make them groups.
	wantText(t, "removed", ask(t, engine(t, c), admins, nil, d.members(ldapgroup.ADGroup, "4")), "removed/true")
}

// A hardened domain controller takes no password in the clear, and nobody's
// without TLS that holds.
func TestActiveDirectoryWithStrongAuth(t *testing.T) {
	d := testpeer.Samba(t, testpeer.SambaOptions{StrongAuth: true})
	group := "CN=Remote," + d.GroupsDN
	for _, tt := range []struct {
		name     string
		security ldapgroup.Security
		addr     string
		server   string // that the certificate must name
		want     string
	}{
		{"plaintext", ldapgroup.Plaintext, d.Addr, "", "account"},
		{"StartTLS", ldapgroup.StartTLS, d.Addr, "dc1.lab.test", "group_not_found"},
		{"LDAPS", ldapgroup.LDAPS, d.TLSAddr, "dc1.lab.test", "group_not_found"},
		{"StartTLS, another name", ldapgroup.StartTLS, d.Addr, "dc2.lab.test", "directory"},
		{"LDAPS, another name", ldapgroup.LDAPS, d.TLSAddr, "dc2.lab.test", "directory"},
	} {
		if tt.addr == "" {
			continue // LDAPS of a server in a namespace of its own is out of reach
		}
		t.Run(tt.name, func(t *testing.T) {
			c := config(d)
			c.Security, c.TLS = tt.security, &tls.Config{RootCAs: d.CA.Pool, ServerName: tt.server, MinVersion: tls.VersionTLS12}
			c.Dial = func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", tt.addr) }
			// The group is not there, which only those learn who got in.
			wantText(t, "outcome", ask(t, engine(t, c), group, []string{d.UserDN(1)}, nil), tt.want)
		})
	}
}
