// Package jwt is the module "nowconnect.agent_auth.jwt": agents that prove who
// they are with a token that an identity provider signed.
//
// Invariants:
//
//   - Nothing in a token is believed before its signature is verified with a
//     key of the configured set, and no key ever comes from the token.
//   - Without keys nobody gets in.
//   - No token is kept, logged or put into an error; what is remembered of one
//     is its digest and its claims, until it expires.
//   - Key sets outlive a reload: a new configuration with the same source
//     begins with the keys that are there.
package jwt

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&JWT{})
}

// method is the module's name and what identities it makes carry.
const method = "jwt"

// JWT recognises agents by a JSON Web Token (RFC 7519) that they send as a
// bearer token. It refuses a token that is not signed by a key of the set with
// an allowed algorithm, that another issuer made or that is for another
// audience, that has no expiry or is outside its time, and one whose agent
// claim is not an agent's name.
type JWT struct {
	// JWKSURL is where the provider publishes its keys. It must be https, or
	// http on a loopback address. Redirects are not followed. Either this or
	// jwks_file. Placeholders are resolved when the configuration is loaded.
	JWKSURL string `json:"jwks_url,omitempty"`

	// JWKSFile is a file with the keys, read anew as often as a URL is.
	JWKSFile string `json:"jwks_file,omitempty"`

	// Issuer must be the token's `iss`, to the letter. Required.
	Issuer string `json:"issuer,omitempty"`

	// Audience lists what the token may be for: one of them must be in its
	// `aud`. Required, because a provider's tokens for other services have
	// valid signatures too.
	Audience []string `json:"audience,omitempty"`

	// Algorithms are the signature algorithms to accept, of RS256, RS384,
	// RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA. Default:
	// RS256, PS256, ES256 and EdDSA.
	Algorithms []string `json:"algorithms,omitempty"`

	// AgentClaim is the claim that holds the agent's id. Default: agent_id.
	AgentClaim string `json:"agent_claim,omitempty"`

	// RequireConnectorScopes makes the token list the connectors that its
	// agent may serve, in the claim `connectors`, or without that in `scp`, or
	// without that in `scope`. The configuration must name the agent for them
	// too. Default: what the configuration names is enough.
	RequireConnectorScopes bool `json:"require_connector_scopes,omitempty"`

	// Skew is by how much the provider's clock may be off, at expiry and at
	// `nbf`. At most 10m. Default: 60s.
	Skew caddy.Duration `json:"skew,omitempty"`

	// RefreshInterval is how often the keys are fetched. A key that the
	// provider withdraws is trusted for so long at most. Default: 10m.
	RefreshInterval caddy.Duration `json:"refresh_interval,omitempty"`

	// RefreshCooldown is the least time between fetches, however many tokens
	// with unknown keys arrive. Default: 30s.
	RefreshCooldown caddy.Duration `json:"refresh_cooldown,omitempty"`

	// FetchTimeout bounds one fetch, from the first packet to the last byte.
	// Loading a configuration with a new source waits for so long at most.
	// Default: 5s.
	FetchTimeout caddy.Duration `json:"fetch_timeout,omitempty"`

	// MaxStale is for how long keys are used after they were last fetched,
	// while the provider cannot be reached. Then nobody logs in. Default: 24h.
	MaxStale caddy.Duration `json:"max_stale,omitempty"`

	// read-only after Provision
	issuer    string
	audiences []string
	algs      []jose.SignatureAlgorithm
	src       source // key of sets; zero until keys is held
	keys      *keySet
}

// Defaults of the settings.
const (
	defaultAgentClaim = "agent_id"
	defaultSkew       = time.Minute
	defaultRefresh    = 10 * time.Minute
	defaultCooldown   = 30 * time.Second
	defaultTimeout    = 5 * time.Second
	defaultMaxStale   = 24 * time.Hour
	maxSkew           = 10 * time.Minute
	maxTimeout        = time.Minute
)

var (
	defaultAlgorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	// Neither `none` nor a MAC, for which a public key would be the secret.
	knownAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

// sets holds the key sets in use, by source.
var sets = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (*JWT) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.agent_auth.jwt",
		New: func() caddy.Module { return new(JWT) },
	}
}

// Provision takes the key set into use and waits for its first answer, but not
// for a good one: a provider that is down must not keep the hub from starting.
func (j *JWT) Provision(ctx caddy.Context) error {
	j.setDefaults()
	src, err := j.resolve()
	if err != nil {
		return err
	}
	for _, name := range j.Algorithms {
		if !slices.Contains(knownAlgorithms, name) {
			return fmt.Errorf("algorithm %q is not one of %s", name, strings.Join(knownAlgorithms, ", "))
		}
		j.algs = append(j.algs, jose.SignatureAlgorithm(name))
	}
	set, _, err := sets.LoadOrNew(src, func() (caddy.Destructor, error) { return startKeySet(src, ctx.Logger()) })
	if err != nil {
		return err
	}
	j.src, j.keys = src, set.(*keySet)
	wait, cancel := context.WithTimeout(ctx, src.timeout)
	defer cancel()
	j.keys.waitFirst(wait)
	return nil
}

