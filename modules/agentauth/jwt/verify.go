package jwt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	josejwt "github.com/go-jose/go-jose/v4/jwt"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// errNoKeys is the hub's trouble and not the token's.
var errNoKeys = errors.New("there are no keys to verify tokens with")

// A proof is what remains of a token whose signature was good. It holds no
// signature, so nobody can log in with it.
type proof struct {
	alg    jose.SignatureAlgorithm
	signer thumbprint
	claims []byte // the payload as signed
}

// maxToken bounds a token in bytes. An HTTP server takes no longer header
// either, unless it is told to.
const maxToken = 16 << 10

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: token: %w", nowconnect.ErrBadCredential, fmt.Errorf(format, args...))
}

// verify checks the token's signature and nothing else.
func (j *JWT) verify(ctx context.Context, token string) (proof, error) {
	if len(token) > maxToken {
		return proof{}, refuse("longer than %d bytes", maxToken)
	}
	sig, err := jose.ParseSignedCompact(token, j.algs)
	var alg *jose.ErrUnexpectedSignatureAlgorithm
	switch {
	case errors.As(err, &alg):
		return proof{}, refuse("signature algorithm %.16q is not allowed", string(alg.Got))
	case err != nil || len(sig.Signatures) != 1:
		return proof{}, refuse("not a signed JWT") // the parser's errors may repeat parts of it
	}
	p, known, err := j.tryKeys(sig)
	if err != nil && !known && j.keys.renew(ctx) {
		p, _, err = j.tryKeys(sig)
	}
	return p, err
}

// tryKeys verifies with the keys that the header points to. known is true when
// other keys would not help: the named one is there and does not fit.
func (j *JWT) tryKeys(sig *jose.JSONWebSignature) (p proof, known bool, err error) {
	keys, ok := j.keys.current()
	if !ok {
		return proof{}, false, errNoKeys
	}
	h := sig.Signatures[0].Protected
	alg := jose.SignatureAlgorithm(h.Algorithm)
	for _, k := range keys {
		if h.KeyID != "" && k.KeyID != h.KeyID {
			continue
		}
		known = h.KeyID != ""
		if k.Algorithm != "" && k.Algorithm != h.Algorithm {
			continue
		}
		if payload, err := sig.Verify(k.Key); err == nil {
			return proof{alg: alg, signer: k.thumb, claims: payload}, true, nil
		}
	}
	switch {
	case known:
		return proof{}, true, refuse("the signature does not fit the key that it names")
	case h.KeyID != "":
		return proof{}, false, refuse("the key that it names (kid) is not in the key set")
	}
	return proof{}, false, refuse("no key of the set fits the signature")
}

// judge reads verified claims. It says who the agent is, without Credential.
func (j *JWT) judge(payload []byte, now time.Time) (hub.Identity, error) {
	var none hub.Identity
	claims := make(map[string]json.RawMessage) // names are compared to the letter; a double one is an error
	if json.Unmarshal(payload, &claims) != nil {
		return none, refuse("the claims are not a JSON object with unique names")
	}
	if iss, err := claim[string](claims, "iss"); err != nil {
		return none, err
	} else if iss != j.issuer {
		return none, refuse("issuer %.200q is not the configured one", iss)
	}
	aud, err := claim[josejwt.Audience](claims, "aud")
	if err != nil {
		return none, err
	}
	if !slices.ContainsFunc(j.audiences, func(a string) bool { return slices.Contains(aud, a) }) {
		return none, refuse("it is for another audience, %.200q", []string(aud))
	}
	expires, err := j.judgeTimes(claims, now)
	if err != nil {
		return none, err
	}
	agent, err := claim[string](claims, j.AgentClaim)
	if err != nil {
		return none, err
	}
	if err := nowconnect.CheckName(agent); err != nil {
		return none, refuse("claim %q: %w", j.AgentClaim, err)
	}
	id := hub.Identity{AgentID: agent, Method: method, Expires: expires}
	if j.RequireConnectorScopes {
		if id.Connectors, err = connectors(claims); err != nil {
			return none, err
		}
	}
	return id, nil
}

// judgeTimes returns from when on the token is not accepted any more.
func (j *JWT) judgeTimes(claims map[string]json.RawMessage, now time.Time) (time.Time, error) {
	exp, err := date(claims, "exp")
	if err != nil {
		return time.Time{}, err
	}
	skew := time.Duration(j.Skew)
	expires := exp.Add(skew)
	if !now.Before(expires) {
		return time.Time{}, refuse("expired %v ago", now.Sub(exp).Truncate(time.Second))
	}
	if _, ok := claims["nbf"]; ok {
		nbf, err := date(claims, "nbf")
		if err != nil {
			return time.Time{}, err
		}
		if now.Before(nbf.Add(-skew)) {
			return time.Time{}, refuse("not valid for another %v (nbf)", nbf.Sub(now).Truncate(time.Second))
		}
	}
	return expires, nil
}

// maxDate is the last second of the year 9999: later ones overflow somewhere.
const maxDate = 253402300799

func date(claims map[string]json.RawMessage, name string) (time.Time, error) {
	f, err := claim[float64](claims, name)
	if err != nil {
		return time.Time{}, err
	}
	if f < 0 || f > maxDate {
		return time.Time{}, refuse("claim %q is not a date", name)
	}
	return time.Unix(int64(f), 0), nil
}

// claim reads one that must be there.
func claim[T any](claims map[string]json.RawMessage, name string) (v T, err error) {
	raw, ok := claims[name]
	if !ok || string(raw) == "null" {
		return v, refuse("no claim %q", name)
	}
	if json.Unmarshal(raw, &v) != nil {
		return v, refuse("claim %q has the wrong type", name)
	}
	return v, nil
}

// connectors reads the first claim there is that lists connectors: an array,
// or a string of words. What cannot be a connector's name is passed over, for
// `scope` has other uses too.
func connectors(claims map[string]json.RawMessage) ([]string, error) {
	for _, name := range []string{"connectors", "scp", "scope"} {
		if _, ok := claims[name]; !ok {
			continue
		}
		list, err := claim[[]string](claims, name)
		if err != nil {
			s, err := claim[string](claims, name)
			if err != nil {
				return nil, err
			}
			list = strings.Fields(s)
		}
		list = slices.DeleteFunc(list, func(s string) bool { return wire.CheckName(s) != nil })
		if len(list) == 0 {
			return nil, refuse("claim %q names no connector", name)
		}
		slices.Sort(list)
		return slices.Compact(list), nil
	}
	return nil, refuse("it names no connectors, in none of the claims connectors, scp and scope")
}
