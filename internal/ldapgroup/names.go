package ldapgroup

// ValidName reports whether s can name a group, or a member that is a DN:
// not empty, UTF-8, at most 2 kB, free of control characters, a DN as RFC
// 4514 writes it with commas, and none of its values empty or in #hex form.
// The error is an [*Error] of [ClassInvalid].
func ValidName(s string) error { return nil }

// SameName reports whether two DNs are one name: letters' case, spaces around
// separators, runs of spaces, the order within a multi-valued RDN and the way
// of escaping do not count. Malformed names are not the same as anything.
func SameName(a, b string) bool { return false }
