package ldapgroup

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
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

// adLike reports whether the server answers as Active Directory does.
func (v Vendor) adLike() bool { return v == Samba || v == ActiveDirectory }

// ServerInfo is what the rootDSE and the schema say.
type ServerInfo struct {
	Vendor         Vendor   `json:"vendor"`
	VendorVersion  string   `json:"vendor_version,omitempty"`
	NamingContexts []string `json:"naming_contexts,omitempty"`
	Controls       []string `json:"controls,omitempty"` // OIDs
	// Kinds are the kinds of group that the schema has; nil when the schema
	// was not read, which only Check does.
	Kinds []Kind `json:"kinds,omitempty"`

	subschema string // where the schema is; may be empty
}

// has reports whether the server lists a control. Others are never sent:
// Samba ignores some silently and hangs on some.
func (s *ServerInfo) has(oid string) bool { return slices.Contains(s.Controls, oid) }

// These are what Active Directory and Samba, and AD LDS, list among their
// capabilities (MS-ADTS 3.1.1.3.4.3).
const (
	adCapability    = "1.2.840.113556.1.4.800"
	adLDSCapability = "1.2.840.113556.1.4.1851"
)

// readRoot asks the rootDSE who the server is.
func (e *Engine) readRoot(ctx context.Context, c *conn) (*ServerInfo, error) {
	var result *ldap.SearchResult
	err := c.do(ctx, func(l *ldap.Conn) (err error) {
		result, err = l.Search(baseSearch("", "(objectClass=*)", "objectClass", "vendorName", "vendorVersion",
			"namingContexts", "supportedControl", "supportedCapabilities", "subschemaSubentry"))
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(result.Entries) == 0 {
		// Access rules may hide it. The rules that all servers share will do.
		return &ServerInfo{}, nil
	}
	return serverOf(result.Entries[0]), nil
}

func serverOf(root *ldap.Entry) *ServerInfo {
	vendor := root.GetEqualFoldAttributeValue("vendorName")
	s := &ServerInfo{
		VendorVersion:  cleanText(root.GetEqualFoldAttributeValue("vendorVersion")),
		NamingContexts: root.GetEqualFoldAttributeValues("namingContexts"),
		Controls:       root.GetEqualFoldAttributeValues("supportedControl"),
		subschema:      root.GetEqualFoldAttributeValue("subschemaSubentry"),
	}
	fold := func(want string) func(string) bool {
		return func(have string) bool { return strings.EqualFold(have, want) }
	}
	switch {
	case strings.HasPrefix(vendor, "Samba"):
		s.Vendor = Samba
	case slices.ContainsFunc(root.GetEqualFoldAttributeValues("supportedCapabilities"), func(c string) bool {
		return c == adCapability || c == adLDSCapability
	}):
		s.Vendor = ActiveDirectory
	case strings.HasPrefix(vendor, "389 ") || strings.HasPrefix(s.VendorVersion, "389-"):
		s.Vendor = DS389
	case slices.ContainsFunc(root.GetEqualFoldAttributeValues("objectClass"), fold("OpenLDAProotDSE")):
		s.Vendor = OpenLDAP
	}
	return s
}

// readSchema finds the kinds of group that the server's schema has. That of
// Active Directory is known, and large.
func (s *session) readSchema(server *ServerInfo) ([]Kind, error) {
	if server.Vendor.adLike() {
		return []Kind{ADGroup, GroupOfNames, GroupOfUniqueNames}, nil
	}
	dn := server.subschema
	if dn == "" {
		dn = "cn=Subschema"
	}
	r, err := s.search("read schema", baseSearch(dn, "(objectClass=subschema)", "attributeTypes", "objectClasses"))
	if err != nil {
		return nil, err
	}
	if len(r.Entries) == 0 {
		return nil, &Error{Op: "read schema", Directory: s.e.cfg.Name, Class: ClassConfig,
			Err: fmt.Errorf("%q cannot be read", dn)}
	}
	entry := r.Entries[0]
	attributes := parseSchema(entry.GetEqualFoldAttributeValues("attributeTypes"))
	classes := parseSchema(entry.GetEqualFoldAttributeValues("objectClasses"))
	var kinds []Kind
	for _, k := range []Kind{GroupOfNames, GroupOfUniqueNames, PosixGroup} {
		class := classes[strings.ToLower(k.String())]
		if class != nil && attributes[strings.ToLower(k.Attribute())] != nil && class.allows(k.Attribute()) {
			kinds = append(kinds, k)
		}
	}
	return kinds, nil
}

// schemaItem is what is needed of an RFC 4512 description.
type schemaItem struct {
	must, may []string
}

func (i *schemaItem) allows(attribute string) bool {
	for _, list := range [][]string{i.must, i.may} {
		for _, a := range list {
			if strings.EqualFold(a, attribute) {
				return true
			}
		}
	}
	return false
}

// parseSchema reads descriptions like
//
//	( 2.5.6.9 NAME 'groupOfNames' SUP top STRUCTURAL MUST ( member $ cn ) MAY … )
//
// by lower-cased name. What it does not understand it leaves out.
func parseSchema(descriptions []string) map[string]*schemaItem {
	out := make(map[string]*schemaItem, len(descriptions))
	for _, d := range descriptions {
		item := &schemaItem{}
		words := schemaWords(d)
		for i := 0; i < len(words); i++ {
			var list []string
			switch words[i] {
			case "NAME", "MUST", "MAY":
				list, i = schemaList(words, i)
			}
			switch {
			case len(list) == 0:
			case list[0] == "NAME":
				for _, n := range list[1:] {
					out[strings.ToLower(n)] = item
				}
			case list[0] == "MUST":
				item.must = list[1:]
			case list[0] == "MAY":
				item.may = list[1:]
			}
		}
	}
	return out
}

// schemaList returns the keyword at i and its values, one or a list in
// parentheses, and the index of the last word used.
func schemaList(words []string, i int) ([]string, int) {
	list := []string{words[i]}
	if i+1 < len(words) && words[i+1] != "(" {
		return append(list, words[i+1]), i + 1
	}
	for i += 2; i < len(words) && words[i] != ")"; i++ {
		if words[i] != "$" {
			list = append(list, words[i])
		}
	}
	return list, i
}

// schemaWords splits a description; quoted strings lose their quotes.
func schemaWords(d string) []string {
	var words []string
	for d = strings.TrimLeft(d, " "); d != ""; d = strings.TrimLeft(d, " ") {
		var w string
		switch d[0] {
		case '(', ')', '$':
			w, d = d[:1], d[1:]
		case '\'':
			w, d, _ = strings.Cut(d[1:], "'")
		default:
			n := strings.IndexAny(d, " ()$'")
			if n < 0 {
				n = len(d)
			}
			w, d = d[:n], d[n:]
		}
		words = append(words, w)
	}
	return words
}
