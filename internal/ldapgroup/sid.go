package ldapgroup

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
)

// altName reports whether s is a member in one of Active Directory's other
// forms, <SID=…> or <GUID=…>, with nothing else inside than such a thing has.
func altName(s string) bool {
	inner, ok := strings.CutPrefix(s, "<")
	if !ok {
		return false
	}
	if inner, ok = strings.CutSuffix(inner, ">"); !ok {
		return false
	}
	tag, value, _ := strings.Cut(inner, "=")
	switch {
	case strings.EqualFold(tag, "SID"):
		return sidText(value) || sidHex(value)
	case strings.EqualFold(tag, "GUID"):
		b, err := hex.DecodeString(strings.ReplaceAll(value, "-", ""))
		return err == nil && len(b) == 16
	}
	return false
}

func sidText(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) < 4 || len(parts) > 18 || !strings.EqualFold(parts[0], "S") || parts[1] != "1" {
		return false
	}
	for _, p := range parts[2:] {
		if _, err := strconv.ParseUint(p, 10, 48); err != nil {
			return false
		}
	}
	return true
}

func sidHex(s string) bool {
	b, err := hex.DecodeString(s)
	if err != nil {
		return false
	}
	_, ok := parseSID(b)
	return ok
}

// sid is a security identifier: the domain's part as it is in the binary
// form, and the relative identifier at its end.
type sid struct {
	domain string
	rid    uint32
}

// parseSID reads the binary form.
func parseSID(b []byte) (sid, bool) {
	if len(b) < 12 || b[0] != 1 || len(b) != 8+4*int(b[1]) {
		return sid{}, false
	}
	return sid{domain: string(b[2 : len(b)-4]), rid: binary.LittleEndian.Uint32(b[len(b)-4:])}, true
}

// builtinDomain is S-1-5-32.
const builtinDomain = "\x00\x00\x00\x00\x00\x05\x20\x00\x00\x00"

// protected reports whether the SID is one of the groups that Active
// Directory makes itself and gives powers over the domain.
func (s sid) protected() bool {
	if s.domain == builtinDomain {
		return true
	}
	// Domain SIDs have RIDs of 1000 and above for everything that is made
	// later. Below are Domain Admins (512), Domain Users, Guests and Computers
	// (513 to 515), Domain Controllers (516), Cert Publishers, Schema and
	// Enterprise Admins, policy owners (517 to 520), the read-only controllers'
	// (498, 521, 571, 572), Protected Users (525), the key admins (526, 527).
	return s.rid < 1000
}
