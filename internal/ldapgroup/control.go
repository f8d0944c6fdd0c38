package ldapgroup

import (
	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// assertionOID is the Assertion control (RFC 4528).
const assertionOID = "1.3.6.1.1.12"

// assertion makes a modify conditional on the entry's change number. It is
// sent only to servers that list it, and with a criticality that they all read
// as true: go-ldap's own encoding, 0x01, is ignored by some.
type assertion struct{ csn string }

func (a assertion) GetControlType() string { return assertionOID }

func (a assertion) String() string { return "assertion (entryCSN=" + a.csn + ")" }

// Encode returns the control.
func (a assertion) Encode() *ber.Packet {
	p := ber.NewSequence("Control")
	p.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, assertionOID, "type"))
	p.AppendChild(ber.NewLDAPBoolean(ber.ClassUniversal, ber.TypePrimitive, ber.TagBoolean, true, "criticality"))
	filter, err := ldap.CompileFilter("(entryCSN=" + ldap.EscapeFilter(a.csn) + ")")
	if err != nil {
		// An escaped value always compiles.
		panic("ldapgroup: " + err.Error())
	}
	p.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, string(filter.Bytes()), "filter"))
	return p
}
