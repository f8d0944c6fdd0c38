package ldapgroup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// codeNames are the names of RFC 4511 and RFC 4528.
var codeNames = map[uint16]string{
	0: "success", 1: "operationsError", 2: "protocolError", 3: "timeLimitExceeded", 4: "sizeLimitExceeded",
	5: "compareFalse", 6: "compareTrue", 7: "authMethodNotSupported", 8: "strongerAuthRequired", 10: "referral",
	11: "adminLimitExceeded", 12: "unavailableCriticalExtension", 13: "confidentialityRequired",
	14: "saslBindInProgress", 16: "noSuchAttribute", 17: "undefinedAttributeType", 18: "inappropriateMatching",
	19: "constraintViolation", 20: "attributeOrValueExists", 21: "invalidAttributeSyntax", 32: "noSuchObject",
	33: "aliasProblem", 34: "invalidDNSyntax", 36: "aliasDereferencingProblem", 48: "inappropriateAuthentication",
	49: "invalidCredentials", 50: "insufficientAccessRights", 51: "busy", 52: "unavailable",
	53: "unwillingToPerform", 54: "loopDetect", 64: "namingViolation", 65: "objectClassViolation",
	66: "notAllowedOnNonLeaf", 67: "notAllowedOnRDN", 68: "entryAlreadyExists", 69: "objectClassModsProhibited",
	71: "affectsMultipleDSAs", 80: "other", 122: "assertionFailed",
}

// CodeName returns a result code's name as RFC 4511 spells it, or the number.
func CodeName(code uint16) string {
	if n, ok := codeNames[code]; ok {
		return n
	}
	return strconv.Itoa(int(code))
}

// maxDiagnostic bounds the text kept of an answer.
const maxDiagnostic = 1024

// clientCode is the first of the codes that go-ldap makes up itself.
const clientCode = 200

// isAnswer reports whether err is the directory's answer rather than the lack
// of one. What go-ldap cannot make sense of is a lack.
func isAnswer(err error) bool {
	var le *ldap.Error
	return errors.As(err, &le) && le.ResultCode < clientCode
}

// answerOf returns the directory's answer in err, nil when there is none.
func answerOf(err error) *Answer {
	var le *ldap.Error
	if !errors.As(err, &le) || le.ResultCode >= clientCode {
		return nil
	}
	a := &Answer{Code: le.ResultCode, Name: CodeName(le.ResultCode), MatchedDN: cleanText(le.MatchedDN)}
	if le.Err != nil {
		a.Diagnostic = cleanText(le.Err.Error())
	}
	return a
}

// cleanText makes a directory's text fit for logs: Active Directory ends it
// with a line feed and a NUL.
func cleanText(s string) string {
	if len(s) > maxDiagnostic {
		s = s[:maxDiagnostic]
	}
	s = strings.ToValidUTF8(s, "?")
	return strings.TrimRight(s, "\x00\r\n ")
}

// windowsCode is the error number that Active Directory's diagnostics begin
// with, in eight hexadecimal digits; 0 when there is none.
func (a *Answer) windowsCode() uint32 {
	if a == nil || len(a.Diagnostic) < 9 || a.Diagnostic[8] != ':' {
		return 0
	}
	n, err := strconv.ParseUint(a.Diagnostic[:8], 16, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// Windows error numbers that decide what an answer means.
const (
	winNoSuchMember = 0x525  // the member's entry does not exist
	winNotInGroup   = 0x561  // delete of what is no member
	winInGroup      = 0x562  // add of what is a member
	winPrimaryGroup = 0x2071 // add to the member's primary group
	winNoSuchBase   = 0x2030 // Samba: the group does not exist
	winNoSuchObject = 0x208d // Windows: the group does not exist
)

// codeClass is the class of an answer for which no operation knows better.
func codeClass(code uint16) Class {
	switch code {
	case ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultInvalidCredentials,
		ldap.LDAPResultOperationsError, ldap.LDAPResultInappropriateAuthentication,
		ldap.LDAPResultConfidentialityRequired:
		return ClassAccount
	case ldap.LDAPResultReferral:
		return ClassReferral
	case ldap.LDAPResultUndefinedAttributeType:
		return ClassConfig
	case ldap.LDAPResultConstraintViolation, ldap.LDAPResultObjectClassViolation, ldap.LDAPResultNamingViolation:
		return ClassConstraint
	case ldap.LDAPResultInvalidAttributeSyntax, ldap.LDAPResultInvalidDNSyntax:
		return ClassInvalid
	case ldap.LDAPResultInsufficientAccessRights:
		return ClassDenied
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable:
		return ClassUnavailable
	case ldap.LDAPResultAssertionFailed:
		return ClassPrecondition
	case ldap.LDAPResultTimeLimitExceeded:
		return ClassTimeout
	}
	return ClassDirectory
}

// toError makes err an *Error. It keeps one that already is.
func (e *Engine) toError(op string, err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	out := &Error{Op: op, Directory: e.cfg.Name, Err: err, Answer: answerOf(err)}
	switch {
	case out.Answer != nil:
		out.Class = codeClass(out.Answer.Code)
		out.Referral = referralOf(err)
	case errors.Is(err, errTooLarge), errors.Is(err, errMalformed):
		out.Class = ClassDirectory
	case errors.Is(err, context.Canceled):
		out.Class = ClassCanceled
	case errors.Is(err, context.DeadlineExceeded):
		out.Class = ClassTimeout
	case isCertificateError(err):
		out.Class = ClassDirectory
	default:
		out.Class = ClassUnavailable
	}
	if out.Class == ClassUnavailable {
		out.RetryAfter = retryAfterSeconds
	}
	return out
}

// retryAfterSeconds is what clients are told when the directory is away: about
// the time that an agent or a server needs to come back.
const retryAfterSeconds = 2

// referralOf returns the first URL of a referral, for the log.
func referralOf(err error) string {
	var le *ldap.Error
	if !errors.As(err, &le) || le.ResultCode != ldap.LDAPResultReferral || le.Packet == nil {
		return ""
	}
	if len(le.Packet.Children) < 2 {
		return ""
	}
	for _, child := range le.Packet.Children[1].Children {
		if child.Tag == 3 && len(child.Children) > 0 {
			return cleanText(child.Children[0].Data.String())
		}
	}
	return ""
}

// isCertificateError reports whether TLS failed for a reason that another try
// does not mend.
func isCertificateError(err error) bool {
	var (
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		alert   tls.AlertError
	)
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &host) ||
		errors.As(err, &invalid) || errors.As(err, &record) || errors.As(err, &alert)
}
