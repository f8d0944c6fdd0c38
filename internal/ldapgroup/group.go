package ldapgroup

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// group is a group as the directory has it.
type group struct {
	given  string
	name   name
	kind   Kind
	rule   *rule
	server *ServerInfo
	sid    sid
	hasSID bool
	// guarded: Active Directory made the group, or gives its members powers
	// over the domain.
	guarded bool
}

// value makes a member's name of a value of the group's attribute.
func (g *group) value(v string) name {
	if g.kind == PosixGroup {
		return exactName(v)
	}
	return storedName(v)
}

// isPlaceholder reports whether n is the configured placeholder.
func (g *group) isPlaceholder(n name) bool {
	return g.rule.placeholder.key != "" && g.rule.placeholder.key == n.key
}

// groupError builds an error about the group as such.
func (e *Engine) groupError(op, group string, c Class, cause error) *Error {
	return &Error{Op: op, Directory: e.cfg.Name, Group: group, Class: c, Err: cause}
}

// allowed checks a group's name before anything is asked about it.
func (e *Engine) allowed(op, given string) (name, *Error) {
	n, err := parseName(given)
	if err != nil {
		return name{}, e.groupError(op, given, ClassInvalid, err)
	}
	if e.ruleFor(n) == nil {
		return name{}, e.groupError(op, given, ClassForbidden, errGroupNotAllowed)
	}
	return n, nil
}

// resolve finds the group and learns what kind it is. It looks for the first
// members' entries in the same breath, which saves a round trip through the
// tunnel; ahead has what was found, by the name given.
func (s *session) resolve(op, given string, members ...string) (_ *group, ahead map[string]found, err error) {
	if _, err := s.e.allowed(op, given); err != nil {
		return nil, nil, err
	}
	requests := []*ldap.SearchRequest{baseSearch(given, "(objectClass=*)", "objectClass", "objectSid", "adminCount")}
	var asked []string
	for _, m := range members[:min(len(members), inFlight-1)] {
		if n, err := parseName(m); err == nil && s.e.memberAllowed(n) && s.e.cfg.Lookup == LookupAlways {
			requests, asked = append(requests, memberSearch(m)), append(asked, m)
		}
	}
	answers, err := s.searchAll(op, requests)
	if err != nil {
		return nil, nil, s.e.toError(op, err).about(given, "")
	}
	ahead = make(map[string]found, len(asked))
	for i, m := range asked {
		ahead[m] = answers[i+1]
	}
	g, err := s.groupOf(op, given, answers[0])
	return g, ahead, err
}

// groupOf makes a group of the answer to the search for it.
func (s *session) groupOf(op, given string, answer found) (*group, error) {
	if answer.err != nil {
		return nil, s.e.notFound(op, given, answer.err)
	}
	if len(answer.result.Entries) == 0 {
		return nil, s.e.groupError(op, given, ClassGroupNotFound, nil)
	}
	entry := answer.result.Entries[0]
	g := &group{given: given, name: storedName(entry.DN), server: s.c.server}
	// What the directory calls it counts: an alias or another spelling must
	// not lead out of what is allowed.
	if g.rule = s.e.ruleFor(g.name); g.rule == nil {
		return nil, s.e.groupError(op, given, ClassForbidden, errGroupNotAllowed)
	}
	if g.kind = kindOf(entry); g.kind == 0 {
		classes := strings.Join(entry.GetEqualFoldAttributeValues("objectClass"), " ")
		return nil, s.e.groupError(op, given, ClassNotAGroup, fmt.Errorf("object classes %.200q", classes))
	}
	if g.kind == ADGroup {
		g.sid, g.hasSID = parseSID(entry.GetEqualFoldRawAttributeValue("objectSid"))
		admin, _ := strconv.Atoi(entry.GetEqualFoldAttributeValue("adminCount"))
		g.guarded = admin > 0 || g.hasSID && g.sid.protected()
	}
	return g, nil
}

// writable refuses groups that only an exact rule may open.
func (g *group) writable(e *Engine, op string) *Error {
	if g.guarded && g.rule.name.key != g.name.key {
		return e.groupError(op, g.given, ClassProtected, errProtected)
	}
	return nil
}

// notFound turns the answer to a search for a group into what it means.
func (e *Engine) notFound(op, given string, err error) error {
	own := e.toError(op, err).about(given, "")
	if own.Answer != nil && own.Answer.Code == ldap.LDAPResultNoSuchObject {
		own.Class = ClassGroupNotFound
	}
	return own
}

// kindOf returns 0 for what is no group.
func kindOf(entry *ldap.Entry) Kind {
	has := func(class string) bool {
		return slices.ContainsFunc(entry.GetEqualFoldAttributeValues("objectClass"), func(c string) bool {
			return strings.EqualFold(c, class)
		})
	}
	switch {
	case has("groupOfNames"):
		return GroupOfNames
	case has("groupOfUniqueNames"):
		return GroupOfUniqueNames
	case has("group"):
		return ADGroup
	case has("posixGroup"):
		return PosixGroup
	}
	return 0
}

