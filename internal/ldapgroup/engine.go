package ldapgroup

import (
	"context"
	"errors"
)

// Vendor is the kind of server, as its rootDSE tells it.
type Vendor uint8

// The vendors. Generic is treated by the rules that all servers share.
const (
	Generic Vendor = iota
	OpenLDAP
	DS389
	Samba
	ActiveDirectory
)

// ServerInfo is what the rootDSE and the schema say.
type ServerInfo struct {
	Vendor         Vendor
	VendorVersion  string
	NamingContexts []string
	Controls       []string // OIDs
	// Kinds are the kinds of group that the schema has.
	Kinds []Kind
}

// Report is the outcome of Check: one finding for each thing that was looked
// at, in the order looked at.
type Report struct {
	Server   ServerInfo
	Findings []Finding
}

// OK reports whether every finding is.
func (r *Report) OK() bool { return false }

// Finding is one line of a Report.
type Finding struct {
	// What was looked at: "dial", "bind", "rootdse", "schema", "group",
	// "member_base".
	What   string `json:"what"`
	Target string `json:"target,omitempty"` // the DN or attribute
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Engine serves one directory. It is safe for concurrent use. Close it.
type Engine struct{}

// New checks c and returns an Engine. It does not dial: the directory may be
// down when the configuration is loaded. The first operation, or Check,
// connects and looks at the server and its schema.
func New(c Config) (*Engine, error) { return nil, errors.ErrUnsupported }

// Close ends all operations, closes the connections and waits for both. It may
// be called more than once; operations begun afterwards fail with
// [ClassUnavailable].
func (e *Engine) Close() {}

// Check connects, binds and looks at rootDSE, schema, the configured groups
// and the member bases. The error is that of the first finding without which
// nothing works (dial, bind, rootDSE); the report then ends with it. It is
// never nil.
func (e *Engine) Check(ctx context.Context) (*Report, error) {
	return &Report{}, errors.ErrUnsupported
}

// Ping says whether the directory can be used now: it takes a connection and
// reads the rootDSE.
func (e *Engine) Ping(ctx context.Context) error { return errors.ErrUnsupported }

// Stats are those of the pool, at the moment.
type Stats struct {
	Open, Idle int // connections
	Queued     int // calls waiting for their group's turn
}

// Stats returns the numbers of the moment.
func (e *Engine) Stats() Stats { return Stats{} }

// Read returns a page of the group's members.
func (e *Engine) Read(ctx context.Context, group string, o ReadOptions) (*Page, error) {
	return nil, errors.ErrUnsupported
}

// IsMember reports whether member is in the group.
func (e *Engine) IsMember(ctx context.Context, group, member string) (*Membership, error) {
	return nil, errors.ErrUnsupported
}

// Change makes adds members of the group and removes not.
//
// The error, an [*Error], is non-nil only when nothing was written: the
// request or the group is at fault or out of reach. Otherwise each member has
// its own result, also those that failed, and the Result says it all. The
// same member in both lists is [ClassInvalid]; a malformed name is that
// member's failure alone.
//
// Calls for one group take turns, and those that wait are sent as one request
// where they do not contradict each other. When ctx ends, Change returns: with
// its error if nothing was sent, else with the members in flight Unknown.
func (e *Engine) Change(ctx context.Context, group string, adds, removes []string, o ChangeOptions) (*Result, error) {
	return nil, errors.ErrUnsupported
}

// Replace makes members the group's members and nobody else: it reads, adds
// what is missing and then removes what is too much. It stops before removing
// when the directory refuses as present what the reading said is missing, or
// when an add failed.
func (e *Engine) Replace(ctx context.Context, group string, members []string, o ReplaceOptions) (*Result, error) {
	return nil, errors.ErrUnsupported
}
