package ldapadmin

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

var (
	errNotInForce = errors.New("no configuration is in force")
	errNoDecider  = errors.New("nobody decides about this directory")
)

// statusCanceled is for callers that have gone; nobody reads it.
const statusCanceled = 499

// statuses are those of the engine's classes.
var statuses = map[ldapgroup.Class]int{
	ldapgroup.ClassInvalid:        http.StatusBadRequest,
	ldapgroup.ClassForbidden:      http.StatusForbidden,
	ldapgroup.ClassProtected:      http.StatusForbidden,
	ldapgroup.ClassDenied:         http.StatusForbidden,
	ldapgroup.ClassGroupNotFound:  http.StatusNotFound,
	ldapgroup.ClassNotAGroup:      http.StatusConflict,
	ldapgroup.ClassLastMember:     http.StatusConflict,
	ldapgroup.ClassPrimaryGroup:   http.StatusConflict,
	ldapgroup.ClassPrecondition:   http.StatusPreconditionFailed,
	ldapgroup.ClassTooManyRemoved: http.StatusConflict,
	ldapgroup.ClassTooLarge:       http.StatusRequestEntityTooLarge,
	ldapgroup.ClassMemberNotFound: http.StatusUnprocessableEntity,
	ldapgroup.ClassConstraint:     http.StatusUnprocessableEntity,
	ldapgroup.ClassConfig:         http.StatusInternalServerError,
	ldapgroup.ClassAccount:        http.StatusBadGateway,
	ldapgroup.ClassReferral:       http.StatusBadGateway,
	ldapgroup.ClassDirectory:      http.StatusBadGateway,
	ldapgroup.ClassUnavailable:    http.StatusServiceUnavailable,
	ldapgroup.ClassTimeout:        http.StatusGatewayTimeout,
	ldapgroup.ClassCanceled:       statusCanceled,
}

// details are what a caller is told. The engine's own words go to the log: they
// name servers and entries that the caller may not know of.
var details = map[ldapgroup.Class]string{
	ldapgroup.ClassInvalid:        "a name is not valid, a member is in both lists, or the cursor is not one of ours",
	ldapgroup.ClassForbidden:      "the configuration does not allow this group, this member or this operation",
	ldapgroup.ClassProtected:      "a built-in group of Active Directory that the configuration does not name",
	ldapgroup.ClassDenied:         "the directory does not let our account do this",
	ldapgroup.ClassGroupNotFound:  "there is no such group",
	ldapgroup.ClassNotAGroup:      "the entry is no group whose members can be changed",
	ldapgroup.ClassLastMember:     "the group must keep a member",
	ldapgroup.ClassPrimaryGroup:   "the group is the member's primary group, which is changed at the member",
	ldapgroup.ClassPrecondition:   "the group has changed since the ETag in If-Match was made",
	ldapgroup.ClassTooManyRemoved: "more members would be removed than the configuration allows at once",
	ldapgroup.ClassTooLarge:       "more members than the configuration allows at once",
	ldapgroup.ClassMemberNotFound: "there is no entry of that name",
	ldapgroup.ClassConstraint:     "the directory's rules do not allow it",
	ldapgroup.ClassConfig:         "the directory's schema lacks what the group needs",
	ldapgroup.ClassAccount:        "the directory does not accept our account",
	ldapgroup.ClassReferral:       "the directory refers to another one",
	ldapgroup.ClassDirectory:      "the directory refused, or its answer made no sense",
	ldapgroup.ClassUnavailable:    "the directory cannot be reached now",
	ldapgroup.ClassTimeout:        "no answer in time",
	ldapgroup.ClassCanceled:       "the request was cancelled",
}

// aboutNames are the classes that say something about a name; the detail then
// says which field of the request had it.
var aboutNames = map[ldapgroup.Class]bool{
	ldapgroup.ClassInvalid: true, ldapgroup.ClassForbidden: true, ldapgroup.ClassMemberNotFound: true,
}

