package ldapgroup

import (
	"context"
	"crypto/tls"
	"net"
	"time"
)

// Limits of one modify request. Active Directory takes 5,000 values, 389
// Directory Server drops connections above 2 MB by default.
const (
	MaxChunkValues = 1000
	MaxChunkBytes  = 1 << 20
)

// Security says how a connection is protected before it carries credentials.
type Security uint8

// The zero value is not valid: a configuration must choose.
const (
	LDAPS     Security = iota + 1 // TLS from the first byte
	StartTLS                      // the extended operation; without it no bind
	Plaintext                     // nothing; needs Config.AllowPlaintextBind to bind
)

// Verify says when a no-op answer is confirmed by a search.
type Verify uint8

const (
	// VerifyAmbiguous is the default: it confirms the answers that have a second
	// meaning, 68 and 53 of Active Directory and Samba, 16 of 389 Directory
	// Server, and whatever follows an answer that was lost.
	VerifyAmbiguous Verify = iota
	// VerifyAlways confirms every no-op.
	VerifyAlways
	// VerifyNever trusts the codes. Lost answers are still looked up.
	VerifyNever
)

// Lookup says what happens to a member's name before it is sent.
type Lookup uint8

const (
	// LookupAlways is the default: it asks the directory for the entry and sends
	// its stored name. Adding one that does not exist fails with
	// [ClassMemberNotFound], also on servers that would take it; removing one
	// sends the name as given.
	LookupAlways Lookup = iota
	// LookupNever sends names as given. Two spellings of one entry that only
	// the server knows to be one then meet in a request, whether a member must
	// exist is the server's choice, and MemberBases are held against the name
	// as given only.
	LookupNever
)

// Credentials are those of a simple bind.
type Credentials struct {
	DN       string // a DN; for Active Directory also user@domain
	Password string
}

// GroupRule allows groups and says how they are treated. Of several that fit a
// group the one with the longest DN counts, an exact one before a subtree.
type GroupRule struct {
	// DN is a group, or with Subtree what it is below.
	DN      string
	Subtree bool
	// AllowReplace permits [Engine.Replace].
	AllowReplace bool
	// MaxRemovals is the share of its members that one Replace may remove
	// without Force, between 0 and 1. 0 means the default of 0.2; 1 means all
	// but the last.
	MaxRemovals float64
	// Placeholder is a member kept in place of nobody: it is added when the
	// last member of a group that must have one is removed, is left out of
	// what [Engine.Read] returns, and cannot be added or removed by a caller.
	// Empty means that such a removal fails with [ClassLastMember].
	Placeholder string
}

// Config is everything an Engine needs. New copies it; funcs must be safe for
// concurrent use.
type Config struct {
	// Name is what errors and events call the directory: the connector's name
	// or the URL's host. Required.
	Name string
	// Dial connects to the directory, below TLS. Required. It should honour
	// ctx: a connection that arrives late is closed, but Close waits for it.
	// Closing the connection must unblock reads and writes. An *Error that it returns is passed on with its class; classes
	// other than ClassUnavailable and ClassTimeout are not tried again.
	Dial func(ctx context.Context) (net.Conn, error)
	// Security is required.
	Security Security
	// TLS is for LDAPS and StartTLS. ServerName is required unless
	// InsecureSkipVerify is set; the minimum version is raised to TLS 1.2.
	TLS *tls.Config
	// AllowPlaintextBind lets credentials go over a Plaintext connection. Set
	// it for loopback, for a Unix socket, or where what Dial returns is
	// protected by other means.
	AllowPlaintextBind bool
	// Credentials returns what to bind with. It is called for every new
	// connection, and again after the directory refused them (49), so that a
	// rotated password is taken up. nil binds anonymously.
	Credentials func(ctx context.Context) (Credentials, error)

	// Groups are the groups that may be read and changed. Required.
	Groups []GroupRule
	// MemberBases are the subtrees whose entries may be added and removed.
	// Required unless AnyMember.
	MemberBases []string
	// AnyMember allows every member.
	AnyMember bool
	// AllowSID takes members of Active Directory in the forms <SID=…> and
	// <GUID=…>. Beware: adding a SID of another domain creates an entry for
	// it, so only those found by the lookup are sent.
	AllowSID bool
	// Lookup and Verify: see there.
	Lookup Lookup
	Verify Verify

	// MinConns and MaxConns bound the pool: connections kept open while idle
	// and connections altogether. 0 means 2 and 8.
	MinConns, MaxConns int
	// IdleTime closes connections idle for that long and must be below what
	// the server allows (Active Directory: 900 s). 0 means 4 minutes. Idle
	// connections above MinConns go after a quarter of it.
	IdleTime time.Duration
	// HealthAfter is how long a connection may have been idle before it is
	// tried (a search of the rootDSE) prior to use. 0 means 15 s.
	HealthAfter time.Duration
	// DialTimeout bounds dialing, TLS and bind together. 0 means 10 s.
	DialTimeout time.Duration
	// OpTimeout bounds one LDAP operation. 0 means 15 s.
	OpTimeout time.Duration
	// ChangeTimeout bounds a whole call, where its context allows more. 0
	// means 60 s.
	ChangeTimeout time.Duration
	// MaxResponseBytes bounds one LDAP message of the server, and so the size
	// of a group that can be read. 0 means 32 MiB.
	MaxResponseBytes int
	// MaxMembers bounds the members of one call. 0 means 50,000.
	MaxMembers int
	// MaxQueue bounds the calls waiting for one group; more get
	// [ClassUnavailable]. 0 means 1024.
	MaxQueue int
	// Attempts is how often an operation is tried on transport errors, busy
	// and unavailable, with pauses of 0.1 s to 2 s. 0 means 5.
	Attempts int

	// Observer is told what happens.
	Observer Observer
}
