package ldapgroup

import "context"

// Action is what is done to a member.
type Action uint8

// The actions.
const (
	Add Action = iota + 1
	Remove
)

// Outcome is what became of one member. It is a closed set, in JSON and as a
// metric label its String.
type Outcome uint8

// The outcomes. In a dry run they say what would be.
const (
	Skipped       Outcome = iota // not attempted: an earlier step failed
	Added                        // is a member now
	AlreadyMember                // was one
	Removed                      // is none now
	NotMember                    // was none
	Failed                       // Err says why; nothing was written for it
	Unknown                      // sent, no answer, and not to be verified in time
)

// Done reports whether the member is in the wanted state.
func (o Outcome) Done() bool { return o >= Added && o <= NotMember }

// Changed says whether this call changed the directory. In JSON it is true,
// false or null.
type Changed uint8

// The zero value claims nothing.
const (
	ChangedUnknown Changed = iota // maybe ours, maybe somebody else's
	ChangedNo
	ChangedYes
)

// Answer is what the directory said about one request, for logs and for
// callers that may see it: MatchedDN and Diagnostic can name entries that the
// caller of an API has no right to know of.
type Answer struct {
	Code       uint16 `json:"code"`
	Name       string `json:"name"` // of the code, as RFC 4511 spells it
	Diagnostic string `json:"diagnostic,omitempty"`
	MatchedDN  string `json:"matched_dn,omitempty"`
}

// MemberResult is the outcome of one member of a call.
type MemberResult struct {
	Member    string  `json:"member"`              // as given
	Canonical string  `json:"canonical,omitempty"` // as the directory has it; empty when it was not asked
	Action    Action  `json:"action"`
	Outcome   Outcome `json:"outcome"`
	Changed   Changed `json:"changed"`
	// Note names a circumstance: [NotePrimaryGroup], [NotePlaceholder].
	Note string `json:"note,omitempty"`
	// Answer is the directory's last one to a request that carried the member;
	// nil when there was none, and when it was success.
	Answer *Answer `json:"ldap,omitempty"`
	// Attempts counts the modify requests that carried the member.
	Attempts int `json:"attempts"`
	// Err is set for Failed, Unknown and Skipped.
	Err *Error `json:"-"`
}

// The notes.
const (
	// NotePrimaryGroup: a member by virtue of the primary group attribute of
	// its entry, which the group does not list.
	NotePrimaryGroup = "primary_group"
	// NotePlaceholder: the configured placeholder took the last member's place.
	NotePlaceholder = "placeholder"
)

// Result is what a Change or Replace did.
type Result struct {
	Group     string // as given
	Canonical string // as the directory has it
	Kind      Kind
	// Members has one result for each add, then for each remove, in the order
	// given; a member named twice has two equal ones. For a Replace the
	// members already right are not in it; AlreadyRight counts them.
	Members      []MemberResult
	AlreadyRight int
	// DryRun says that nothing was written and that the outcomes are a
	// snapshot's.
	DryRun bool
	// ETag is that of the group after a Replace without failures, for
	// comparisons only; empty when it is not known.
	ETag string
}

// Complete reports whether every member is in the wanted state.
func (r *Result) Complete() bool {
	for i := range r.Members {
		if !r.Members[i].Outcome.Done() {
			return false
		}
	}
	return true
}

// Kind is a way that directories keep members.
type Kind uint8

// The kinds. They follow from the group's object classes and the server.
const (
	GroupOfNames       Kind = iota + 1 // member, DNs
	GroupOfUniqueNames                 // uniqueMember, DNs
	PosixGroup                         // memberUid, user names; case matters
	ADGroup                            // group of Active Directory or Samba: member, DNs
)

// Approve is asked about the members of a call by the names that the directory
// has for their entries, as far as it has any, in the order of the call, before
// anything is written. A user name is as the directory spells it. Who decides by
// names needs it: one entry has many. Its error is that of the call. It may take
// its time: no connection is held meanwhile.
type Approve func(ctx context.Context, adds, removes []string) error

// ChangeOptions are those of one Change.
type ChangeOptions struct {
	// DryRun looks and writes nothing.
	DryRun bool
	// IfMatch, unless empty, is an ETag of [Engine.Read] that the group must
	// still have ([ClassPrecondition] otherwise). OpenLDAP keeps others from
	// writing in between, the other servers cannot.
	IfMatch string
	// Approve, if set, may refuse the call.
	Approve Approve
}

// ReplaceOptions are those of one Replace.
type ReplaceOptions struct {
	DryRun bool
	// IfMatch: see [ChangeOptions]. It is required unless Force.
	IfMatch string
	// Force does without IfMatch, and permits more removals than the group's
	// rule and an empty list.
	Force bool
	// Approve, if set, may refuse the call; its adds are all the members wanted.
	Approve Approve
}

// ReadOptions are those of one Read.
type ReadOptions struct {
	// Cursor is Page.Next of the page before; empty begins.
	Cursor string
	// Limit is the number of members wanted. 0 means 1000, at most 10,000.
	Limit int
}

// Page is a part of a group's members, in an order that does not change while
// the members do not.
type Page struct {
	Group     string // as given
	Canonical string // as the directory has it
	Kind      Kind
	Members   []string // as the directory has them
	Total     int      // members in the whole group
	Next      string   // cursor of the next page; empty on the last
	// ETag is a hash of the whole set of members, in HTTP's quoted form. Two
	// spellings of a member are one.
	ETag string
}

// Membership answers IsMember.
type Membership struct {
	Group, Member   string // as given
	CanonicalGroup  string
	CanonicalMember string // empty when the member's entry was not found
	Called          string // the member, as [Approve] is told
	// IsMember says that the group lists the member, or that it is the
	// member's primary group.
	IsMember bool
	// Primary says that the group is the member's primary group.
	Primary bool
}
