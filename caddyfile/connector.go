package caddyfile

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// connector reads one connector. Syntax:
//
//	connector <name> {
//		agents                  <id> [<id>...]
//		balance                 first|round_robin|least_sessions
//		protocol                tcp|ldap
//		max_sessions            <count>
//		max_sessions_per_client <count>
//		allow_cidrs             <network> [<network>...]
//		queue_depth_per_cid     <frames>
//		connect_timeout         <duration>
//		idle_timeout            <duration>|off
//		grace                   <duration>|off
//		pdp                     <engine> ...
//	}
//
// pdp may stand several times, everything else once.
func connector(app *nowconnect.App) option {
	return func(d *caddyfile.Dispenser) error {
		at := *d // for errors about the whole
		var id string
		if !d.AllArgs(&id) {
			return d.Err("connector needs one name")
		}
		if err := nowconnect.CheckName(id); err != nil {
			return d.Errf("connector: %v", err)
		}
		if _, ok := app.Connectors[id]; ok {
			return d.Errf("connector %q twice", id)
		}
		c := new(nowconnect.Connector)
		if err := connectorParser(c).parse(d, "connector"); err != nil {
			return err
		}
		if len(c.Agents) == 0 {
			return at.Errf("connector %q: no agents: name those that may serve it", id)
		}
		if app.Connectors == nil {
			app.Connectors = make(map[string]*nowconnect.Connector)
		}
		app.Connectors[id] = c
		return nil
	}
}

func connectorParser(c *nowconnect.Connector) parser {
	return parser{repeatable: map[string]option{"pdp": pdp(&c.PDPRaw)}, options: map[string]option{
		"agents":                  agents(c),
		"balance":                 oneOf(&c.Balance, nowconnect.Balances),
		"protocol":                oneOf(&c.Protocol, nowconnect.Protocols),
		"max_sessions":            count(&c.MaxSessions),
		"max_sessions_per_client": count(&c.MaxSessionsPerClient),
		"allow_cidrs":             networks(c),
		"queue_depth_per_cid":     count(&c.QueueDepth),
		"connect_timeout":         duration(&c.ConnectTimeout),
		"idle_timeout":            durationOrOff(&c.IdleTimeout),
		"grace":                   durationOrMinus(&c.Grace),
	}}
}

func agents(c *nowconnect.Connector) option {
	return func(d *caddyfile.Dispenser) error {
		c.Agents = d.RemainingArgs()
		if len(c.Agents) == 0 {
			return d.Err("agents needs at least one agent id")
		}
		for i, id := range c.Agents {
			if err := nowconnect.CheckName(id); err != nil {
				return d.Errf("agents: %v", err)
			}
			if slices.Contains(c.Agents[:i], id) {
				return d.Errf("agents: %q twice", id)
			}
		}
		return nil
	}
}

func networks(c *nowconnect.Connector) option {
	return func(d *caddyfile.Dispenser) error {
		c.AllowCIDRs = d.RemainingArgs()
		if len(c.AllowCIDRs) == 0 {
			return d.Err("allow_cidrs needs at least one network; leave it out to allow any address")
		}
		if _, err := nowconnect.ParsePrefixes(c.AllowCIDRs); err != nil {
			return d.Errf("allow_cidrs: %v", err)
		}
		return nil
	}
}

func oneOf(field *string, values []string) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		if !d.AllArgs(field) || !slices.Contains(values, *field) {
			return d.Errf("%s takes one of %s", what, strings.Join(values, ", "))
		}
		return nil
	}
}
