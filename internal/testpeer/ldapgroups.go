package testpeer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/go-ldap/ldap/v3"
)

// GroupServer is a small directory of people and groups for LDAPServer, which
// answers as Active Directory of Windows or as OpenLDAP does. Its scripts
// change what they are about and leave the rest to Answer. Fields are set
// before the server starts, but for those that SetPassword guards.
type GroupServer struct {
	// Windows answers with its codes and diagnostics, and hands out long
	// attributes in ranges of MaxValRange values (0 means 1500).
	Windows     bool
	MaxValRange int
	BindDN      string
	People      []string // DNs of entries that exist, beside the groups

	mu       sync.Mutex
	password string              // guarded by mu
	groups   map[string][]string // guarded by mu; members by DN
	counts   map[string]int      // guarded by mu; see Count
}

// SetPassword changes what BindDN must show.
func (g *GroupServer) SetPassword(p string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.password = p
}

// SetGroup makes the group's members exactly those.
func (g *GroupServer) SetGroup(dn string, members ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.groups == nil {
		g.groups = make(map[string][]string)
	}
	g.groups[dn] = slices.Clone(members)
}

// Group returns the group's members, in the order added.
func (g *GroupServer) Group(dn string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.groups[dn])
}

// Count is how many requests came in of a kind: "bind", "search", "modify".
func (g *GroupServer) Count(kind string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[kind]
}

// Note counts a request, which Answer does not do: a script that answers by
// itself counts too.
func (g *GroupServer) Note(r *LDAPRequest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counts == nil {
		g.counts = make(map[string]int)
	}
	switch r.Op {
	case ldap.ApplicationBindRequest:
		g.counts["bind"]++
	case ldap.ApplicationSearchRequest:
		g.counts["search"]++
	case ldap.ApplicationModifyRequest:
		g.counts["modify"]++
	}
}

// Answer answers as the server would.
func (g *GroupServer) Answer(r *LDAPRequest) {
	switch r.Op {
	case ldap.ApplicationBindRequest:
		g.bind(r)
	case ldap.ApplicationSearchRequest:
		g.search(r)
	case ldap.ApplicationModifyRequest:
		code, diagnostic := g.Modify(r)
		r.Result(code, diagnostic)
	default:
		r.Result(ldap.LDAPResultUnwillingToPerform, "")
	}
}

func (g *GroupServer) bind(r *LDAPRequest) {
	g.mu.Lock()
	ok := r.DN == g.BindDN && r.Password == g.password
	g.mu.Unlock()
	switch {
	case ok:
		r.Result(ldap.LDAPResultSuccess, "")
	case g.Windows:
		r.Result(ldap.LDAPResultInvalidCredentials,
			"80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data 52e, v4563\x00")
	default:
		r.Result(ldap.LDAPResultInvalidCredentials, "")
	}
}

// The diagnostics of Windows Server, which end in a line feed and a NUL.
const (
	WindowsInGroup       = "00000562: UpdErr: DSID-031A11DA, problem 6005 (ENTRY_EXISTS), data 0\n\x00"
	WindowsNotInGroup    = "00000561: SvcErr: DSID-031A11E5, problem 5003 (WILL_NOT_PERFORM), data 0\n\x00"
	WindowsNoMember      = "00000525: NameErr: DSID-031A1292, problem 2001 (NO_OBJECT), data 0, best match of:\n\t''\n\x00"
	WindowsNoGroup       = "0000208D: NameErr: DSID-03100238, problem 2001 (NO_OBJECT), data 0, best match of:\n\t'DC=lab,DC=test'\n\x00"
	WindowsPrimaryGroup  = "00002071: UpdErr: DSID-031A11DA, problem 6005 (ENTRY_EXISTS), data 0\n\x00"
	WindowsBindFirst     = "000004DC: LdapErr: DSID-0C090A71, comment: In order to perform this operation a successful bind must be completed on the connection., data 0, v4563\x00"
	WindowsNotAllowed    = "00002098: SecErr: DSID-031514A0, problem 4003 (INSUFF_ACCESS_RIGHTS), data 0\n\x00"
	WindowsUnwilling     = "0000052D: SvcErr: DSID-031A12D2, problem 5003 (WILL_NOT_PERFORM), data 0\n\x00"
	WindowsUnavailable   = "000020E1: SvcErr: DSID-03210F5B, problem 5002 (UNAVAILABLE), data 0\n\x00"
	WindowsBusy          = "000020E0: SvcErr: DSID-03210F5B, problem 5001 (BUSY), data 0\n\x00"
	activeDirectoryFlags = "1.2.840.113556.1.4.800"
)

