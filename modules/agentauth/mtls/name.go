package mtls

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// The kinds of names that a certificate has.
const (
	kindURI   = "uri"
	kindDNS   = "dns"
	kindEmail = "email"
	kindCN    = "cn"
)

// name is a certificate's name with its kind: a common name that looks like a
// DNS name is not one.
type name struct{ kind, value string }

// parseName reads a configured name.
func parseName(s string) (name, error) {
	kind, value, _ := strings.Cut(s, ":")
	n := name{kind, value}
	switch {
	case kind != kindURI && kind != kindDNS && kind != kindEmail && kind != kindCN:
		return n, fmt.Errorf("%q does not begin with a kind, which is uri:, dns:, email: or cn: and then the name", s)
	case value == "":
		return n, fmt.Errorf("%q: nothing after the colon", s)
	case strings.Contains(value, "{"):
		return n, fmt.Errorf("%q: placeholders are not replaced here", s)
	}
	switch kind {
	case kindDNS:
		n.value = strings.ToLower(value)
	case kindURI:
		// What a certificate says is compared in this form.
		u, err := url.Parse(value)
		if err != nil || u.Scheme == "" {
			return n, fmt.Errorf("%q is not a URI", s)
		}
		if u.String() != value {
			return n, fmt.Errorf("%q: write %q", s, kindURI+":"+u.String())
		}
	}
	return n, nil
}

// namesOf lists what a certificate calls its owner.
func namesOf(c *x509.Certificate) []name {
	names := []name{{kindCN, c.Subject.CommonName}}
	for _, u := range c.URIs {
		names = append(names, name{kindURI, u.String()})
	}
	for _, s := range c.DNSNames {
		names = append(names, name{kindDNS, strings.ToLower(s)})
	}
	for _, s := range c.EmailAddresses {
		names = append(names, name{kindEmail, s})
	}
	return names
}

// template is a name with a hole where the agent's id is.
type template struct{ kind, before, after string }

func parseTemplate(s string) (template, error) {
	if strings.Count(s, "*") != 1 {
		return template{}, fmt.Errorf("%q has not exactly one *, for the agent's id", s)
	}
	// The form must hold with any id in the hole.
	if _, err := parseName(strings.Replace(s, "*", "id", 1)); err != nil {
		return template{}, fmt.Errorf("%q: %w", s, err)
	}
	n, err := parseName(s)
	if err != nil {
		return template{}, err
	}
	before, after, _ := strings.Cut(n.value, "*")
	return template{n.kind, before, after}, nil
}

// match returns the agent's id in n, which must be a proper one: a slash, a
// wildcard or a query never is.
func (t template) match(n name) (id string, ok bool) {
	if n.kind != t.kind || len(n.value) <= len(t.before)+len(t.after) ||
		!strings.HasPrefix(n.value, t.before) || !strings.HasSuffix(n.value, t.after) {
		return "", false
	}
	id = n.value[len(t.before) : len(n.value)-len(t.after)]
	if nowconnect.CheckName(id) != nil || t.kind == kindDNS && strings.Contains(id, ".") {
		return "", false
	}
	return id, true
}
