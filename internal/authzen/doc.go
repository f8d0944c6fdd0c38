// Package authzen reads and writes what goes between the hub and a policy
// decision point on the network: the OpenID Authorization API 1.0, and the form
// of the first NowConnect. It owns bytes only and makes no calls; the module
// nowconnect.pdp.authzen does.
//
// Invariants:
//
//   - An allow takes a JSON object whose member, spelled as specified, is the
//     boolean true. Everything else is a denial or an error.
//   - A permit under an obligation that is not known, or not readable, is a
//     denial. A limit that is read is above 0, as 0 would mean none.
//   - What a PDP says in words is cut and printable before anybody else sees it.
//   - No bytes make it panic; it is fuzzed.
package authzen

import (
	"strings"
	"unicode"
)

// maxText is how much of the PDP's words is kept.
const maxText = 200

// Clean makes somebody else's text fit for a log line. What cannot be printed is
// a space, and several are one.
func Clean(s string) string {
	var b strings.Builder
	gap := false
	for _, r := range s {
		switch {
		case b.Len() >= maxText:
			return b.String()
		case r == ' ' || !unicode.IsPrint(r):
			gap = b.Len() > 0
			continue
		case gap:
			b.WriteByte(' ')
			gap = false
		}
		b.WriteRune(r)
	}
	return b.String()
}
