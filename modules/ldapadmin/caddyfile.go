package ldapadmin

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("ldap_admin", parseDirective)
	// After the directives that authenticate, such as basic_auth, and after
	// respond, abort and error, which sites use to shut requests out.
	httpcaddyfile.RegisterDirectiveOrder("ldap_admin", httpcaddyfile.Before, "reverse_proxy")
}

func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// option reads one option, its name being the current token, up to its last
// token.
type option func(d *caddyfile.Dispenser) error

// options are those of the directive that may stand once.
func (h *Handler) options() map[string]option {
	return map[string]option{
		"connector":                text(&h.Connector),
		"url":                      text(&h.URL),
		"tls":                      text(&h.TLS),
		"server_name":              text(&h.ServerName),
		"tls_ca":                   texts(&h.TLSCA),
		"insecure_plaintext":       flag(&h.InsecurePlaintext),
		"tls_insecure_skip_verify": flag(&h.InsecureSkipVerify),
		"bind_dn":                  text(&h.BindDN),
		"bind_password":            text(&h.BindPassword),
		"members_below":            texts(&h.MemberBases),
		"any_member":               flag(&h.AnyMember),
		"allow_sid":                flag(&h.AllowSID),
		"lookup":                   text(&h.Lookup),
		"verify":                   text(&h.Verify),
		"path_prefix":              text(&h.PathPrefix),
		"max_body":                 size(&h.MaxBody),
		"max_members":              count(&h.MaxMembers),
		"max_requests":             count(&h.MaxRequests),
		"max_requests_per_caller":  count(&h.MaxRequestsPerCaller),
		"min_connections":          count(&h.MinConnections),
		"max_connections":          count(&h.MaxConnections),
		"idle_time":                duration(&h.IdleTime),
		"timeout":                  duration(&h.Timeout),
		"idempotency_ttl":          duration(&h.IdempotencyTTL),
		"insecure_no_auth":         flag(&h.InsecureNoAuth),
	}
}

func (g *Group) options() map[string]option {
	return map[string]option{
		"replace":      flag(&g.Replace),
		"max_removals": share(&g.MaxRemovals),
		"placeholder":  text(&g.Placeholder),
	}
}

// Options lists the options of the directive and of the blocks in it, for the
// test that each has a golden file.
func Options() []string {
	names := slices.Sorted(maps.Keys(new(Handler).options()))
	names = append(names, "group", "groups_below")
	return slices.AppendSeq(names, maps.Keys(new(Group).options()))
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	ldap_admin [<matcher>] {
//		connector <name>
//		url <url>
//		tls ldaps|starttls
//		server_name <name>
//		tls_ca <file>...
//		insecure_plaintext
//		tls_insecure_skip_verify
//		bind_dn <dn>
//		bind_password <placeholder>
//		group <dn> {
//			replace
//			max_removals <percent>%
//			placeholder <dn>
//		}
//		groups_below <dn> { ... }
//		members_below <dn>...
//		any_member
//		allow_sid
//		lookup always|never
//		verify ambiguous|always|never
//		path_prefix <path>
//		max_body <size>
//		max_members <count>
//		max_requests <count>
//		max_requests_per_caller <count>
//		min_connections <count>
//		max_connections <count>
//		idle_time <duration>
//		timeout <duration>
//		idempotency_ttl <duration>
//		insecure_no_auth
//	}
//
// group and groups_below may stand several times, everything else once.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	if d.NextArg() {
		return d.Err("ldap_admin takes no arguments but a matcher")
	}
	return parse(d, "ldap_admin", h.options(), func(word string) (bool, error) {
		if word != "group" && word != "groups_below" {
			return false, nil
		}
		g := &Group{Subtree: word == "groups_below"}
		if !d.AllArgs(&g.DN) || g.DN == "" {
			return true, d.Errf("%s takes one DN", word)
		}
		h.Groups = append(h.Groups, g)
		return true, parse(d, word, g.options(), nil)
	})
}

// parse reads the block that begins after the current token. other, when not
// nil, reads what options does not have, with its own block.
func parse(d *caddyfile.Dispenser, block string, options map[string]option, other func(word string) (bool, error)) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word := d.Val()
		read := options[word]
		if read == nil && other != nil {
			known, err := other(word)
			if err != nil {
				return err
			}
			if known {
				continue
			}
		}
		switch {
		case read == nil:
			return d.Errf("unrecognized option %q of %s", word, block)
		case seen[word]:
			return d.Errf("%s twice in the same block", word)
		}
		seen[word] = true
		if err := read(d); err != nil {
			return err
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", word)
		}
	}
	return nil
}

func text(field *string) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		if !d.AllArgs(field) || *field == "" {
			return d.Errf("%s takes one value", what)
		}
		return nil
	}
}

func texts(field *[]string) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		if *field = d.RemainingArgs(); len(*field) == 0 {
			return d.Errf("%s takes one value or more", what)
		}
		return nil
	}
}

func flag(field *bool) option {
	return func(d *caddyfile.Dispenser) error {
		if d.CountRemainingArgs() > 0 {
			return d.Errf("%s takes no value", d.Val())
		}
		*field = true
		return nil
	}
}

func count(field *int) option {
	return func(d *caddyfile.Dispenser) error {
		var s string
		what := d.Val()
		if err := text(&s)(d); err != nil {
			return err
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return d.Errf("%s %q is not a count of 1 or more", what, s)
		}
		*field = n
		return nil
	}
}

func size(field *int64) option {
	return func(d *caddyfile.Dispenser) error {
		var s string
		what := d.Val()
		if err := text(&s)(d); err != nil {
			return err
		}
		n, err := humanize.ParseBytes(s)
		if err != nil || n < 1 || n > math.MaxInt64 {
			return d.Errf("%s %q is not a size such as 8MiB", what, s)
		}
		*field = int64(n)
		return nil
	}
}

func duration(field *caddy.Duration) option {
	return func(d *caddyfile.Dispenser) error {
		var s string
		what := d.Val()
		if err := text(&s)(d); err != nil {
			return err
		}
		v, err := caddy.ParseDuration(s)
		if err != nil || v <= 0 {
			return d.Errf("%s %q is not a duration above zero, such as 60s", what, s)
		}
		*field = caddy.Duration(v)
		return nil
	}
}

func share(field *float64) option {
	return func(d *caddyfile.Dispenser) error {
		var s string
		what := d.Val()
		if err := text(&s)(d); err != nil {
			return err
		}
		digits, percent := strings.CutSuffix(s, "%")
		n, err := strconv.ParseFloat(digits, 64)
		if err != nil || !percent || !(n > 0 && n <= 100) {
			return d.Errf("%s %q is not a percentage such as 20%%", what, s)
		}
		*field = n / 100
		return nil
	}
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