// engineProblem makes the problem of an error of the engine, which may have been
// handed one of ours.
func engineProblem(err error) *problem {
	var ours *problem
	if errors.As(err, &ours) {
		return ours
	}
	var e *ldapgroup.Error
	if !errors.As(err, &e) || statuses[e.Class] == 0 {
		return newProblem(http.StatusInternalServerError, codeInternal, "internal error").because(err)
	}
	p := newProblem(statuses[e.Class], string(e.Class), "%s", details[e.Class]).because(err)
	if p.Title == "" {
		p.Title = "Client Closed Request"
	}
	if e.Class == ldapgroup.ClassInvalid && e.Err != nil {
		p.Detail = e.Err.Error() // about the caller's own words
	}
	if e.Member != "" && aboutNames[e.Class] {
		p.Detail = "member: " + p.Detail
	}
	if a := e.Answer; a != nil {
		code := int(a.Code)
		p.LDAPCode, p.LDAPName, p.Diagnostic = &code, a.Name, a.Diagnostic
	}
	switch p.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		p = p.again()
		if e.RetryAfter > 0 {
			p = p.with("Retry-After", strconv.Itoa(e.RetryAfter))
		}
	}
	return p
}

// result answers with what a write did. When no member is in the wanted state
// and all for the same reason, that is the answer's status; else it is 200 or
// 207.
func (h *Handler) result(q *request, res *ldapgroup.Result) (*response, *problem) {
	q.group = res.Canonical
	a := groupapi.Answer{Group: res.Canonical, DryRun: res.DryRun, Results: make([]groupapi.Result, len(res.Members))}
	for i := range res.Members {
		a.Results[i] = apiResult(&res.Members[i], res.DryRun)
		q.note(&res.Members[i])
	}
	if p := sameFailure(res.Members); p != nil {
		p.Results = a.Results
		return nil, p
	}
	status := http.StatusOK
	if !res.Complete() {
		status = http.StatusMultiStatus
	}
	resp := answer(status, groupapi.TypeJSON, a)
	if res.ETag != "" {
		resp.header.Set("ETag", res.ETag)
	}
	return resp, nil
}

// sameFailure returns the problem that all members share, or nil.
func sameFailure(members []ldapgroup.MemberResult) *problem {
	var first *ldapgroup.MemberResult
	for i := range members {
		m := &members[i]
		if m.Outcome.Done() || m.Err == nil {
			return nil
		}
		if m.Outcome == ldapgroup.Skipped && len(members) > 1 {
			continue // the one before it tells why
		}
		if first == nil {
			first = m
		}
		if m.Outcome != first.Outcome || m.Err.Class != first.Err.Class {
			return nil
		}
	}
	if first == nil {
		return nil
	}
	p := engineProblem(first.Err)
	if first.Outcome == ldapgroup.Unknown {
		p.Status, p.Title, p.Code = http.StatusGatewayTimeout, http.StatusText(http.StatusGatewayTimeout), codeUnknown
		p.Detail = "the change was sent, and whether it was made cannot be found out now"
		p = p.again()
	}
	return p
}

var outcomes = map[ldapgroup.Outcome]groupapi.Outcome{
	ldapgroup.Skipped: groupapi.Skipped, ldapgroup.Added: groupapi.Added, ldapgroup.AlreadyMember: groupapi.AlreadyMember,
	ldapgroup.Removed: groupapi.Removed, ldapgroup.NotMember: groupapi.NotMember, ldapgroup.Failed: groupapi.Failed,
	ldapgroup.Unknown: groupapi.Unknown,
}

// apiResult is one member's result in the API's shape. The matched DN is left
// out: it can name entries above the group that the caller may not know of.
func apiResult(m *ldapgroup.MemberResult, dryRun bool) groupapi.Result {
	r := groupapi.Result{Member: m.Member, Canonical: m.Canonical, Outcome: outcomes[m.Outcome], Code: m.Note, Attempts: m.Attempts}
	switch {
	case dryRun:
		no := false
		r.Changed = &no
		switch m.Outcome {
		case ldapgroup.Added:
			r.Outcome = groupapi.WouldAdd
		case ldapgroup.Removed:
			r.Outcome = groupapi.WouldRemove
		}
	case m.Changed != ldapgroup.ChangedUnknown:
		yes := m.Changed == ldapgroup.ChangedYes
		r.Changed = &yes
	}
	if m.Err != nil {
		r.Code = string(m.Err.Class)
	}
	if m.Answer != nil {
		r.LDAP = &groupapi.LDAP{Code: int(m.Answer.Code), Name: m.Answer.Name, Diagnostic: m.Answer.Diagnostic}
	}
	return r
}
