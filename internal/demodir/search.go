package demodir

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// query is a decoded SearchRequest.
type query struct {
	base      string // as sent
	key       string
	scope     int64
	sizeLimit int64
	typesOnly bool
	match     filter
	attrs     []string
}

// page is a simple paged results control (RFC 2696).
type page struct {
	size int64
	from int // entries of the tree before this one have been looked at
}

func (s *session) search(id int64, op *ber.Packet, paging *page) (result, *ber.Packet) {
	q, bad := parseQuery(op)
	if bad != nil {
		return *bad, nil
	}
	if q.base == "" && q.scope == ldap.ScopeBaseObject {
		s.rootDSE(id, q)
		return result{}, nil
	}
	if s.user == "" {
		return result{code: ldap.LDAPResultInsufficientAccessRights, diagnostic: "bind first; only the root DSE is open to everybody"}, nil
	}
	if s.tree.byKey[q.key] == nil || q.base == "" {
		return result{code: ldap.LDAPResultNoSuchObject, matched: s.tree.nearest(q.key)}, nil
	}
	// RFC 2696 §3: a page that holds whatever may be returned needs no paging.
	if paging != nil && q.sizeLimit > 0 && paging.size >= q.sizeLimit {
		paging = nil
	}
	return s.walk(id, q, paging)
}

// walk sends the entries that q asks for. The set of entries never changes and
// stands in a fixed order, so an index into it serves as the page's cookie.
func (s *session) walk(id int64, q *query, paging *page) (result, *ber.Packet) {
	start, limit := 0, q.sizeLimit
	if paging != nil {
		if paging.size == 0 { // the client gives the search up
			return result{}, pagingControl(-1)
		}
		start, limit = paging.from, paging.size
	}
	found, next := s.tree.collect(q, start, limit)
	for _, p := range found {
		s.send(id, p, nil)
	}
	switch {
	case paging != nil:
		return result{}, pagingControl(next)
	case next >= 0:
		return result{code: ldap.LDAPResultSizeLimitExceeded}, nil
	}
	return result{}, nil
}

// collect encodes the matches from index start on, at most limit of them (0 is
// no limit). next is the index of the first one beyond the limit, or -1. It
// sends nothing itself, so that a client who does not read holds no lock.
func (t *Tree) collect(q *query, start int, limit int64) (found []*ber.Packet, next int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := start; i < len(t.entries); i++ {
		e := t.entries[i]
		if !q.inScope(e) || q.match(t, e) != yes {
			continue
		}
		if limit > 0 && int64(len(found)) == limit {
			return found, i
		}
		var operational []attr
		if q.wants("memberOf", true) {
			operational = append(operational, attr{"memberOf", t.memberOf(e)})
		}
		found = append(found, q.encode(e.dn, e.attrs, operational))
	}
	return found, -1
}

func (q *query) inScope(e *entry) bool {
	switch q.scope {
	case ldap.ScopeBaseObject:
		return e.key == q.key
	case ldap.ScopeSingleLevel:
		return e.parent == q.key
	default:
		return under(e.key, q.key)
	}
}

func parseQuery(op *ber.Packet) (*query, *result) {
	if len(op.Children) != 8 {
		bad := malformed("search")
		return nil, &bad
	}
	q := &query{base: text(op.Children[0])}
	var okScope, okSize bool
	q.scope, okScope = op.Children[1].Value.(int64)
	q.sizeLimit, okSize = op.Children[3].Value.(int64)
	q.typesOnly, _ = op.Children[5].Value.(bool)
	if !okScope || q.scope < ldap.ScopeBaseObject || q.scope > ldap.ScopeWholeSubtree || !okSize || q.sizeLimit < 0 {
		bad := malformed("search")
		return nil, &bad
	}
	var err error
	if q.key, err = parseKey(q.base); err != nil {
		return nil, &result{code: ldap.LDAPResultInvalidDNSyntax, diagnostic: "invalid DN"}
	}
	if q.match, err = compileFilter(op.Children[6], 0); err != nil {
		return nil, &result{code: ldap.LDAPResultProtocolError, diagnostic: err.Error()}
	}
	for _, a := range op.Children[7].Children {
		q.attrs = append(q.attrs, text(a))
	}
	return q, nil
}

// wants reports whether the attribute list selects a name (RFC 4511 §4.5.1.8).
func (q *query) wants(name string, operational bool) bool {
	if len(q.attrs) == 0 {
		return !operational
	}
	return slices.ContainsFunc(q.attrs, func(a string) bool {
		return a == "*" && !operational || a == "+" && operational || strings.EqualFold(a, name)
	})
}

// encode makes a SearchResultEntry of the attributes that q selects.
func (q *query) encode(dn string, user, operational []attr) *ber.Packet {
	list := ber.NewSequence("attributes")
	for i, a := range slices.Concat(user, operational) {
		if len(a.vals) == 0 || !q.wants(a.name, i >= len(user)) {
			continue
		}
		vals := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "vals")
		for _, v := range a.vals {
			if !q.typesOnly {
				vals.AppendChild(octets(v))
			}
		}
		one := ber.NewSequence("attribute")
		one.AppendChild(octets(a.name))
		one.AppendChild(vals)
		list.AppendChild(one)
	}
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "entry")
	p.AppendChild(octets(dn))
	p.AppendChild(list)
	return p
}

