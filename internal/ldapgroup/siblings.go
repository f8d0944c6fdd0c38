package ldapgroup

import (
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Members whose entries are side by side are looked for together: one search
// of their parent's children by the values that name them costs a server a
// quarter of so many searches for one entry each. It is only a shorter way:
// who is not found by it, or asks for anything out of the ordinary, is looked
// for alone.
const (
	// familyMin is how many it takes: fewer are one flight of searches anyway.
	familyMin = inFlight
	// familySearch and familyBytes bound the values of one search. More values
	// cost more for each entry that is held against them.
	familySearch = 50
	familyBytes  = 16 << 10
	// familyFlight is how many go side by side. go-ldap reads no answers while
	// it writes, so that requests must fit into what buffers there are.
	familyFlight = 8
)

// family is members below one entry that are named by one attribute.
type family struct {
	attribute, parent string
	members           []*member
	values            []string // that name them, index by index
}

func (f *family) key() string { return f.attribute + "," + f.parent }

// families finds those of ms that can be looked for together. Parents are the
// same when they are spelled so: what else is equal only the directory knows.
func families(ms []*member) []*family {
	var out []*family
	at := make(map[string]*family)
	seen := make(map[string]bool, len(ms))
	for _, m := range ms {
		// Of two spellings of one name the second might be another entry's.
		if m.err != nil || m.found || seen[m.name.key] {
			continue
		}
		attribute, value, parent, ok := m.name.cut()
		if !ok {
			continue
		}
		seen[m.name.key] = true
		key := (&family{attribute: attribute, parent: parent}).key()
		f := at[key]
		if f == nil {
			f = &family{attribute: attribute, parent: parent}
			at[key] = f
			out = append(out, f)
		}
		f.members, f.values = append(f.members, m), append(f.values, value)
	}
	return out
}

// cut splits a name into the one attribute of its first RDN and the name of
// what the entry is below. ok is false where there are several, or nothing.
func (n name) cut() (attribute, value, parent string, ok bool) {
	at := 0
	for at < len(n.raw) && n.raw[at] != ',' {
		if n.raw[at] == '\\' {
			at++
		}
		at++
	}
	if at >= len(n.raw) {
		return "", "", "", false
	}
	dn, err := ldap.ParseDN(n.raw[:at])
	if err != nil || len(dn.RDNs) != 1 || len(dn.RDNs[0].Attributes) != 1 {
		return "", "", "", false
	}
	a := dn.RDNs[0].Attributes[0]
	return strings.ToLower(a.Type), a.Value, strings.TrimLeft(n.raw[at+1:], " "), true
}

// next takes a search's worth of members off the family.
func (f *family) next() *family {
	n, size := 0, 0
	for n < len(f.members) && n < familySearch {
		size += len(f.attribute) + 3*len(f.values[n]) // escaped
		if size > familyBytes && n > 0 {
			break
		}
		n++
	}
	part := &family{f.attribute, f.parent, f.members[:n], f.values[:n]}
	f.members, f.values = f.members[n:], f.values[n:]
	return part
}

// search finds the members of a part.
func (f *family) search(g *group, limit time.Duration) *ldap.SearchRequest {
	var filter strings.Builder
	filter.WriteString("(|")
	for _, v := range f.values {
		filter.WriteString("(" + f.attribute + "=" + ldap.EscapeFilter(v) + ")")
	}
	filter.WriteString(")")
	attributes := []string{noAttributes}
	if g.kind == ADGroup {
		attributes = []string{"objectSid", "primaryGroupID"}
	}
	return &ldap.SearchRequest{
		BaseDN: f.parent, Scope: ldap.ScopeSingleLevel, DerefAliases: ldap.NeverDerefAliases,
		Filter: filter.String(), Attributes: attributes,
		// Others may have the value too, beside the one that names them.
		SizeLimit: 2 * len(f.values), EnforceSizeLimit: true,
		TimeLimit: int((limit + time.Second - 1) / time.Second),
	}
}

// give hands the entries found to the members that are called so.
func (f *family) give(entries []*ldap.Entry, take func(*member, found)) (given int) {
	byKey := make(map[string]*ldap.Entry, len(entries))
	for _, e := range entries {
		key := storedName(e.DN).key
		if _, twice := byKey[key]; twice {
			e = nil // the server tells names apart that we do not
		}
		byKey[key] = e
	}
	for _, m := range f.members {
		if e := byKey[m.name.key]; e != nil {
			given++
			take(m, found{result: &ldap.SearchResult{Entries: []*ldap.Entry{e}}, done: true})
		}
	}
	return given
}

// lookupTogether gives to take what it finds of the members' entries. One by
// one is always possible, so nothing that goes wrong here is an error. What
// that costs must be known.
func (s *session) lookupTogether(op string, g *group, ms []*member, take func(*member, found)) {
	if g.kind == PosixGroup || s.each == 0 {
		return
	}
	for _, f := range families(ms) {
		if len(f.members) >= familyMin && !s.e.scans.known(f.key()) {
			s.lookupFamily(op, g, f, take)
		}
	}
}

// lookupFamily tries one search and goes on if that was quicker than one for
// each member. It is not where the server has no index of the attribute and
// reads all of the parent's children.
func (s *session) lookupFamily(op string, g *group, f *family, take func(*member, found)) {
	limit := max(familyPatience, 2*inFlight*s.each, min(time.Duration(len(f.members))*s.each/2, time.Second))
	for try := 1; ; try++ {
		part := f.next()
		begin := time.Now()
		given, ok := s.together(op, g, []*family{part}, limit, take)
		took := time.Since(begin)
		if !ok && s.ctx.Err() == nil {
			s.e.scans.note(f.key())
		}
		if !ok || 2*given < len(part.members) || len(f.members) == 0 {
			return
		}
		if took <= 2*s.each*time.Duration(len(part.members)) {
			break
		}
		if try == familyTries { // once may be chance
			s.e.scans.note(f.key())
			return
		}
	}
	var parts []*family
	for len(f.members) > 0 {
		parts = append(parts, f.next())
	}
	s.together(op, g, parts, s.e.cfg.OpTimeout, take)
}

const (
	// familyPatience is how long the first search of a family may take at
	// least; a longer one is ended with its connection. 389 Directory Server
	// lets a connection wait for up to 0.4 s now and then.
	familyPatience = 500 * time.Millisecond
	familyTries    = 2
)

// together looks for the parts side by side. ok is false when one was not
// answered with success.
func (s *session) together(op string, g *group, parts []*family, limit time.Duration, take func(*member, found)) (given int, ok bool) {
	c, err := s.conn()
	if err != nil {
		return 0, false
	}
	requests := make([]*ldap.SearchRequest, len(parts))
	for i, f := range parts {
		requests[i] = f.search(g, limit)
	}
	answers := make([]found, len(parts))
	ok = s.round(c, op, requests, answers, flight{familyFlight, limit}) == nil
	for i, f := range parts {
		a := answers[i]
		if !a.done || a.err != nil {
			ok = false
			continue
		}
		given += f.give(a.result.Entries, take)
	}
	return given, ok
}

// scans remembers, for a while, the families that are better looked for one
// by one.
type scans struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu
}

const (
	scansTime = time.Minute
	scansMax  = 1000 // callers choose the names
)

func (s *scans) note(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) >= scansMax {
		s.until = make(map[string]time.Time)
	}
	s.until[key] = time.Now().Add(scansTime)
}

func (s *scans) known(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[key])
}
