// Package allowall is the module "nowconnect.pdp.allow_all": the explicit way
// to have no policy. It owns nothing and has one invariant: whoever loads it is
// told so in the log.
package allowall

import (
	"context"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/internal/authz"
)

func init() {
	caddy.RegisterModule(AllowAll{})
}

// AllowAll lets every client connect. A connector's own `allow_cidrs` and
// limits still hold. Use it where something else already decides who reaches
// the listener, or to try things out.
type AllowAll struct{}

// CaddyModule returns the Caddy module information.
func (AllowAll) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.pdp.allow_all",
		New: func() caddy.Module { return new(AllowAll) },
	}
}

// Provision warns.
func (*AllowAll) Provision(ctx caddy.Context) error {
	ctx.Logger().Warn("ALLOW_ALL: no policy decides who may connect; every client that reaches the listener reaches the service behind the agent")
	return nil
}

// Decide implements authz.Decider.
func (*AllowAll) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	return authz.AllowAll.Decide(ctx, r)
}

// DecideBatch implements authz.BatchDecider.
func (a *AllowAll) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	out := make([]authz.Decision, len(rs))
	for i, r := range rs {
		out[i] = a.Decide(ctx, r)
	}
	return out
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	allow_all
func (*AllowAll) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	if d.NextArg() {
		return d.Err("pdp allow_all takes no arguments")
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unrecognized option %q of pdp allow_all", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*AllowAll)(nil)
	_ caddyfile.Unmarshaler = (*AllowAll)(nil)
	_ authz.BatchDecider    = (*AllowAll)(nil)
)
