package jwt

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	jwt {
//		jwks_url         <url>
//		jwks_file        <path>
//		issuer           <issuer>
//		audience         <audience>...
//		algorithms       <name>...
//		agent_claim      <name>
//		require_connector_scopes
//		skew             <duration>
//		refresh_interval <duration>
//		refresh_cooldown <duration>
//		fetch_timeout    <duration>
//		max_stale        <duration>
//	}
//
// Each option may stand once.
func (j *JWT) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	if d.NextArg() {
		return d.Err("agent_auth jwt takes a block and no arguments")
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s twice in the same block", option)
		}
		seen[option] = true
		if err := j.unmarshalOption(d, option); err != nil {
			return err
		}
		if d.NextArg() {
			return d.Errf("%s: %q is too much", option, d.Val())
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", option)
		}
	}
	for _, required := range []string{"issuer", "audience"} {
		if !seen[required] {
			return d.Errf("agent_auth jwt needs %s", required)
		}
	}
	if seen["jwks_url"] == seen["jwks_file"] {
		return d.Err("agent_auth jwt needs one of jwks_url and jwks_file")
	}
	return nil
}

func (j *JWT) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "jwks_url":
		return word(d, &j.JWKSURL)
	case "jwks_file":
		return word(d, &j.JWKSFile)
	case "issuer":
		return word(d, &j.Issuer)
	case "agent_claim":
		return word(d, &j.AgentClaim)
	case "audience":
		return words(d, &j.Audience)
	case "algorithms":
		return words(d, &j.Algorithms)
	case "require_connector_scopes":
		j.RequireConnectorScopes = true
		return nil
	case "skew":
		return duration(d, &j.Skew)
	case "refresh_interval":
		return duration(d, &j.RefreshInterval)
	case "refresh_cooldown":
		return duration(d, &j.RefreshCooldown)
	case "fetch_timeout":
		return duration(d, &j.FetchTimeout)
	case "max_stale":
		return duration(d, &j.MaxStale)
	}
	return d.Errf("unrecognized option %q of agent_auth jwt", option)
}

func word(d *caddyfile.Dispenser, v *string) error {
	option := d.Val()
	if !d.AllArgs(v) || *v == "" {
		return d.Errf("%s needs one value", option)
	}
	return nil
}

func words(d *caddyfile.Dispenser, v *[]string) error {
	option := d.Val()
	if *v = d.RemainingArgs(); len(*v) == 0 {
		return d.Errf("%s needs a value", option)
	}
	return nil
}

func duration(d *caddyfile.Dispenser, v *caddy.Duration) error {
	var s string
	option := d.Val()
	if err := word(d, &s); err != nil {
		return err
	}
	t, err := caddy.ParseDuration(s)
	if err != nil || t <= 0 {
		return d.Errf("%s: %q is not a time such as 90s or 10m", option, s)
	}
	*v = caddy.Duration(t)
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*JWT)(nil)