func (j *JWT) setDefaults() {
	j.AgentClaim = cmp.Or(j.AgentClaim, defaultAgentClaim)
	if len(j.Algorithms) == 0 {
		j.Algorithms = slices.Clone(defaultAlgorithms)
	}
	for v, d := range map[*caddy.Duration]time.Duration{
		&j.Skew: defaultSkew, &j.RefreshInterval: defaultRefresh, &j.RefreshCooldown: defaultCooldown,
		&j.FetchTimeout: defaultTimeout, &j.MaxStale: defaultMaxStale,
	} {
		*v = cmp.Or(*v, caddy.Duration(d))
	}
}

// resolve fills in placeholders and says where the keys come from.
func (j *JWT) resolve() (source, error) {
	repl := caddy.NewReplacer()
	value := func(what, configured string) (string, error) {
		s, err := repl.ReplaceOrErr(configured, true, true)
		if err == nil && s == "" {
			err = errors.New("is required")
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", what, err)
		}
		return s, nil
	}
	var src source
	var err error
	if j.issuer, err = value("issuer", j.Issuer); err != nil {
		return src, err
	}
	if len(j.Audience) == 0 {
		return src, errors.New("audience: is required")
	}
	for _, a := range j.Audience {
		if a, err = value("audience", a); err != nil {
			return src, err
		}
		j.audiences = append(j.audiences, a)
	}
	src = source{
		refresh: time.Duration(j.RefreshInterval), cooldown: time.Duration(j.RefreshCooldown),
		timeout: time.Duration(j.FetchTimeout), maxStale: time.Duration(j.MaxStale),
	}
	switch {
	case (j.JWKSURL == "") == (j.JWKSFile == ""):
		return src, errors.New("one of jwks_url and jwks_file is required, and not both")
	case j.JWKSFile != "":
		src.file, err = value("jwks_file", j.JWKSFile)
		return src, err
	}
	if src.url, err = value("jwks_url", j.JWKSURL); err != nil {
		return src, err
	}
	return src, checkURL(src.url)
}

// Validate checks the times.
func (j *JWT) Validate() error {
	for _, c := range []struct {
		name       string
		value      caddy.Duration
		least, max time.Duration // max 0: no bound
	}{
		{"skew", j.Skew, 0, maxSkew},
		{"refresh_interval", j.RefreshInterval, time.Second, 0},
		{"refresh_cooldown", j.RefreshCooldown, time.Second, 0},
		{"fetch_timeout", j.FetchTimeout, 100 * time.Millisecond, maxTimeout},
		{"max_stale", j.MaxStale, time.Second, 0},
	} {
		if d := time.Duration(c.value); d < c.least {
			return fmt.Errorf("%s is %v, at least %v", c.name, d, c.least)
		} else if c.max > 0 && d > c.max {
			return fmt.Errorf("%s is %v, at most %v", c.name, d, c.max)
		}
	}
	if j.MaxStale < j.RefreshInterval {
		return fmt.Errorf("max_stale, %v, is less than refresh_interval, %v: keys would run out between fetches",
			time.Duration(j.MaxStale), time.Duration(j.RefreshInterval))
	}
	return nil
}

// Cleanup gives the key set back.
func (j *JWT) Cleanup() error {
	if j.src == (source{}) {
		return nil
	}
	_, err := sets.Delete(j.src)
	j.src = source{}
	return err
}

// Authenticate implements nowconnect.AgentAuthenticator.
func (j *JWT) Authenticate(r *http.Request) (hub.Identity, error) {
	token, err := nowconnect.BearerToken(r)
	if err != nil {
		return hub.Identity{}, err
	}
	if strings.Count(token, ".") != 2 {
		return hub.Identity{}, nowconnect.ErrNoCredential // another method's secret
	}
	p, err := j.verify(r.Context(), token)
	if err != nil {
		return hub.Identity{}, err
	}
	// From here on the claims are the provider's.
	id, err := j.judge(p.claims, time.Now())
	if err != nil {
		return hub.Identity{}, err
	}
	if hint := r.Header.Get(nowconnect.HeaderAgent); hint != "" && hint != id.AgentID {
		return hub.Identity{}, fmt.Errorf("%w: the token is agent %q's", nowconnect.ErrBadCredential, id.AgentID)
	}
	id.Credential = sha256.Sum256([]byte(token))
	proofs.put(id.Credential, p, id.Expires)
	return id, nil
}

// StillValid implements nowconnect.AgentAuthenticator. It judges what the
// token said and who signed it as if it came now, under this configuration.
func (j *JWT) StillValid(id hub.Identity) bool {
	if id.Method != method {
		return false
	}
	p, ok := proofs.get(id.Credential)
	if !ok || !slices.Contains(j.algs, p.alg) || !j.keys.has(p.signer) {
		return false
	}
	again, err := j.judge(p.claims, time.Now())
	return err == nil && again.AgentID == id.AgentID &&
		(again.Connectors == nil) == (id.Connectors == nil) && slices.Equal(again.Connectors, id.Connectors)
}

// AgentIDs implements nowconnect.AgentAuthenticator: the provider knows them.
func (*JWT) AgentIDs() []string { return nil }

// Interface guards
var (
	_ caddy.Provisioner             = (*JWT)(nil)
	_ caddy.Validator               = (*JWT)(nil)
	_ caddy.CleanerUpper            = (*JWT)(nil)
	_ nowconnect.AgentAuthenticator = (*JWT)(nil)
)
