package nowconnect

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// subjectCertificate is the subject's type when TLS verified who the client is.
const subjectCertificate = "certificate"

// CertificateSubject names a client after the leaf of a verified chain, or is
// nil when TLS verified none. What the client merely presented
// (PeerCertificates) is not looked at.
func CertificateSubject(s *tls.ConnectionState) *authz.Entity {
	if len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return nil
	}
	leaf := s.VerifiedChains[0][0]
	id, source := certificateID(leaf)
	sum := sha256.Sum256(leaf.Raw)
	p := map[string]any{
		"id_source":   source,
		"subject_dn":  leaf.Subject.String(),
		"issuer_dn":   leaf.Issuer.String(),
		"serial":      leaf.SerialNumber.Text(16),
		"fingerprint": "sha256:" + hex.EncodeToString(sum[:]),
		"not_after":   leaf.NotAfter.UTC().Format(time.RFC3339),
	}
	set := func(name string, values []string) {
		if len(values) > 0 {
			p[name] = values
		}
	}
	if leaf.Subject.CommonName != "" {
		p["common_name"] = leaf.Subject.CommonName
	}
	set("organization", leaf.Subject.Organization)
	set("organizational_unit", leaf.Subject.OrganizationalUnit)
	set("dns_names", leaf.DNSNames)
	set("emails", leaf.EmailAddresses)
	set("uris", uris(leaf))
	set("ip_addresses", ips(leaf))
	return &authz.Entity{Type: subjectCertificate, ID: id, Properties: p}
}

// certificateID picks the name by which policies know the client: the first
// URI, DNS name or email address among the alternative names, else the common
// name, else the certificate itself. source tells which it was, so that a
// policy can insist: a common name "a.example" is not the DNS name.
func certificateID(c *x509.Certificate) (id, source string) {
	switch {
	case len(c.URIs) > 0:
		return c.URIs[0].String(), "uri"
	case len(c.DNSNames) > 0:
		return c.DNSNames[0], "dns"
	case len(c.EmailAddresses) > 0:
		return c.EmailAddresses[0], "email"
	case c.Subject.CommonName != "":
		return c.Subject.CommonName, "common_name"
	}
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:]), "fingerprint"
}

func uris(c *x509.Certificate) []string {
	var out []string
	for _, u := range c.URIs {
		out = append(out, u.String())
	}
	return out
}

func ips(c *x509.Certificate) []string {
	var out []string
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}
