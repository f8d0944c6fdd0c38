package token

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	token {
//		agent <id> <secret> [<secret>...]
//	}
//
// Each agent has one line; several secrets on it are all accepted.
func (t *Token) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	if d.NextArg() {
		return d.Err("agent_auth token takes a block and no arguments")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "agent" {
			return d.Errf("unrecognized option %q of agent_auth token", d.Val())
		}
		args := d.RemainingArgs()
		if len(args) < 2 {
			return d.Err("agent needs an id and a secret")
		}
		id, secrets := args[0], args[1:]
		if err := nowconnect.CheckName(id); err != nil {
			return d.Errf("agent: %v", err)
		}
		for _, s := range secrets {
			if err := checkForm(s); err != nil {
				return d.Errf("agent %q: %v", id, err)
			}
		}
		if _, ok := t.Agents[id]; ok {
			return d.Errf("agent %q twice: give all its secrets on one line", id)
		}
		if t.Agents == nil {
			t.Agents = make(map[string][]string)
		}
		t.Agents[id] = secrets
		if d.NextBlock(nesting + 1) {
			return d.Err("agent takes no block")
		}
	}
	if len(t.Agents) == 0 {
		return d.Err("agent_auth token names no agent")
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Token)(nil)
