package ldapgroup

import "fmt"

var (
	actionNames  = [...]string{Add: "add", Remove: "remove"}
	outcomeNames = [...]string{
		Skipped: "skipped", Added: "added", AlreadyMember: "already_member", Removed: "removed",
		NotMember: "not_member", Failed: "failed", Unknown: "unknown",
	}
	kindNames = [...]string{
		GroupOfNames: "groupOfNames", GroupOfUniqueNames: "groupOfUniqueNames", PosixGroup: "posixGroup", ADGroup: "group",
	}
	vendorNames = [...]string{
		Generic: "generic", OpenLDAP: "openldap", DS389: "389ds", Samba: "samba", ActiveDirectory: "active_directory",
	}
)

func nameOf[T ~uint8](names []string, v T) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", v)
}

// String returns "add" or "remove", the values of the metric label "action".
func (a Action) String() string { return nameOf(actionNames[:], a) }

// MarshalText is String.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String returns the word used in JSON, logs and metrics.
func (o Outcome) String() string { return nameOf(outcomeNames[:], o) }

// MarshalText is String.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// String returns the object class.
func (k Kind) String() string { return nameOf(kindNames[:], k) }

// MarshalText is String.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Attribute returns the attribute that lists the members.
func (k Kind) Attribute() string {
	switch k {
	case GroupOfUniqueNames:
		return "uniqueMember"
	case PosixGroup:
		return "memberUid"
	default:
		return "member"
	}
}

// String returns a word for logs.
func (v Vendor) String() string { return nameOf(vendorNames[:], v) }

// MarshalText is String.
func (v Vendor) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// String returns "true", "false" or "null".
func (c Changed) String() string {
	switch c {
	case ChangedYes:
		return "true"
	case ChangedNo:
		return "false"
	default:
		return "null"
	}
}

// MarshalJSON returns true, false or null.
func (c Changed) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }
