package demodir

import (
	"fmt"
	"slices"
	"strings"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// change is one element of a ModifyRequest.
type change struct {
	op   int64
	name string
	vals []string
}

// modify applies all changes or none. The codes are OpenLDAP's for the same
// requests.
func (s *session) modify(op *ber.Packet) result {
	dn, changes, ok := parseModify(op)
	if !ok {
		return malformed("modify")
	}
	if s.user == "" {
		return anonymous
	}
	e, bad := s.lookup(dn)
	if bad != nil {
		return *bad
	}
	if s.user != s.tree.admin {
		return result{code: ldap.LDAPResultInsufficientAccessRights}
	}
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	// Lists of values are never changed in place, so this copy is enough.
	next := &entry{dn: e.dn, key: e.key, attrs: slices.Clone(e.attrs)}
	for _, c := range changes {
		if r := s.tree.apply(next, c); r.code != ldap.LDAPResultSuccess {
			return r
		}
	}
	if next.isA("groupOfNames") && len(next.values("member")) == 0 {
		return result{code: ldap.LDAPResultObjectClassViolation, diagnostic: "object class 'groupOfNames' requires attribute 'member'"}
	}
	e.attrs = next.attrs
	e.indexMembers()
	return result{}
}

var anonymous = result{code: ldap.LDAPResultStrongAuthRequired, diagnostic: "modifications require authentication"}

// fixed refuses to add, delete or rename an entry.
func (s *session) fixed() result {
	switch s.user {
	case "":
		return anonymous
	case s.tree.admin:
		return result{code: ldap.LDAPResultUnwillingToPerform, diagnostic: "the entries of the demo directory are fixed"}
	}
	return result{code: ldap.LDAPResultInsufficientAccessRights}
}

func parseModify(op *ber.Packet) (dn string, changes []change, ok bool) {
	if len(op.Children) != 2 {
		return "", nil, false
	}
	for _, p := range op.Children[1].Children {
		if len(p.Children) != 2 || len(p.Children[1].Children) != 2 {
			return "", nil, false
		}
		c := change{name: text(p.Children[1].Children[0])}
		if c.op, ok = p.Children[0].Value.(int64); !ok {
			return "", nil, false
		}
		for _, v := range p.Children[1].Children[1].Children {
			c.vals = append(c.vals, text(v))
		}
		changes = append(changes, c)
	}
	return text(op.Children[0]), changes, true
}

// apply makes one change to e, a private copy. mu is held.
func (t *Tree) apply(e *entry, c change) result {
	if bad := t.checkChange(e, c); bad.code != ldap.LDAPResultSuccess {
		return bad
	}
	c.name = t.known[strings.ToLower(c.name)] // as it was written first, whatever the client's spelling
	same := func(v string) func(string) bool {
		return func(w string) bool { return equalValues(c.name, v, w) }
	}
	for i, v := range c.vals {
		if slices.ContainsFunc(c.vals[:i], same(v)) {
			return result{code: ldap.LDAPResultAttributeOrValueExists, diagnostic: fmt.Sprintf("%s: value #%d provided more than once", c.name, i)}
		}
	}
	have := e.values(c.name)
	switch c.op {
	case ldap.AddAttribute:
		for i, v := range c.vals {
			if slices.ContainsFunc(have, same(v)) {
				return result{code: ldap.LDAPResultAttributeOrValueExists, diagnostic: fmt.Sprintf("modify/add: %s: value #%d already exists", c.name, i)}
			}
		}
		e.set(c.name, slices.Concat(have, c.vals))
	case ldap.DeleteAttribute:
		if len(have) == 0 {
			return result{code: ldap.LDAPResultNoSuchAttribute, diagnostic: "modify/delete: " + c.name + ": no such attribute"}
		}
		for _, v := range c.vals {
			if !slices.ContainsFunc(have, same(v)) {
				return result{code: ldap.LDAPResultNoSuchAttribute, diagnostic: "modify/delete: " + c.name + ": no such value"}
			}
		}
		e.set(c.name, slices.DeleteFunc(slices.Clone(have), func(w string) bool {
			return len(c.vals) == 0 || slices.ContainsFunc(c.vals, same(w))
		}))
	case ldap.ReplaceAttribute:
		e.set(c.name, slices.Clone(c.vals))
	}
	return result{}
}

// checkChange judges a change by what the schema of the demo allows.
func (t *Tree) checkChange(e *entry, c change) result {
	switch {
	case !t.knows(c.name):
		return result{code: ldap.LDAPResultUndefinedAttributeType, diagnostic: c.name + ": attribute type undefined"}
	case strings.EqualFold(c.name, "memberOf"):
		return result{code: ldap.LDAPResultConstraintViolation, diagnostic: "memberOf: no user modification allowed"}
	case strings.EqualFold(c.name, "member"):
		if !e.isA("groupOfNames") {
			return result{code: ldap.LDAPResultObjectClassViolation, diagnostic: "attribute 'member' not allowed"}
		}
		for i, v := range c.vals {
			if k, err := parseKey(v); err != nil || k == "" {
				return result{code: ldap.LDAPResultInvalidAttributeSyntax, diagnostic: fmt.Sprintf("member: value #%d invalid per syntax", i)}
			}
		}
	case !strings.EqualFold(c.name, "description") || !e.isA("groupOfNames"):
		return result{code: ldap.LDAPResultUnwillingToPerform, diagnostic: "the demo directory changes only member and description of groups"}
	}
	switch c.op {
	case ldap.AddAttribute, ldap.DeleteAttribute, ldap.ReplaceAttribute:
	default:
		return malformed("modify: unknown operation")
	}
	if c.op == ldap.AddAttribute && len(c.vals) == 0 {
		return result{code: ldap.LDAPResultProtocolError, diagnostic: "modify/add: " + c.name + ": no values given"}
	}
	return result{}
}

// set replaces an attribute's values; none removes it.
func (e *entry) set(name string, vals []string) {
	e.attrs = slices.DeleteFunc(slices.Clone(e.attrs), func(a attr) bool { return strings.EqualFold(a.name, name) })
	if len(vals) > 0 {
		e.attrs = append(e.attrs, attr{name, vals})
	}
}
