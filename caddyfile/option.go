package caddyfile

import (
	"encoding/json"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("nowconnect", parseOption)
}

// parseOption reads the global option. Syntax:
//
//	nowconnect {
//		hub_id              <name>
//		agent_auth          <method> ...
//		pdp                 <engine> ...
//		connector           <name> { ... }
//		max_sessions        <count>
//		max_links_per_agent <count>
//		agent_memory        <size>
//		congestion_control  auto|system|<algorithm>
//		ping_interval       <duration>
//		ping_timeout        <duration>
//		handshake_timeout   <duration>
//		drain_timeout       <duration>
//		auth_grace          <duration>
//		grace               <duration>|off
//		audit               { sample_allows <part> }
//		metrics             { ... }
//	}
//
// agent_auth, pdp and connector may stand several times, everything else once.
func parseOption(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // consume the option's name
	if existing != nil {
		return nil, d.Err("nowconnect twice: put everything into one block")
	}
	if d.NextArg() {
		return nil, d.Err("nowconnect takes a block and no arguments")
	}
	app := new(nowconnect.App)
	p := appParser(app)
	if err := p.parse(d, "nowconnect"); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "nowconnect", Value: caddyconfig.JSON(app, nil)}, nil
}

func appParser(app *nowconnect.App) parser {
	return parser{
		options: map[string]option{
			"hub_id":              name(&app.HubID),
			"max_sessions":        count(&app.MaxSessions),
			"max_links_per_agent": count(&app.MaxLinksPerAgent),
			"agent_memory":        size(&app.AgentMemory),
			"congestion_control":  congestionControl(&app.CongestionControl),
			"ping_interval":       duration(&app.PingInterval),
			"ping_timeout":        duration(&app.PingTimeout),
			"handshake_timeout":   duration(&app.HandshakeTimeout),
			"drain_timeout":       duration(&app.DrainTimeout),
			"auth_grace":          duration(&app.AuthGrace),
			"grace":               durationOrMinus(&app.Grace),
			"audit":               audit(app),
			"metrics":             metrics(app),
		},
		repeatable: map[string]option{
			"agent_auth": guest("nowconnect.agent_auth", "method", func(raw json.RawMessage) {
				app.AgentAuthRaw = append(app.AgentAuthRaw, raw)
			}),
			"pdp":       pdp(&app.PDPRaw),
			"connector": connector(app),
		},
	}
}

// pdp adds a policy decision point to a list.
func pdp(list *nowconnect.PDPs) option {
	return guest("nowconnect.pdp", "engine", func(raw json.RawMessage) { *list = append(*list, raw) })
}

// audit reads the settings of the audit log. Syntax:
//
//	audit {
//		sample_allows <part>
//	}
func audit(app *nowconnect.App) option {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.Err("audit takes a block and no arguments")
		}
		app.Audit = new(nowconnect.Audit)
		return auditParser(app.Audit).parse(d, "audit")
	}
}

func auditParser(a *nowconnect.Audit) parser {
	return parser{options: map[string]option{"sample_allows": part(&a.SampleAllows)}}
}

// guest reads a module of a namespace: its name, then its own words.
func guest(namespace, key string, set func(json.RawMessage)) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		if !d.NextArg() {
			return d.Errf("%s needs the name of a module: %s", what, strings.Join(moduleNames(namespace), ", "))
		}
		module := d.Val()
		if _, err := caddy.GetModule(namespace + "." + module); err != nil {
			return d.Errf("no %s module %q in this build; there is %s", what, module, strings.Join(moduleNames(namespace), ", "))
		}
		u, err := caddyfile.UnmarshalModule(d, namespace+"."+module)
		if err != nil {
			return err
		}
		set(caddyconfig.JSONModuleObject(u, key, module, nil))
		return nil
	}
}

func moduleNames(namespace string) []string {
	var names []string
	for _, m := range caddy.GetModules(namespace) {
		names = append(names, m.ID.Name())
	}
	if names == nil {
		names = []string{"none"}
	}
	return names
}

// metrics reads the one module that has no name of its own to write.
func metrics(app *nowconnect.App) option {
	return func(d *caddyfile.Dispenser) error {
		u, err := caddyfile.UnmarshalModule(d, "nowconnect.metrics")
		if err != nil {
			return err
		}
		app.MetricsRaw = caddyconfig.JSON(u, nil)
		return nil
	}
}
