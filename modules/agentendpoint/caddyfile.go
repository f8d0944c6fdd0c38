package agentendpoint

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

func init() {
	httpcaddyfile.RegisterDirective("nowconnect_agent", parseDirective)
	// After respond, abort and error, which sites use to shut requests out.
	httpcaddyfile.RegisterDirectiveOrder("nowconnect_agent", httpcaddyfile.Before, "reverse_proxy")
}

// defaultPath is answered when the Caddyfile gives neither matcher nor path: a
// bare directive must not take over the whole site.
const defaultPath = "/tunnel"

// parseDirective reads the directive with its matcher. It does itself what
// RegisterHandlerDirective would do, to know whether there was a matcher.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	if matcher == nil && handler.Path == "" {
		handler.Path = defaultPath
	}
	return h.NewRoute(matcher, handler), nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	nowconnect_agent [<matcher>] [<path>] {
//		max_handshakes <count>
//	}
//
// A first word that starts with a slash is a path matcher, as with every
// directive: `nowconnect_agent /tunnel`. With neither matcher nor path, the
// path is /tunnel.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	if d.NextArg() {
		h.Path = d.Val()
		if h.Path == "" || h.Path[0] != '/' {
			return d.Errf("path %q does not start with /", h.Path)
		}
	}
	if d.NextArg() {
		return d.Err("nowconnect_agent takes a matcher and one path at most")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "max_handshakes" {
			return d.Errf("unrecognized option %q of nowconnect_agent", d.Val())
		}
		if h.MaxHandshakes != 0 {
			return d.Err("max_handshakes twice")
		}
		var s string
		if !d.AllArgs(&s) {
			return d.Err("max_handshakes takes one value")
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return d.Errf("max_handshakes %q is not a count of 1 or more", s)
		}
		h.MaxHandshakes = n
		if d.NextBlock(nesting + 1) {
			return d.Err("max_handshakes takes no block")
		}
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