// rootDSE answers the search of the empty DN, also for anonymous clients. Its
// attributes are operational, but like other servers it shows objectClass
// without being asked.
func (s *session) rootDSE(id int64, q *query) {
	dse := &entry{attrs: []attr{
		{"objectClass", []string{"top"}},
		{"namingContexts", []string{s.tree.entries[0].dn}},
		{"supportedLDAPVersion", []string{"3"}},
		{"supportedControl", []string{ldap.ControlTypePaging}},
		{"supportedExtension", []string{oidWhoAmI}},
		{"vendorName", []string{"NowConnect demo directory"}},
	}}
	// The root DSE is outside the tree, and so is its schema.
	t := &Tree{known: map[string]string{}}
	for _, a := range dse.attrs {
		t.known[strings.ToLower(a.name)] = a.name
	}
	if q.match(t, dse) == yes {
		s.send(id, q.encode("", dse.attrs[:1], dse.attrs[1:]), nil)
	}
}

func (s *session) compare(op *ber.Packet) result {
	if len(op.Children) != 2 || len(op.Children[1].Children) != 2 {
		return malformed("compare")
	}
	if s.user == "" {
		return result{code: ldap.LDAPResultInsufficientAccessRights}
	}
	e, bad := s.lookup(text(op.Children[0]))
	if bad != nil {
		return *bad
	}
	name, want := text(op.Children[1].Children[0]), text(op.Children[1].Children[1])
	if !s.tree.knows(name) {
		return result{code: ldap.LDAPResultUndefinedAttributeType, diagnostic: name + ": attribute type undefined"}
	}
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	vals := s.tree.valuesOf(e, name)
	switch {
	case len(vals) == 0:
		return result{code: ldap.LDAPResultNoSuchAttribute}
	case slices.ContainsFunc(vals, func(v string) bool { return equalValues(name, v, want) }):
		return result{code: ldap.LDAPResultCompareTrue}
	}
	return result{code: ldap.LDAPResultCompareFalse}
}

// lookup finds the entry that a request names.
func (s *session) lookup(dn string) (*entry, *result) {
	key, err := parseKey(dn)
	if err != nil {
		return nil, &result{code: ldap.LDAPResultInvalidDNSyntax, diagnostic: "invalid DN"}
	}
	if e := s.tree.byKey[key]; e != nil {
		return e, nil
	}
	return nil, &result{code: ldap.LDAPResultNoSuchObject, matched: s.tree.nearest(key)}
}

// readControls finds the paging control. Any other control that is marked
// critical is refused, as RFC 4511 §4.1.11 demands; the rest are ignored.
func readControls(p *ber.Packet) (*page, *result) {
	var found *page
	if len(p.Children) < 3 {
		return nil, nil
	}
	for _, c := range p.Children[2].Children {
		if len(c.Children) == 0 {
			bad := malformed("control")
			return nil, &bad
		}
		oid, critical, value := text(c.Children[0]), false, (*ber.Packet)(nil)
		for _, part := range c.Children[1:] {
			switch part.Tag {
			case ber.TagBoolean:
				critical, _ = part.Value.(bool)
			case ber.TagOctetString:
				value = part
			}
		}
		if oid == ldap.ControlTypePaging && p.Children[1].Tag == ldap.ApplicationSearchRequest {
			var err error
			if found, err = parsePaging(value); err != nil {
				return nil, &result{code: ldap.LDAPResultProtocolError, diagnostic: err.Error()}
			}
		} else if critical {
			return nil, &result{code: ldap.LDAPResultUnavailableCriticalExtension, diagnostic: "critical control " + oid + " is not supported"}
		}
	}
	return found, nil
}

func parsePaging(value *ber.Packet) (*page, error) {
	if value == nil {
		return nil, fmt.Errorf("paging control without a value")
	}
	p, err := ber.DecodePacketErr(value.Data.Bytes())
	if err != nil || len(p.Children) != 2 {
		return nil, fmt.Errorf("malformed paging control")
	}
	size, ok := p.Children[0].Value.(int64)
	if !ok || size < 0 {
		return nil, fmt.Errorf("malformed page size")
	}
	from := 0
	if cookie := text(p.Children[1]); cookie != "" {
		if from, err = strconv.Atoi(cookie); err != nil || from < 0 {
			return nil, fmt.Errorf("unknown paging cookie")
		}
	}
	return &page{size: size, from: from}, nil
}

// pagingControl is the answer's control; next is -1 after the last page.
func pagingControl(next int) *ber.Packet {
	cookie := ""
	if next >= 0 {
		cookie = strconv.Itoa(next)
	}
	v := ber.NewSequence("realSearchControlValue")
	v.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, int64(0), "size")) // 0: no estimate
	v.AppendChild(octets(cookie))
	c := ber.NewSequence("control")
	c.AppendChild(octets(ldap.ControlTypePaging))
	c.AppendChild(octets(string(v.Bytes())))
	return c
}
