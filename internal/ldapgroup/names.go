package ldapgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
)

// maxNameBytes bounds a name that a caller gives.
const maxNameBytes = 2048

var (
	errNameEmpty   = errors.New("name is empty")
	errNameLong    = errors.New("name is longer than 2 kB")
	errNameUTF8    = errors.New("name is not UTF-8")
	errNameControl = errors.New("name has a control character")
	errNameSyntax  = errors.New("name is not a DN")
	errNameHex     = errors.New("name has a #hex value")
	errNameEscape  = errors.New("name separates with ; or leaves a special character unescaped")
	errNameRDN     = errors.New("name has an empty or malformed part")
)

// name is a parsed DN. Names are compared by key; the RDNs in it are
// separated by a character that no escaped value contains, so that a name is
// below another exactly when its key ends with the separator and the other's.
type name struct {
	raw string // trimmed of nothing: as given, or as the directory has it
	key string
}

const keySeparator = "\n"

// below reports whether n is base or an entry under it.
func (n name) below(base name) bool {
	return n.key == base.key || strings.HasSuffix(n.key, keySeparator+base.key)
}

// ValidName reports whether s can name a group, or a member that is a DN: not
// empty, UTF-8, at most 2 kB, free of control characters, a DN as RFC 4514
// writes it with commas, and none of its values empty or in #hex form. The
// error is an [*Error] of [ClassInvalid].
func ValidName(s string) error {
	if _, err := parseName(s); err != nil {
		return &Error{Op: "parse name", Class: ClassInvalid, Err: err}
	}
	return nil
}

// SameName reports whether two DNs are one name: letters' case, spaces around
// separators, runs of spaces, the order within a multi-valued RDN and the way
// of escaping do not count. Malformed names are not the same as anything.
func SameName(a, b string) bool {
	x, errX := parseName(a)
	y, errY := parseName(b)
	return errX == nil && errY == nil && x.key == y.key
}

// parseName takes a name from outside.
func parseName(s string) (name, error) {
	if err := checkText(s); err != nil {
		return name{}, err
	}
	if key, ok := plainKey(s); ok {
		return name{raw: s, key: key}, nil
	}
	if err := checkEscapes(s); err != nil {
		return name{}, err
	}
	dn, err := ldap.ParseDN(s)
	if err != nil {
		return name{}, fmt.Errorf("%w: %w", errNameSyntax, err)
	}
	for _, rdn := range dn.RDNs {
		for _, a := range rdn.Attributes {
			switch {
			case !attributeType(a.Type) || strings.Trim(a.Value, " ") == "":
				return name{}, errNameRDN
			case !utf8.ValidString(a.Value):
				return name{}, errNameUTF8
			case hasControl(a.Value):
				return name{}, errNameControl
			}
		}
	}
	if len(dn.RDNs) == 0 {
		return name{}, errNameEmpty
	}
	return name{raw: s, key: parsedKey(dn)}, nil
}

// storedName takes a name from the directory. It always has a key: what does
// not parse equals only itself.
func storedName(s string) name {
	if key, ok := plainKey(s); ok {
		return name{raw: s, key: key}
	}
	if dn, err := ldap.ParseDN(s); err == nil && len(dn.RDNs) > 0 {
		return name{raw: s, key: parsedKey(dn)}
	}
	return name{raw: s, key: keySeparator + s}
}

// exactName is a value that is not a DN, a user name in memberUid: every byte
// counts.
func exactName(s string) name { return name{raw: s, key: s} }

func checkText(s string) error {
	switch {
	case s == "":
		return errNameEmpty
	case len(s) > maxNameBytes:
		return errNameLong
	case !utf8.ValidString(s):
		return errNameUTF8
	case hasControl(s):
		return errNameControl
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, unicode.IsControl)
}

// checkEscapes refuses what ParseDN takes beyond RFC 4514's writing form:
// semicolons as separators, quotes, and values in hexadecimal BER.
func checkEscapes(s string) error {
	value := false // in a value
	begin := false // and at its start, spaces aside
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
			begin = false
		case c == ';' || c == '"' || c == '<' || c == '>':
			return errNameEscape
		case c == '=':
			begin = !value // a second one is a part of the value
			value = true
		case c == ',' || c == '+':
			value, begin = false, false
		case c == '#' && begin:
			return errNameHex
		case c != ' ':
			begin = false
		}
	}
	return nil
}

// attributeType reports whether s is a short name or a numeric OID.
func attributeType(s string) bool {
	if s == "" {
		return false
	}
	numeric := s[0] >= '0' && s[0] <= '9'
	for i := range len(s) {
		c := s[i]
		digit := c >= '0' && c <= '9'
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !digit && (numeric && c != '.' || !numeric && !letter && (c != '-' || i == 0)) {
			return false
		}
	}
	return true
}

// plainKey is the key of a name that needs no unescaping, in one pass and one
// allocation: nearly all are of that kind. It must agree with parsedKey.
func plainKey(s string) (key string, ok bool) {
	out := make([]byte, 0, len(s))
	for rest, more := s, true; more; {
		var rdn string
		rdn, rest, more = strings.Cut(rest, ",")
		typ, value, found := strings.Cut(rdn, "=")
		typ = strings.Trim(typ, " ")
		value = strings.Trim(value, " ")
		if !found || !attributeType(typ) || value == "" || value[0] == '#' {
			return "", false
		}
		if len(out) > 0 {
			out = append(out, keySeparator...)
		}
		for i := range len(typ) {
			out = append(out, lower(typ[i]))
		}
		out = append(out, '=')
		for i := range len(value) {
			switch c := value[i]; {
			case c < ' ' || c >= 0x7f, c == '\\', c == '+', c == '"', c == ';', c == '<', c == '>':
				return "", false
			case c == ' ' && value[i-1] == ' ':
			default:
				out = append(out, lower(c))
			}
		}
	}
	return string(out), true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// parsedKey is the key of any name.
func parsedKey(dn *ldap.DN) string {
	var b strings.Builder
	for i, rdn := range dn.RDNs {
		if i > 0 {
			b.WriteString(keySeparator)
		}
		parts := make([]string, len(rdn.Attributes))
		for j, a := range rdn.Attributes {
			parts[j] = foldValue(a.Type) + "=" + foldValue(a.Value)
		}
		slices.Sort(parts)
		b.WriteString(strings.Join(parts, "\t"))
	}
	return b.String()
}

// foldValue folds a value's case and spaces and escapes what separates keys.
func foldValue(v string) string {
	var b strings.Builder
	b.Grow(len(v))
	space := false
	for i, r := range strings.Trim(v, " ") {
		switch {
		case r == ' ' && space:
			continue
		case r == utf8.RuneError:
			// Broken bytes stay apart from each other by their place.
			fmt.Fprintf(&b, `\?%d`, i)
		case r < ' ' || r == '\\':
			fmt.Fprintf(&b, `\%02x`, r)
		default:
			b.WriteRune(foldRune(r))
		}
		space = r == ' '
	}
	return b.String()
}

// foldRune maps all runes that differ in case only to one of them.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		return rune(lower(byte(r)))
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	if least < utf8.RuneSelf { // the Kelvin sign is a k
		return rune(lower(byte(least)))
	}
	return least
}
