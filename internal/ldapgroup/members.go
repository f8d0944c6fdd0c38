package ldapgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// member is one of a call's members on its way to the directory.
type member struct {
	given   string
	action  Action
	name    name   // what is sent
	found   bool   // its entry was
	entry   string // its entry's name; empty until found
	primary bool   // the group is its primary group
	err     *Error // why it goes no further
}

// canonical is the name for results: empty when the directory was not asked
// or does not know the entry.
func (m *member) canonical() string {
	if m.found {
		return m.name.raw
	}
	return ""
}

// called is how the directory calls what was given: the entry's name, or the
// user name where one was given. It is as given while neither is known.
func (m *member) called() string {
	switch {
	case !m.found:
		return m.given
	case strings.Contains(m.given, "="):
		return m.entry
	}
	return m.name.raw
}

var (
	errBothLists   = errors.New("the same member is to be added and removed")
	errNoSID       = errors.New("SID and GUID forms are not enabled, or not this server's")
	errUncheckable = errors.New("user names cannot be held against member bases without a lookup")
	errAmbiguous   = errors.New("several entries have this user name")
)

// prepare parses, looks up and checks the members of a call. The error is that
// of the call; what is wrong with one member is in it.
func (s *session) prepare(op string, g *group, ahead map[string]found, adds, removes []string) ([]*member, error) {
	ms := append(s.parseAll(g, Add, adds), s.parseAll(g, Remove, removes)...)
	if err := s.contradiction(op, g, ms); err != nil {
		return nil, err
	}
	if err := s.lookup(op, g, ahead, ms); err != nil {
		return nil, err
	}
	return ms, s.contradiction(op, g, ms)
}

// parseAll makes members of names.
func (s *session) parseAll(g *group, action Action, names []string) []*member {
	ms := make([]*member, len(names))
	for i, n := range names {
		m := &member{given: n, action: action}
		m.err = s.placed(g, m, s.parse(g, m))
		ms[i] = m
	}
	return ms
}

// placed says in err where it belongs.
func (s *session) placed(g *group, m *member, err *Error) *Error {
	if err != nil {
		err.Op, err.Directory, err.Group, err.Member = m.action.String(), s.e.cfg.Name, g.given, m.given
	}
	return err
}

// contradiction finds a member that is to be added and removed.
func (s *session) contradiction(op string, g *group, ms []*member) error {
	actions := make(map[string]Action, len(ms))
	for _, m := range ms {
		if m.err != nil {
			continue
		}
		if a, ok := actions[m.name.key]; ok && a != m.action {
			return s.e.groupError(op, g.given, ClassInvalid, errBothLists).about("", m.given)
		}
		actions[m.name.key] = m.action
	}
	return nil
}

// parse checks what can be checked without the directory.
func (s *session) parse(g *group, m *member) *Error {
	invalid := func(err error) *Error { return &Error{Class: ClassInvalid, Err: err} }
	switch {
	case strings.HasPrefix(m.given, "<"):
		if !s.e.cfg.AllowSID || !g.server.Vendor.adLike() || g.kind != ADGroup {
			return invalid(errNoSID)
		}
		if !altName(m.given) {
			return invalid(errNameSyntax)
		}
		// Until the lookup says whose it is, it equals only itself.
		m.name = name{raw: m.given, key: keySeparator + strings.ToLower(m.given)}
		return nil
	case g.kind == PosixGroup && !strings.Contains(m.given, "="):
		if err := checkUserName(m.given); err != nil {
			return invalid(err)
		}
		m.name = exactName(m.given)
		if s.e.cfg.Lookup == LookupNever && !s.e.cfg.AnyMember {
			return &Error{Class: ClassForbidden, Err: errUncheckable}
		}
		return nil
	}
	n, err := parseName(m.given)
	switch {
	case err != nil:
		return invalid(err)
	case g.kind == PosixGroup && s.e.cfg.Lookup == LookupNever:
		return invalid(errors.New("this group lists user names"))
	case !s.e.memberAllowed(n):
		return &Error{Class: ClassForbidden, Err: errMemberNotAllowed}
	case g.isPlaceholder(n):
		return &Error{Class: ClassForbidden, Err: errIsPlaceholder}
	}
	m.name = n
	return nil
}

