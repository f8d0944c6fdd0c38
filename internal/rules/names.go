package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// maxName bounds ids and the names of connectors and agents.
const maxName = 64

// checkName accepts what may name a rule, a connector or an agent: 1 to 64
// letters, digits, dots, hyphens and underscores.
func checkName(s string) error {
	if s == "" || len(s) > maxName || strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}) {
		return fmt.Errorf("%q is not 1 to %d letters, digits, dots, hyphens and underscores", s, maxName)
	}
	return nil
}

// checkNames refuses an empty list, which is no condition, and bad names.
func checkNames(names []string) error {
	if names == nil {
		return nil
	}
	if len(names) == 0 {
		return errors.New("empty list")
	}
	for i, n := range names {
		if err := checkName(n); err != nil {
			return err
		}
		if slices.Contains(names[:i], n) {
			return fmt.Errorf("%q twice", n)
		}
	}
	return nil
}

// parseSources reads networks and addresses. One with an IPv4-mapped IPv6
// address is an error: clients are compared unmapped, it would never match.
func parseSources(words []string) ([]netip.Prefix, error) {
	if words == nil {
		return nil, nil
	}
	if len(words) == 0 {
		return nil, errors.New("empty list")
	}
	prefixes := make([]netip.Prefix, 0, len(words))
	for _, w := range words {
		p, err := netip.ParsePrefix(w)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(w); err == nil && a.Zone() == "" {
				p = netip.PrefixFrom(a, a.BitLen())
			} else {
				return nil, fmt.Errorf("%q is neither a network such as 10.0.0.0/8 nor an address", w)
			}
		}
		switch {
		case p.Addr().Is4In6():
			return nil, fmt.Errorf("%q: write IPv4 networks as IPv4, clients are compared in that form", w)
		case p != p.Masked():
			return nil, fmt.Errorf("%q has bits beyond its mask: %s?", w, p.Masked())
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// hostPattern is a DNS name, or "." and what follows the first label.
type hostPattern string

func parseHost(s string) (hostPattern, error) {
	name, wild := strings.CutPrefix(s, "*.")
	if name == "" || len(s) > 253 || strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") || strings.Contains(name, "..") ||
		strings.ContainsFunc(name, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
		}) {
		return "", fmt.Errorf("%q is neither a DNS name nor *. and one (write international names as xn--…)", s)
	}
	if wild {
		return hostPattern("." + name), nil
	}
	return hostPattern(name), nil
}

// match compares without case, as DNS does. A wildcard stands for exactly one
// label.
func (p hostPattern) match(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if p[0] != '.' {
		return strings.EqualFold(string(p), host)
	}
	i := strings.IndexByte(host, '.')
	return i > 0 && strings.EqualFold(string(p), host[i:])
}

// sanPattern is a pattern for alternative names of one kind.
type sanPattern struct {
	property string      // of the subject: dns_names, uris, emails
	host     hostPattern // for dns, and the domain of an email
	text     string      // for uri, and the local part of an email; "*" there is any
	prefix   bool        // of text, for uri
}

func parseSAN(s string) (p sanPattern, err error) {
	kind, value, _ := strings.Cut(s, ":")
	switch kind {
	case "dns":
		p.property = "dns_names"
		p.host, err = parseHost(value)
	case "uri":
		p.property = "uris"
		p.text, p.prefix = strings.CutSuffix(value, "*")
		// A prefix that does not end a segment would cover its neighbours:
		// spiffe://corp* is also spiffe://corp.example.
		u, uerr := url.Parse(p.text)
		if uerr != nil || u.Scheme == "" || strings.Contains(p.text, "*") ||
			p.prefix && (!strings.HasSuffix(p.text, "/") || u.Host == "" || u.Path == "") {
			err = fmt.Errorf("%q is neither a URI nor one that ends in /*", value)
		}
	case "email":
		p.property = "emails"
		local, domain, ok := strings.Cut(value, "@")
		p.text = local
		if !ok || local == "" || local != "*" && strings.Contains(local, "*") || strings.HasPrefix(domain, "*") {
			return p, fmt.Errorf("%q is neither an email address nor *@ and a domain", value)
		}
		p.host, err = parseHost(domain)
	default:
		err = fmt.Errorf("%q begins with none of dns:, uri: and email:, which tell what it is", s)
	}
	return p, err
}

func (p *sanPattern) match(name string) bool {
	switch p.property {
	case "dns_names":
		return p.host.match(name)
	case "uris":
		if p.prefix {
			return strings.HasPrefix(name, p.text)
		}
		return name == p.text
	default:
		local, domain, _ := strings.Cut(name, "@")
		return (p.text == "*" || p.text == local) && p.host.match(domain)
	}
}
