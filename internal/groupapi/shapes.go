package groupapi

import "time"

// Outcome is what became of one member in one request.
type Outcome string

// The outcomes. The would-be ones answer a dry run.
const (
	Added         Outcome = "added"
	AlreadyMember Outcome = "already_member"
	Removed       Outcome = "removed"
	NotMember     Outcome = "not_member"
	Failed        Outcome = "failed"
	Unknown       Outcome = "unknown" // sent, no answer, and nobody can tell
	Skipped       Outcome = "skipped" // not tried, because something before it failed
	WouldAdd      Outcome = "would_add"
	WouldRemove   Outcome = "would_remove"
)

// Good reports whether the member is, or would be, in the state asked for.
func (o Outcome) Good() bool {
	switch o {
	case Added, AlreadyMember, Removed, NotMember, WouldAdd, WouldRemove:
		return true
	}
	return false
}

// LDAP is what the directory answered.
type LDAP struct {
	Code       int    `json:"code"`
	Name       string `json:"name"`
	Diagnostic string `json:"diagnostic,omitempty"`
}

// Result is the outcome of one member.
type Result struct {
	// Member is the member as it was asked for.
	Member string `json:"member"`
	// Canonical is the name under which the directory keeps it; empty when
	// that did not have to be found out.
	Canonical string  `json:"canonical,omitempty"`
	Outcome   Outcome `json:"outcome"`
	// Changed tells whether this request changed the group. It is null when
	// that cannot be known: an earlier try, whose answer was lost, may have.
	Changed *bool `json:"changed"`
	// Code says why an outcome is failed, unknown or skipped, or adds to a good
	// one (primary_group).
	Code string `json:"code,omitempty"`
	// LDAP is the directory's answer that the outcome rests on.
	LDAP *LDAP `json:"ldap,omitempty"`
	// Attempts counts the modify requests that carried this member.
	Attempts int `json:"attempts"`
}

// Answer is the body of every write that was carried out, in full (200) or in
// part (207).
type Answer struct {
	Group   string   `json:"group"` // as the directory keeps it
	DryRun  bool     `json:"dry_run"`
	Results []Result `json:"results"`
}

// Membership answers whether one entry is a member.
type Membership struct {
	Group    string `json:"group"`
	Member   string `json:"member"`
	IsMember bool   `json:"is_member"`
}

// Page is one page of a group's members.
type Page struct {
	Group      string   `json:"group"`
	Members    []string `json:"members"`
	Total      int      `json:"total"`
	NextCursor string   `json:"next_cursor,omitempty"` // empty on the last page
}

// Patch is the body of PATCH.
type Patch struct {
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// Replace is the body of PUT on the whole set.
type Replace struct {
	Members []string `json:"members"`
}

// Problem is an error by RFC 9457.
type Problem struct {
	Type     string `json:"type"`  // always about:blank
	Title    string `json:"title"` // of the HTTP status
	Status   int    `json:"status"`
	Detail   string `json:"detail,omitempty"`
	Instance string `json:"instance,omitempty"` // the request's id, as in the log
	// Code is one of a closed set, for programs.
	Code string `json:"code"`
	// The directory's answer, when there was one.
	LDAPCode   *int   `json:"ldap_code,omitempty"`
	LDAPName   string `json:"ldap_name,omitempty"`
	Diagnostic string `json:"diagnostic,omitempty"`
	// Results tells about each member, when members were tried.
	Results []Result `json:"results,omitempty"`

	// RetryAfter is the header of that name, read by the client; 0 for none.
	RetryAfter time.Duration `json:"-"`
}

// Media types.
const (
	TypeJSON    = "application/json"
	TypeProblem = "application/problem+json"
)

// HeaderIdempotencyKey makes a repeated write answer as the first did.
const HeaderIdempotencyKey = "Idempotency-Key"