// maxUserName bounds a memberUid value.
const maxUserName = 256

// checkUserName checks a memberUid value, which is IA5 (ASCII) text.
func checkUserName(s string) error {
	if err := checkText(s); err != nil {
		return err
	}
	if len(s) > maxUserName || strings.TrimSpace(s) != s {
		return errors.New("user name is too long or begins or ends with a space")
	}
	for i := range len(s) {
		if s[i] >= 0x80 {
			return errors.New("user name is not ASCII")
		}
	}
	return nil
}

// lookup asks for the members' entries and takes over the names that the
// directory has for them, unless the configuration says not to. Those in ahead
// were asked for already.
func (s *session) lookup(op string, g *group, ahead map[string]found, ms []*member) error {
	if s.e.cfg.Lookup == LookupNever {
		return nil
	}
	var waiting []*member
	for _, m := range ms {
		if m.err != nil {
			continue
		}
		if a, ok := ahead[m.given]; ok {
			s.take(g, m, a)
			continue
		}
		waiting = append(waiting, m)
	}
	if s.each == 0 && len(waiting) > familyMin {
		// Those show what one by one costs.
		if err := s.lookupEach(op, g, waiting[:inFlight]); err != nil {
			return err
		}
		waiting = waiting[inFlight:]
	}
	s.lookupTogether(op, g, waiting, func(m *member, a found) { s.take(g, m, a) })
	if err := s.lookupEach(op, g, waiting); err != nil {
		return err
	}
	if err := s.elsewhere(op, g, ms); err != nil {
		return err
	}
	for _, m := range ms {
		if m.err == nil && !m.found {
			m.err = s.missing(g, m)
		}
		m.err = s.placed(g, m, m.err)
	}
	return nil
}

// lookupEach asks for the entry of each member that has none yet.
func (s *session) lookupEach(op string, g *group, ms []*member) error {
	var (
		requests []*ldap.SearchRequest
		owners   []*member
	)
	for _, m := range ms {
		if m.err != nil || m.found {
			continue
		}
		for _, r := range s.lookupRequests(g, m) {
			requests, owners = append(requests, r), append(owners, m)
		}
	}
	if len(requests) == 0 {
		return nil
	}
	answers, err := s.searchAll(op, requests)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if m := owners[i]; m.err == nil {
			s.take(g, m, a)
		}
	}
	return nil
}

// memberSearch finds the entry of a member by its name. It asks for what one
// kind of group or another needs, because the kind may not be known yet.
func memberSearch(dn string) *ldap.SearchRequest {
	return baseSearch(dn, "(objectClass=*)", "objectSid", "primaryGroupID", "uid")
}

// lookupRequests are the searches that find one member.
func (s *session) lookupRequests(g *group, m *member) []*ldap.SearchRequest {
	if g.kind != PosixGroup || strings.Contains(m.given, "=") {
		return []*ldap.SearchRequest{memberSearch(m.given)}
	}
	var rs []*ldap.SearchRequest
	for _, base := range s.e.memberBases {
		rs = append(rs, userSearch(base.raw, m.given))
	}
	return rs
}

// userSearch finds the entries of a user name.
func userSearch(base, user string) *ldap.SearchRequest {
	return &ldap.SearchRequest{
		BaseDN: base, Scope: ldap.ScopeWholeSubtree, DerefAliases: ldap.NeverDerefAliases,
		Filter:     "(uid=" + ldap.EscapeFilter(user) + ")",
		Attributes: []string{"uid"}, SizeLimit: 10, EnforceSizeLimit: true,
	}
}

