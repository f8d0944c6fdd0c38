// Package mtls is the module "nowconnect.agent_auth.mtls": agents that prove who
// they are with a TLS client certificate.
//
// Invariants:
//
//   - Only the leaf of a chain that the TLS server verified counts. What else a
//     client sends along is never looked at.
//   - A certificate is one agent's or nobody's.
//   - Certificates are not verified here: a server that does not do it has no
//     agents.
package mtls

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&MTLS{})
}

// method is the module's name and what identities it makes carry.
const method = "mtls"

// MTLS recognises agents by the client certificate of their TLS connection.
// The site of the agent endpoint must verify it, with `client_auth` in mode
// `require_and_verify` or `verify_if_given` and a `trust_pool`: every CA in that
// pool can make certificates of every agent. It refuses certificates
// that nobody verified, that name no agent, or that name several.
type MTLS struct {
	// Agents maps each agent's id to the names of its certificates. A name is a
	// kind and a value: `uri:`, `dns:` or `email:` with a subject alternative
	// name, or `cn:` with the subject's common name. DNS names compare without
	// case, everything else to the letter.
	Agents map[string][]string `json:"agents,omitempty"`

	// Templates are names of certificates with one `*`, which stands for the
	// agent's id, such as `uri:spiffe://corp.example/agent/*`. In `dns:` it
	// stands for one label. Whoever may get such a certificate from the CA
	// chooses which agent to be.
	Templates []string `json:"templates,omitempty"`

	// read-only after Provision
	owners    map[name]string // agents by the names in Agents
	templates []template
	ids       []string // sorted keys of Agents
}

// CaddyModule returns the Caddy module information.
func (*MTLS) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.agent_auth.mtls",
		New: func() caddy.Module { return new(MTLS) },
	}
}

// Provision reads the names.
func (m *MTLS) Provision(caddy.Context) error {
	if len(m.Agents) == 0 && len(m.Templates) == 0 {
		return errors.New("no agents and no templates: say which certificates are agents'")
	}
	m.owners = make(map[name]string)
	m.ids = slices.Sorted(maps.Keys(m.Agents))
	for _, id := range m.ids {
		if err := nowconnect.CheckName(id); err != nil {
			return err
		}
		if len(m.Agents[id]) == 0 {
			return fmt.Errorf("agent %q: no names of certificates", id)
		}
		for _, s := range m.Agents[id] {
			n, err := parseName(s)
			if err != nil {
				return fmt.Errorf("agent %q: %w", id, err)
			}
			if other, taken := m.owners[n]; taken {
				return fmt.Errorf("agent %q: %q is agent %q's already", id, s, other)
			}
			m.owners[n] = id
		}
	}
	for _, s := range m.Templates {
		t, err := parseTemplate(s)
		if err != nil {
			return fmt.Errorf("template: %w", err)
		}
		m.templates = append(m.templates, t)
	}
	return nil
}

// errUnverified is about a server that asks for certificates and takes any.
var errUnverified = fmt.Errorf("%w: the TLS server has not verified the client certificate: "+
	"the site needs client_auth with mode require_and_verify or verify_if_given, and a trust_pool", nowconnect.ErrBadCredential)

// Authenticate implements nowconnect.AgentAuthenticator.
func (m *MTLS) Authenticate(r *http.Request) (hub.Identity, error) {
	switch {
	case r.TLS == nil || len(r.TLS.PeerCertificates) == 0:
		return hub.Identity{}, nowconnect.ErrNoCredential
	case len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0:
		return hub.Identity{}, errUnverified
	}
	// From here on the certificate is one that the server's CAs made, and its
	// key is the peer's.
	leaf := r.TLS.VerifiedChains[0][0]
	id, err := m.judge(leaf, time.Now())
	if err != nil {
		return hub.Identity{}, err
	}
	if hint := r.Header.Get(nowconnect.HeaderAgent); hint != "" && hint != id.AgentID {
		return hub.Identity{}, refuse("it is agent %q's", id.AgentID)
	}
	leaves.put(id.Credential, leaf)
	return id, nil
}

// judge says whose certificate a verified leaf is.
func (m *MTLS) judge(leaf *x509.Certificate, now time.Time) (hub.Identity, error) {
	// The server checks this when a session begins; a resumed one is older.
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return hub.Identity{}, refuse("it is valid from %s to %s only",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	found := make(map[string]bool)
	for _, n := range namesOf(leaf) {
		if id, ok := m.owners[n]; ok {
			found[id] = true
		}
		for _, t := range m.templates {
			if id, ok := t.match(n); ok {
				found[id] = true
			}
		}
	}
	ids := slices.Sorted(maps.Keys(found))
	switch len(ids) {
	case 0:
		return hub.Identity{}, refuse("none of its names is an agent's")
	case 1:
		return hub.Identity{AgentID: ids[0], Method: method, Credential: sha256.Sum256(leaf.Raw), Expires: leaf.NotAfter, Bound: true}, nil
	}
	return hub.Identity{}, refuse("its names are those of several agents: %.200q", ids)
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: client certificate: %w", nowconnect.ErrBadCredential, fmt.Errorf(format, args...))
}

// StillValid implements nowconnect.AgentAuthenticator. It judges the
// certificate's names under this configuration; what the server would now
// verify, it cannot know.
func (m *MTLS) StillValid(id hub.Identity) bool {
	if id.Method != method {
		return false
	}
	leaf, ok := leaves.get(id.Credential)
	if !ok {
		return false
	}
	again, err := m.judge(leaf, time.Now())
	return err == nil && again.AgentID == id.AgentID
}

// AgentIDs implements nowconnect.AgentAuthenticator.
func (m *MTLS) AgentIDs() []string {
	if len(m.templates) > 0 {
		return nil // the CA knows them
	}
	return slices.Clone(m.ids)
}

// Interface guards
var (
	_ caddy.Provisioner             = (*MTLS)(nil)
	_ nowconnect.AgentAuthenticator = (*MTLS)(nil)
)