// contents is all that a group lists.
type contents struct {
	values []string // as the directory has them, without the placeholder
	keys   []string // of values, index by index
	csn    string   // OpenLDAP's change number of the entry, may be empty
}

// index finds a value by its key.
func (c *contents) index() map[string]int {
	m := make(map[string]int, len(c.keys))
	for i, k := range c.keys {
		m[k] = i
	}
	return m
}

var errRange = errors.New("directory returned ranges that lead nowhere")

// rangeReads is how often a group is read from the start when it shrinks
// between two ranges.
const rangeReads = 3

// read fetches all members, range by range where the server hands them out so.
func (s *session) read(op string, g *group) (*contents, error) {
	for try := 1; ; try++ {
		c, err := s.readOnce(op, g)
		if err == nil || try == rangeReads || !errors.Is(err, errRange) {
			return c, err
		}
	}
}

func (s *session) readOnce(op string, g *group) (*contents, error) {
	c := &contents{}
	attribute, size := g.kind.Attribute(), 0
	for want, from := attribute, 0; ; {
		r, err := s.search(op, baseSearch(g.name.raw, "(objectClass=*)", want, "entryCSN"))
		if err != nil {
			return nil, s.e.notFound(op, g.given, err)
		}
		if len(r.Entries) == 0 {
			return nil, s.e.groupError(op, g.given, ClassGroupNotFound, nil)
		}
		values, next, err := rangeOf(r.Entries[0], attribute, from)
		if err != nil {
			return nil, s.e.groupError(op, g.given, ClassDirectory, err)
		}
		if from == 0 {
			c.csn = r.Entries[0].GetEqualFoldAttributeValue("entryCSN")
		}
		for _, v := range values {
			if size += len(v) + 2; size > s.e.cfg.MaxResponseBytes {
				return nil, s.e.groupError(op, g.given, ClassDirectory, errTooLarge)
			}
			n := g.value(v)
			if g.isPlaceholder(n) {
				continue
			}
			c.values = append(c.values, v)
			c.keys = append(c.keys, n.key)
		}
		if next == 0 {
			return c, nil
		}
		from = next
		want = fmt.Sprintf("%s;range=%d-*", attribute, next)
	}
}

// rangeOf returns the values of the attribute in entry, and where the next
// range begins, 0 when these were the last. Active Directory answers a request
// for a long attribute with none of its values under the plain name and some
// under one with a range option. Other options are other attributes.
func rangeOf(entry *ldap.Entry, attribute string, from int) (values []string, next int, err error) {
	seen := from == 0
	for _, a := range entry.Attributes {
		base, option, found := strings.Cut(a.Name, ";")
		if !strings.EqualFold(base, attribute) {
			continue
		}
		if !found {
			if from == 0 {
				values = append(values, a.Values...)
			}
			continue
		}
		bounds, ok := strings.CutPrefix(strings.ToLower(option), "range=")
		if !ok {
			continue
		}
		low, high, _ := strings.Cut(bounds, "-")
		if first, err := strconv.Atoi(low); err != nil || first != from {
			return nil, 0, errRange
		}
		values, seen = append(values, a.Values...), true
		if high == "*" {
			continue
		}
		last, err := strconv.Atoi(high)
		if err != nil || last < from || len(a.Values) == 0 {
			return nil, 0, errRange
		}
		next = last + 1
	}
	if !seen {
		return nil, 0, errRange
	}
	return values, next, nil
}

// lists asks for each name whether the group lists it: by searches for single
// ones, by reading all where that is cheaper.
func (s *session) lists(op string, g *group, names []name) ([]bool, error) {
	out := make([]bool, len(names))
	if len(names) > maxSingleSearches {
		c, err := s.read(op, g)
		if err != nil {
			return nil, err
		}
		index := c.index()
		for i, n := range names {
			_, out[i] = index[n.key]
		}
		return out, nil
	}
	requests := make([]*ldap.SearchRequest, len(names))
	for i, n := range names {
		requests[i] = baseSearch(g.name.raw, "("+g.kind.Attribute()+"="+ldap.EscapeFilter(n.raw)+")", noAttributes)
	}
	answers, err := s.searchAll(op, requests)
	if err != nil {
		return nil, err
	}
	for i, a := range answers {
		switch {
		case a.err == nil:
			out[i] = len(a.result.Entries) > 0
		case a.err.Class == ClassInvalid: // what the server cannot even compare it does not list
		default:
			return nil, s.e.notFound(op, g.given, a.err)
		}
	}
	return out, nil
}

// maxSingleSearches is where reading the whole group becomes cheaper: a search
// costs 0.2 ms, but 33 ms on Samba for a group of 20,000, and so does reading
// those.
const maxSingleSearches = 8