// elsewhere refuses to remove user names whose entries are outside of the
// member bases, which the names do not tell. One without an entry anywhere
// was left behind, and may go.
func (s *session) elsewhere(op string, g *group, ms []*member) error {
	if g.kind != PosixGroup || s.e.cfg.AnyMember {
		return nil
	}
	var (
		requests []*ldap.SearchRequest
		owners   []*member
	)
	for _, m := range ms {
		if m.err != nil || m.found || m.action != Remove || strings.Contains(m.given, "=") {
			continue
		}
		if len(g.server.NamingContexts) == 0 { // nowhere to look
			m.err = &Error{Class: ClassForbidden, Err: errUncheckable}
		}
		for _, base := range g.server.NamingContexts {
			requests, owners = append(requests, userSearch(base, m.given)), append(owners, m)
		}
	}
	if len(requests) == 0 {
		return nil
	}
	answers, err := s.searchAll(op, requests)
	if err != nil {
		return err
	}
	for i, a := range answers {
		switch m := owners[i]; {
		case a.err != nil && a.err.Answer.Code == ldap.LDAPResultNoSuchObject:
		case a.err != nil && a.err.Answer.Code != ldap.LDAPResultSizeLimitExceeded:
			m.err = a.err.about("", "")
		case a.err != nil || len(a.result.Entries) > 0:
			m.err = &Error{Class: ClassForbidden, Err: errMemberNotAllowed}
		}
	}
	return nil
}

// take makes an answer the member's.
func (s *session) take(g *group, m *member, a found) {
	switch {
	case a.err != nil && a.err.Answer.Code == ldap.LDAPResultNoSuchObject:
		return
	case a.err != nil:
		m.err = a.err.about("", "")
		return
	}
	for _, entry := range a.result.Entries {
		n := storedName(entry.DN)
		if !s.e.memberAllowed(n) {
			m.err = &Error{Class: ClassForbidden, Err: errMemberNotAllowed}
			return
		}
		if g.kind == PosixGroup {
			s.takeUser(m, entry)
			continue
		}
		if g.isPlaceholder(n) {
			m.err = &Error{Class: ClassForbidden, Err: errIsPlaceholder}
			return
		}
		m.name, m.found, m.entry = n, true, entry.DN
		m.primary = g.primaryOf(entry)
	}
}

// takeUser takes the user name as the directory spells it: memberUid minds
// the case that uid does not.
func (s *session) takeUser(m *member, entry *ldap.Entry) {
	uids := entry.GetEqualFoldAttributeValues("uid")
	spelled := ""
	for _, u := range uids {
		if strings.EqualFold(u, m.given) {
			spelled = u
		}
	}
	if spelled == "" && strings.Contains(m.given, "=") && len(uids) > 0 {
		spelled = uids[0]
	}
	if spelled == "" {
		return
	}
	n := exactName(spelled)
	if m.found && m.name.key != n.key {
		m.err = &Error{Class: ClassInvalid, Err: errAmbiguous}
		return
	}
	m.name, m.found, m.entry = n, true, entry.DN
}

// primaryOf reports whether g is the entry's primary group: a membership that
// the group does not list.
func (g *group) primaryOf(entry *ldap.Entry) bool {
	id, err := strconv.ParseUint(entry.GetEqualFoldAttributeValue("primaryGroupID"), 10, 32)
	if err != nil || !g.hasSID || uint32(id) != g.sid.rid {
		return false
	}
	user, ok := parseSID(entry.GetEqualFoldRawAttributeValue("objectSid"))
	return ok && user.domain == g.sid.domain
}

// missing says what becomes of a member whose entry was not found. One that is
// to be removed may have left a value behind; its name goes out as given.
func (s *session) missing(g *group, m *member) *Error {
	notFound := &Error{Class: ClassMemberNotFound}
	switch {
	case m.action == Add && g.kind == PosixGroup && s.e.cfg.AnyMember && len(s.e.memberBases) == 0:
		return nil // there was nowhere to look
	case m.action == Add:
		return notFound
	case strings.HasPrefix(m.given, "<"):
		return notFound // no value of a group looks like that
	case g.kind == PosixGroup && strings.Contains(m.given, "="):
		return &Error{Class: ClassMemberNotFound, Err: fmt.Errorf("its user name is not known")}
	}
	return nil
}
