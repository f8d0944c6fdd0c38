package authzen

import (
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	authzen [<endpoint>] {
//		discover          <identifier>
//		batch_endpoint    <url>|off
//		timeout           <duration>
//		cache_ttl         <duration>|off
//		deny_ttl          <duration>|off
//		cache_size        <count>
//		max_calls         <count>
//		on_error          deny|allow
//		bearer_token      <placeholder>
//		max_response_size <size>
//		dialect           authzen|nowconnect-v1
//		agent_id          <id>
//		audience          <name>
//		insecure
//		tls {
//			ca          <file> [<file>...]
//			client_cert <certificate file> <key file>
//			server_name <name>
//		}
//	}
//
// Either the endpoint or discover is required. Every option may stand once.
func (a *AuthZEN) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	switch args := d.RemainingArgs(); {
	case len(args) == 1:
		a.Endpoint = args[0]
	case len(args) > 1:
		return d.Err("pdp authzen takes one endpoint")
	}
	err := block(d, "pdp authzen", map[string]func(*caddyfile.Dispenser) error{
		"discover":          word(&a.Discover),
		"batch_endpoint":    word(&a.BatchEndpoint),
		"timeout":           duration(&a.Timeout, false),
		"cache_ttl":         duration(&a.CacheTTL, true),
		"deny_ttl":          duration(&a.DenyTTL, true),
		"cache_size":        count(&a.CacheSize),
		"max_calls":         count(&a.MaxCalls),
		"on_error":          word(&a.OnError, onErrorDeny, onErrorAllow),
		"bearer_token":      word(&a.BearerToken),
		"max_response_size": size(&a.MaxResponseSize),
		"dialect":           word(&a.Dialect, dialectAuthZEN, dialectV1),
		"agent_id":          word(&a.AgentID),
		"audience":          word(&a.Audience),
		"insecure": func(d *caddyfile.Dispenser) error {
			a.Insecure = true
			return noMore(d, "insecure")
		},
		"tls": a.parseTLS,
	})
	if err != nil {
		return err
	}
	if (a.Endpoint == "") == (a.Discover == "") {
		return d.Err("pdp authzen needs either an endpoint or discover, and not both")
	}
	return nil
}

func (a *AuthZEN) parseTLS(d *caddyfile.Dispenser) error {
	a.TLS = new(TLS)
	if d.NextArg() {
		return d.Err("tls takes a block and no arguments")
	}
	return block(d, "tls", map[string]func(*caddyfile.Dispenser) error{
		"ca": func(d *caddyfile.Dispenser) error {
			if a.TLS.CA = d.RemainingArgs(); len(a.TLS.CA) == 0 {
				return d.Err("ca needs at least one file")
			}
			return nil
		},
		"client_cert": func(d *caddyfile.Dispenser) error {
			if !d.Args(&a.TLS.ClientCertificate, &a.TLS.ClientKey) {
				return d.Err("client_cert needs a certificate file and a key file")
			}
			return noMore(d, "client_cert")
		},
		"server_name": word(&a.TLS.ServerName),
	})
}

// block reads options that may stand once each and have no blocks but their own.
func block(d *caddyfile.Dispenser, of string, options map[string]func(*caddyfile.Dispenser) error) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		parse, ok := options[name]
		switch {
		case !ok:
			return d.Errf("unrecognized option %q of %s", name, of)
		case seen[name]:
			return d.Errf("%s twice in the same block", name)
		}
		seen[name] = true
		if err := parse(d); err != nil {
			return err
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", name)
		}
	}
	return nil
}

// word reads one argument, which is one of the choices if there are any.
func word(to *string, choices ...string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		if !d.NextArg() || d.Val() == "" {
			return d.Errf("%s needs a value", name)
		}
		if len(choices) > 0 && !slices.Contains(choices, d.Val()) {
			return d.Errf("%s: %q is none of %s", name, d.Val(), strings.Join(choices, ", "))
		}
		*to = d.Val()
		return noMore(d, name)
	}
}

func duration(to *caddy.Duration, mayBeOff bool) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var text string
		name := d.Val()
		if err := word(&text)(d); err != nil {
			return err
		}
		if mayBeOff && text == "off" {
			*to = -1
			return nil
		}
		v, err := caddy.ParseDuration(text)
		if err != nil || v <= 0 {
			return d.Errf("%s: %q is not a duration above 0, such as 500ms", name, text)
		}
		*to = caddy.Duration(v)
		return nil
	}
}

func count(to *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var text string
		name := d.Val()
		if err := word(&text)(d); err != nil {
			return err
		}
		v, err := strconv.Atoi(text)
		if err != nil || v < 1 {
			return d.Errf("%s: %q is not a number above 0", name, text)
		}
		*to = v
		return nil
	}
}

func size(to *int64) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var text string
		name := d.Val()
		if err := word(&text)(d); err != nil {
			return err
		}
		v, err := humanize.ParseBytes(text)
		if err != nil || v < 1 || v > maxResponse {
			return d.Errf("%s: %q is not a size up to 16MiB, such as 64KiB", name, text)
		}
		*to = int64(v)
		return nil
	}
}

func noMore(d *caddyfile.Dispenser, name string) error {
	if d.NextArg() {
		return d.Errf("%s: unexpected %q", name, d.Val())
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*AuthZEN)(nil)
