// Package token is the module "nowconnect.agent_auth.token": agents that prove
// who they are with a bearer token that the hub knows.
//
// Invariants:
//
//   - After Provision only SHA-256 digests are kept; no error or log line holds
//     a secret.
//   - One digest belongs to one agent, so a secret alone says who has it.
//   - How long a comparison takes tells nothing about the secret.
package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Token{})
}

// method is the module's name and what identities it makes carry.
const method = "token"

// Token recognises agents by a secret that they send as a bearer token.
type Token struct {
	// Agents maps each agent's id to its secrets. Several at once let an agent
	// change its own without an interruption. A secret is a placeholder such
	// as `{file./etc/nowconnect/premise-1.token}` or `{env.PREMISE_1_TOKEN}`,
	// or `sha256:` with the hex digest of the secret, so that the hub's side
	// need not hold it at all. A secret written here itself does not load:
	// Caddy shows its configuration and stores it. At least 16 printable ASCII
	// characters without spaces.
	Agents map[string][]string `json:"agents,omitempty"`

	// read-only after Provision
	digests map[string][]digest
	ids     []string // sorted keys of digests
}

type digest = [sha256.Size]byte

const (
	hashPrefix = "sha256:"
	minSecret  = 16
	howToMake  = "make one with: openssl rand -hex 32"
)

// CaddyModule returns the Caddy module information.
func (*Token) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.agent_auth.token",
		New: func() caddy.Module { return new(Token) },
	}
}

// Provision resolves the secrets and keeps their digests.
func (t *Token) Provision(caddy.Context) error {
	if len(t.Agents) == 0 {
		return errors.New("no agents: name at least one and its secret")
	}
	t.digests = make(map[string][]digest, len(t.Agents))
	t.ids = slices.Sorted(maps.Keys(t.Agents))
	owner := make(map[digest]string)
	for _, id := range t.ids {
		if err := nowconnect.CheckName(id); err != nil {
			return err
		}
		for _, s := range t.Agents[id] {
			d, err := resolve(s)
			if err != nil {
				return fmt.Errorf("agent %q: %w", id, err)
			}
			if other, taken := owner[d]; taken {
				return fmt.Errorf("agent %q: a secret that agent %q already has", id, other)
			}
			owner[d] = id
			t.digests[id] = append(t.digests[id], d)
		}
		if len(t.digests[id]) == 0 {
			return fmt.Errorf("agent %q: no secret", id)
		}
	}
	return nil
}

// placeholder is what a secret may be. Other text around it would be a part of
// the secret that the configuration shows.
var placeholder = regexp.MustCompile(`^\{[^{}]+\}$`)

// errLiteral does not say the value, which is a secret. An option {$NAME} is
// text by the time that anybody here sees it.
var errLiteral = errors.New("a secret stands in the configuration itself, which Caddy shows and stores: " +
	"write {file.…}, {env.…} (not {$…}, which the Caddyfile replaces by its value) or sha256:…")

// checkForm says what is wrong with how a secret is written.
func checkForm(configured string) error {
	if configured == "" || strings.HasPrefix(configured, hashPrefix) || placeholder.MatchString(configured) {
		return nil // what is empty is told better later
	}
	return errLiteral
}

// resolve turns a configured secret into its digest. Its errors name
// placeholders and lengths, never a value.
func resolve(configured string) (digest, error) {
	var d digest
	if err := checkForm(configured); err != nil {
		return d, err
	}
	s, err := caddy.NewReplacer().ReplaceOrErr(configured, true, true)
	if err != nil {
		return d, fmt.Errorf("secret: %w", err)
	}
	s = strings.TrimSpace(s)
	if h, ok := strings.CutPrefix(s, hashPrefix); ok {
		b, err := hex.DecodeString(h)
		if err != nil || len(b) != len(d) {
			return d, fmt.Errorf("secret: %s is not followed by %d hex digits", hashPrefix, 2*len(d))
		}
		return digest(b), nil
	}
	if s == "" {
		return d, fmt.Errorf("secret is empty; %s", howToMake)
	}
	if len(s) < minSecret {
		return d, fmt.Errorf("secret has %d characters, at least %d; %s", len(s), minSecret, howToMake)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return d, errors.New("secret has a character that cannot stand in an HTTP header; " + howToMake)
	}
	return sha256.Sum256([]byte(s)), nil
}

// Authenticate implements nowconnect.AgentAuthenticator.
func (t *Token) Authenticate(r *http.Request) (hub.Identity, error) {
	secret, err := nowconnect.BearerToken(r)
	if err != nil {
		return hub.Identity{}, err
	}
	d := sha256.Sum256([]byte(secret))
	id, ok := t.lookup(d, r.Header.Get(nowconnect.HeaderAgent))
	if !ok {
		return hub.Identity{}, nowconnect.ErrBadCredential
	}
	return hub.Identity{AgentID: id, Method: method, Credential: d}, nil
}

// lookup finds whose digest d is: the hinted agent's, or with no hint anyone's.
func (t *Token) lookup(d digest, hint string) (string, bool) {
	if hint != "" {
		return hint, has(t.digests[hint], d)
	}
	var found string
	for _, id := range t.ids {
		if has(t.digests[id], d) {
			found = id
		}
	}
	return found, found != ""
}

// has compares with every digest, so that time tells nothing.
func has(list []digest, d digest) bool {
	found := 0
	for i := range list {
		found |= subtle.ConstantTimeCompare(list[i][:], d[:])
	}
	return found == 1
}

// StillValid implements nowconnect.AgentAuthenticator.
func (t *Token) StillValid(id hub.Identity) bool {
	return id.Method == method && has(t.digests[id.AgentID], id.Credential)
}

// AgentIDs implements nowconnect.AgentAuthenticator.
func (t *Token) AgentIDs() []string { return slices.Clone(t.ids) }

// Interface guards
var (
	_ caddy.Provisioner             = (*Token)(nil)
	_ nowconnect.AgentAuthenticator = (*Token)(nil)
)
