package mtls

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	mtls {
//		agent    <id> <kind>:<name> [<kind>:<name>...]
//		template <kind>:<name with *>
//	}
//
// Each agent has one line; template may stand several times.
func (m *MTLS) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	if d.NextArg() {
		return d.Err("agent_auth mtls takes a block and no arguments")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		var err error
		switch option {
		case "agent":
			err = m.unmarshalAgent(d)
		case "template":
			err = m.unmarshalTemplate(d)
		default:
			err = d.Errf("unrecognized option %q of agent_auth mtls", option)
		}
		if err != nil {
			return err
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", option)
		}
	}
	if len(m.Agents) == 0 && len(m.Templates) == 0 {
		return d.Err("agent_auth mtls names no agent and no template")
	}
	return nil
}

func (m *MTLS) unmarshalAgent(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 2 {
		return d.Err("agent needs an id and a name of its certificate")
	}
	id, names := args[0], args[1:]
	if err := nowconnect.CheckName(id); err != nil {
		return d.Errf("agent: %v", err)
	}
	if _, ok := m.Agents[id]; ok {
		return d.Errf("agent %q twice: give all its names on one line", id)
	}
	for _, s := range names {
		if _, err := parseName(s); err != nil {
			return d.Errf("agent: %v", err)
		}
	}
	if m.Agents == nil {
		m.Agents = make(map[string][]string)
	}
	m.Agents[id] = names
	return nil
}

func (m *MTLS) unmarshalTemplate(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Err("template needs one name with a *")
	}
	if _, err := parseTemplate(args[0]); err != nil {
		return d.Errf("template: %v", err)
	}
	m.Templates = append(m.Templates, args[0])
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*MTLS)(nil)