func (g *GroupServer) search(r *LDAPRequest) {
	g.mu.Lock()
	members, isGroup := g.groups[r.DN]
	exists := isGroup || slices.ContainsFunc(g.People, func(p string) bool { return strings.EqualFold(p, r.DN) })
	members = slices.Clone(members)
	g.mu.Unlock()
	attribute, value, _ := strings.Cut(strings.Trim(r.Filter, "()"), "=")
	switch {
	case r.DN == "":
		g.root(r)
		return
	case !exists && g.Windows:
		r.NotFound("DC=lab,DC=test", WindowsNoGroup)
		return
	case !exists:
		r.NotFound("", "")
		return
	case strings.EqualFold(attribute, "member") && indexFold(members, unescapeFilter(value)) < 0:
	case isGroup:
		r.Entry(r.DN, g.groupEntry(r, members)...)
	default:
		r.Entry(r.DN)
	}
	r.Result(ldap.LDAPResultSuccess, "")
}

func (g *GroupServer) root(r *LDAPRequest) {
	if g.Windows {
		r.Entry("", LDAPAttribute{"supportedCapabilities", []string{activeDirectoryFlags}},
			LDAPAttribute{"namingContexts", []string{"DC=lab,DC=test"}})
	} else {
		r.Entry("", LDAPAttribute{"objectClass", []string{"top", "OpenLDAProotDSE"}})
	}
	r.Result(ldap.LDAPResultSuccess, "")
}

// groupEntry is what the request asks of a group.
func (g *GroupServer) groupEntry(r *LDAPRequest, members []string) []LDAPAttribute {
	var out []LDAPAttribute
	for _, a := range r.Attributes {
		base, option, _ := strings.Cut(a, ";")
		switch {
		case strings.EqualFold(a, "objectClass") && g.Windows:
			out = append(out, LDAPAttribute{"objectClass", []string{"top", "group"}})
		case strings.EqualFold(a, "objectClass"):
			out = append(out, LDAPAttribute{"objectClass", []string{"groupOfNames"}})
		case strings.EqualFold(base, "member"):
			out = append(out, g.ranged(members, option)...)
		}
	}
	return out
}

// ranged is the attribute member as Windows hands it out.
func (g *GroupServer) ranged(members []string, option string) []LDAPAttribute {
	most := g.MaxValRange
	if most == 0 {
		most = 1500
	}
	if !g.Windows || option == "" && len(members) <= most {
		return []LDAPAttribute{{"member", members}}
	}
	from := 0
	if bounds, ok := strings.CutPrefix(option, "range="); ok {
		low, _, _ := strings.Cut(bounds, "-")
		from, _ = strconv.Atoi(low) // 0 for nonsense, as good as anything
	}
	from = min(from, len(members))
	to := min(from+most, len(members))
	high := strconv.Itoa(to - 1)
	if to == len(members) {
		high = "*"
	}
	page := LDAPAttribute{fmt.Sprintf("member;range=%d-%s", from, high), members[from:to]}
	if from > 0 {
		return []LDAPAttribute{page}
	}
	return []LDAPAttribute{{"member", nil}, page}
}

// Modify carries out a change of members, wholly or not at all, and returns
// the answer without sending it.
func (g *GroupServer) Modify(r *LDAPRequest) (code uint16, diagnostic string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	members, ok := g.groups[r.DN]
	if !ok {
		return ldap.LDAPResultNoSuchObject, map[bool]string{true: WindowsNoGroup}[g.Windows]
	}
	members = slices.Clone(members)
	for _, c := range r.Changes {
		for _, v := range c.Values {
			i := indexFold(members, v)
			switch {
			case c.Op == ldap.AddAttribute && i < 0:
				members = append(members, v)
			case c.Op == ldap.DeleteAttribute && i >= 0:
				members = slices.Delete(members, i, i+1)
			case c.Op == ldap.AddAttribute && g.Windows:
				return ldap.LDAPResultEntryAlreadyExists, WindowsInGroup
			case c.Op == ldap.AddAttribute:
				return ldap.LDAPResultAttributeOrValueExists, "modify/add: member: value #0 already exists"
			case g.Windows:
				return ldap.LDAPResultUnwillingToPerform, WindowsNotInGroup
			default:
				return ldap.LDAPResultNoSuchAttribute, "modify/delete: member: no such value"
			}
		}
	}
	g.groups[r.DN] = members
	return ldap.LDAPResultSuccess, ""
}

func indexFold(list []string, s string) int {
	return slices.IndexFunc(list, func(have string) bool { return strings.EqualFold(have, s) })
}

// unescapeFilter undoes the \xx of a filter's value.
func unescapeFilter(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
