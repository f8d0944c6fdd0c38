package ldapgroup

import (
	"errors"
	"fmt"
	"strings"
)

// Class says what kind of failure it is; an HTTP status follows from it. It is
// a closed set.
type Class string

// The classes, each with the status that fits.
const (
	ClassInvalid        Class = "invalid"          // 400: malformed name, same member in both lists, cursor, limits
	ClassForbidden      Class = "forbidden"        // 403: our configuration does not allow the group or member
	ClassProtected      Class = "protected_group"  // 403: a built-in group of Active Directory that no rule names
	ClassDenied         Class = "denied"           // 403: the directory refused our account (50)
	ClassGroupNotFound  Class = "group_not_found"  // 404
	ClassNotAGroup      Class = "not_a_group"      // 409: the entry keeps no members, or its class is not supported
	ClassLastMember     Class = "last_member"      // 409: the group must keep one
	ClassPrimaryGroup   Class = "primary_group"    // 409: a member through its primary group cannot be removed here
	ClassPrecondition   Class = "precondition"     // 412: IfMatch
	ClassNoPrecondition Class = "no_precondition"  // 428: a Replace without IfMatch and Force
	ClassTooManyRemoved Class = "removal_limit"    // 409: a Replace would remove more than allowed
	ClassTooLarge       Class = "too_large"        // 413: more members than MaxMembers
	ClassMemberNotFound Class = "member_not_found" // 422
	ClassConstraint     Class = "constraint"       // 422: the directory's rules refuse the value (19, 21, 65, 53)
	ClassConfig         Class = "config"           // 500: the schema lacks what the group needs
	ClassAccount        Class = "account"          // 502: the directory refused our credentials (49, 8, 1)
	ClassReferral       Class = "referral"         // 502: a referral, which is not followed
	ClassDirectory      Class = "directory"        // 502: any other refusal, or nonsense
	ClassUnavailable    Class = "unavailable"      // 503: no connection, 51, 52, queue full, closed
	ClassTimeout        Class = "timeout"          // 504: the deadline passed
	ClassCanceled       Class = "canceled"         // 499: the caller left
)

// Error is every error of this package's operations. It wraps its cause:
// context errors, x509 errors and *ldap.Error are found by errors.As and Is.
type Error struct {
	Op        string // what was attempted: "add", "remove", "read", "bind", "dial", …
	Directory string // Config.Name
	Group     string // as given; may be empty
	Member    string // as given; empty when the failure is not one member's
	Class     Class
	// Answer is the directory's, when it gave one.
	Answer *Answer
	// Referral is where the directory pointed to, for the log only.
	Referral string
	// RetryAfter is whole seconds after which another try makes sense; 0 when
	// it does not.
	RetryAfter int
	// Err is the cause; may be nil.
	Err error
}

// Error tells what failed, where, and the cause. It has no credentials in it;
// names and the directory's text it has.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Member != "" {
		fmt.Fprintf(&b, " %q", e.Member)
	}
	if e.Group != "" {
		fmt.Fprintf(&b, " of group %q", e.Group)
	}
	if e.Directory != "" {
		fmt.Fprintf(&b, " at %s", e.Directory)
	}
	fmt.Fprintf(&b, ": %s", strings.ReplaceAll(string(e.Class), "_", " "))
	if e.Answer != nil {
		fmt.Fprintf(&b, ": %d %s", e.Answer.Code, e.Answer.Name)
		if e.Answer.Diagnostic != "" {
			fmt.Fprintf(&b, " (%s)", e.Answer.Diagnostic)
		}
	}
	// The cause of an answer is the answer in other words.
	if e.Err != nil && (e.Answer == nil || !isAnswer(e.Err)) {
		fmt.Fprintf(&b, ": %s", e.Err)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether a deadline passed (net.Error).
func (e *Error) Timeout() bool { return e.Class == ClassTimeout }

// Temporary reports whether another try makes sense (net.Error).
func (e *Error) Temporary() bool { return e.RetryAfter > 0 || e.Class == ClassTimeout }

// about returns a copy of e that names group and member where e does not.
func (e *Error) about(group, member string) *Error {
	c := *e
	if c.Group == "" {
		c.Group = group
	}
	if c.Member == "" {
		c.Member = member
	}
	return &c
}

// classOf is the class of an error of this package, "" for others.
func classOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return ""
}
