package demodir

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-ldap/ldap/v3"
)

// Tree holds the entries. It is safe for concurrent use once a [Server] has
// it; until then one goroutine fills it with MustAdd.
type Tree struct {
	base    string            // key of the suffix
	admin   string            // key of the one entry that may write
	known   map[string]string // lower-case attribute name → as it is written
	entries []*entry          // in the order added: parents before children
	byKey   map[string]*entry

	mu sync.RWMutex // guards the attrs and members of every entry
}

// entry is one object. dn, key, parent and password never change.
type entry struct {
	dn       string
	key      string // see dnKey
	parent   string // key of the entry above
	password string // "" means that nobody can bind as this entry
	attrs    []attr
	members  []string // keys of the member values, so that memberOf parses nothing
}

type attr struct {
	name string
	vals []string
}

// NewTree makes a tree whose only entry is its suffix. attrs are name, value,
// name, value and so on, as in MustAdd.
func NewTree(suffix string, attrs ...string) *Tree {
	t := &Tree{base: mustKey(suffix), byKey: map[string]*entry{}, known: map[string]string{"memberof": "memberOf"}}
	t.add(suffix, "", attrs)
	return t
}

// MustAdd adds an entry below one that is there already. It panics on a fault
// in its arguments, which come from source code.
func (t *Tree) MustAdd(dn, password string, attrs ...string) {
	if e := t.byKey[mustKey(dn)]; e != nil {
		panic("demodir: " + dn + " twice")
	}
	t.add(dn, password, attrs)
	if e := t.byKey[mustKey(dn)]; t.byKey[e.parent] == nil {
		panic("demodir: no parent for " + dn)
	}
}

func (t *Tree) add(dn, password string, attrs []string) {
	e := &entry{dn: dn, key: mustKey(dn), password: password}
	_, e.parent, _ = strings.Cut(e.key, keySeparator)
	for i := 0; i+1 < len(attrs); i += 2 {
		t.known[strings.ToLower(attrs[i])] = attrs[i]
		e.add(attrs[i], attrs[i+1])
	}
	e.indexMembers()
	t.entries = append(t.entries, e)
	t.byKey[e.key] = e
}

func (e *entry) add(name, value string) {
	for i := range e.attrs {
		if strings.EqualFold(e.attrs[i].name, name) {
			e.attrs[i].vals = append(e.attrs[i].vals, value)
			return
		}
	}
	e.attrs = append(e.attrs, attr{name, []string{value}})
}

// indexMembers follows a change of member.
func (e *entry) indexMembers() {
	e.members = nil
	for _, v := range e.values("member") {
		e.members = append(e.members, dnKey(v))
	}
}

// values returns an attribute's values, or nil.
func (e *entry) values(name string) []string {
	for _, a := range e.attrs {
		if strings.EqualFold(a.name, name) {
			return a.vals
		}
	}
	return nil
}

func (e *entry) isA(class string) bool {
	return slices.ContainsFunc(e.values("objectClass"), func(v string) bool { return strings.EqualFold(v, class) })
}

// memberOf computes the groups that hold e. Like the overlay of that name, and
// like Active Directory, it is never stored and never written. mu is held.
func (t *Tree) memberOf(e *entry) []string {
	var out []string
	for _, g := range t.entries {
		if slices.Contains(g.members, e.key) {
			out = append(out, g.dn)
		}
	}
	return out
}

// valuesOf is values, and memberOf where that is asked. mu is held.
func (t *Tree) valuesOf(e *entry, name string) []string {
	if strings.EqualFold(name, "memberOf") {
		return t.memberOf(e)
	}
	return e.values(name)
}

// checkPassword reports whether dn exists, can bind, and has this password.
func (t *Tree) checkPassword(key, password string) bool {
	e := t.byKey[key]
	if e == nil || e.password == "" {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(e.password), []byte(password)) == 1
}

// nearest returns the DN of the deepest entry that exists on the way to key,
// for the matchedDN of a noSuchObject.
func (t *Tree) nearest(key string) string {
	for ok := true; ok; _, key, ok = strings.Cut(key, keySeparator) {
		if e := t.byKey[key]; e != nil {
			return e.dn
		}
	}
	return ""
}

// under reports whether key names base itself or something below it.
func under(key, base string) bool {
	return key == base || strings.HasSuffix(key, keySeparator+base)
}

// keySeparator stands between the RDNs of a key. It cannot occur inside one,
// because foldValue turns every control character into a space.
const keySeparator = "\x00"

// dnKey returns the form in which DNs are compared: no case, no spaces around
// separators, runs of spaces as one, attributes of an RDN in order. It returns
// "\x01" for what is not a DN, which equals no entry's key.
func dnKey(dn string) string {
	k, err := parseKey(dn)
	if err != nil {
		return "\x01"
	}
	return k
}

func parseKey(dn string) (string, error) {
	d, err := ldap.ParseDN(dn)
	if err != nil {
		return "", err
	}
	rdns := make([]string, len(d.RDNs))
	for i, r := range d.RDNs {
		parts := make([]string, len(r.Attributes))
		for j, a := range r.Attributes {
			parts[j] = foldValue(a.Type) + "=" + foldValue(a.Value)
		}
		slices.Sort(parts)
		rdns[i] = strings.Join(parts, "\x02")
	}
	return strings.Join(rdns, keySeparator), nil
}

func mustKey(dn string) string {
	k, err := parseKey(dn)
	if err != nil {
		panic(fmt.Sprintf("demodir: %q: %v", dn, err))
	}
	return k
}

// foldValue is caseIgnoreMatch: lower case, outer spaces gone, inner runs of
// them as one.
func foldValue(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r <= ' ' }), " ")
}
