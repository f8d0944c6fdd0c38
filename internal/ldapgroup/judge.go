package ldapgroup

import (
	"errors"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// maybeNoOp reports whether an answer to a request with several values may
// mean no more than that some are in the wanted state already.
func (w *writer) maybeNoOp(action Action, a *Answer) bool {
	ad := w.g.server.Vendor.adLike()
	switch a.Code {
	case ldap.LDAPResultAttributeOrValueExists:
		return action == Add
	case ldap.LDAPResultEntryAlreadyExists:
		return action == Add && ad
	case ldap.LDAPResultNoSuchAttribute:
		return action == Remove
	case ldap.LDAPResultUnwillingToPerform:
		return action == Remove && ad
	}
	return false
}

// groupLevel reports whether an answer is about the group, the account or the
// server, so that it would be the same for every value.
func (w *writer) groupLevel(action Action, a *Answer) bool {
	ad := w.g.server.Vendor.adLike()
	switch a.Code {
	case ldap.LDAPResultConstraintViolation, ldap.LDAPResultInvalidAttributeSyntax, ldap.LDAPResultInvalidDNSyntax,
		ldap.LDAPResultAttributeOrValueExists, ldap.LDAPResultEntryAlreadyExists, ldap.LDAPResultNamingViolation:
		return false
	case ldap.LDAPResultNoSuchAttribute:
		return action == Add // the attribute is unknown to the schema
	case ldap.LDAPResultObjectClassViolation:
		return action == Add
	case ldap.LDAPResultUnwillingToPerform:
		// Elsewhere: read-only, or a group outside of what the server holds.
		return !ad
	case ldap.LDAPResultNoSuchObject:
		return !ad || w.groupGone(a)
	}
	return true
}

// groupGone tells the two meanings of noSuchObject on Active Directory apart:
// the group, or the member's entry.
func (w *writer) groupGone(a *Answer) bool {
	switch a.windowsCode() {
	case winNoSuchMember:
		return false
	case winNoSuchBase, winNoSuchObject:
		return true
	}
	r, err := w.s.search("look for the group", baseSearch(w.g.name.raw, "(objectClass=*)", noAttributes))
	if err != nil {
		return w.e.toError("", err).Answer != nil
	}
	return len(r.Entries) == 0
}

// judge decides what a refusal of a single value means. This is the only place
// where a code is read as "already so".
func (w *writer) judge(o *op, err error, a *Answer) {
	ad := w.g.server.Vendor.adLike()
	switch {
	case o.action == Add && a.Code == ldap.LDAPResultAttributeOrValueExists:
		w.believe(o, a, err, w.e.cfg.Verify == VerifyAlways)
	case o.action == Add && a.Code == ldap.LDAPResultEntryAlreadyExists && ad:
		w.judgeExists(o, a, err)
	case o.action == Remove && ad && o.primary &&
		(a.Code == ldap.LDAPResultNoSuchAttribute || a.Code == ldap.LDAPResultUnwillingToPerform):
		w.primary(o, a)
	case o.action == Remove && a.Code == ldap.LDAPResultNoSuchAttribute:
		// 389 Directory Server deletes by spelling and searches by meaning.
		ambiguous := w.g.server.Vendor == DS389 || ad
		w.believe(o, a, err, w.verify(ambiguous))
	case o.action == Remove && a.Code == ldap.LDAPResultUnwillingToPerform && ad:
		w.believe(o, a, err, w.verify(a.windowsCode() != winNotInGroup))
	default:
		w.reject(o, a, err)
	}
}

// judgeExists reads Active Directory's "entry already exists" for an add.
func (w *writer) judgeExists(o *op, a *Answer, err error) {
	switch {
	case o.primary || a.windowsCode() == winPrimaryGroup:
		w.noop(o, a, NotePrimaryGroup)
	default:
		// Without the number of ERROR_MEMBER_IN_ALIAS it may speak of another
		// entry altogether.
		w.believe(o, a, err, w.verify(a.windowsCode() != winInGroup))
	}
}

// verify reports whether an answer of that kind is to be confirmed.
func (w *writer) verify(ambiguous bool) bool {
	switch w.e.cfg.Verify {
	case VerifyAlways:
		return true
	case VerifyNever:
		return false
	default:
		return ambiguous
	}
}

// primary settles the removal of a member from its primary group.
func (w *writer) primary(o *op, a *Answer) {
	err := w.e.groupError(o.action.String(), w.g.given, ClassPrimaryGroup, errPrimary)
	err.Answer = a
	w.settle(o, outcome{is: Failed, changed: ChangedNo, note: NotePrimaryGroup, answer: a, err: err})
}

var errPrimary = errors.New("the group is the member's primary group: give it another one first")

// believe takes an answer as "already so", after a look when check is set.
func (w *writer) believe(o *op, a *Answer, err error, check bool) {
	if !check {
		w.noop(o, a, "")
		return
	}
	listed, lookErr := w.s.lists(o.action.String(), w.g, []name{o.name})
	switch {
	case lookErr != nil:
		w.unverified(o, a, lookErr)
	case listed[0] == (o.action == Add):
		w.noop(o, a, "")
	case o.action == Remove:
		w.respell(o, a, err)
	default:
		w.reject(o, a, err)
	}
}

// unverified settles an op whose no-op answer could not be confirmed. Nothing
// was written by this try.
func (w *writer) unverified(o *op, a *Answer, err error) {
	failed := w.fail([]*op{o}, err)
	w.stopWith(failed)
	w.settle(o, outcome{is: Unknown, answer: a, err: failed})
}

// respell removes a value that the group lists in another spelling than the
// directory's own of the entry's name: a server may find it under every
// spelling and delete it under one.
func (w *writer) respell(o *op, a *Answer, err error) {
	c, readErr := w.s.read(o.action.String(), w.g)
	if readErr != nil {
		w.unverified(o, a, readErr)
		return
	}
	i, ok := c.index()[o.name.key]
	if !ok || c.values[i] == o.name.raw {
		w.reject(o, a, err)
		return
	}
	o.name.raw = c.values[i]
	w.apply([]*op{o})
}

// reject settles a value that the directory does not take.
func (w *writer) reject(o *op, a *Answer, err error) {
	failed := w.fail([]*op{o}, err)
	switch {
	case w.g.server.Vendor.adLike() && a.Code == ldap.LDAPResultNoSuchObject:
		failed.Class = ClassMemberNotFound
	case a.Code == ldap.LDAPResultConstraintViolation && strings.Contains(a.Diagnostic, "non-existing object"):
		failed.Class = ClassMemberNotFound // OpenLDAP's memberof overlay
	case a.Code == ldap.LDAPResultUnwillingToPerform || a.Code == ldap.LDAPResultEntryAlreadyExists:
		failed.Class = ClassConstraint
	}
	w.settle(o, outcome{is: Failed, changed: ChangedNo, answer: a, err: failed})
}
