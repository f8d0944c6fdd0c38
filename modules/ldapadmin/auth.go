package ldapadmin

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// The subject's types. A certificate has the one that layer-4 clients have.
const (
	subjectUser = "user"
	subjectIP   = "ip"
)

// caller tells who sent r. The user that an authentication handler found comes
// before the certificate, which may be that of a proxy in front.
func (h *Handler) caller(r *http.Request) (authz.Entity, *problem) {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		if id, ok := repl.GetString("http.auth.user.id"); ok && id != "" {
			return authz.Entity{Type: subjectUser, ID: id}, nil
		}
	}
	if r.TLS != nil {
		if e := nowconnect.CertificateSubject(r.TLS); e != nil {
			return *e, nil
		}
	}
	if h.InsecureNoAuth {
		return authz.Entity{Type: subjectIP, ID: clientIP(r)}, nil
	}
	// What authentication there is has let the request through without naming
	// anybody, or its matcher leaves this path out. No scheme can be told.
	return authz.Entity{}, newProblem(http.StatusUnauthorized, codeUnauthenticated,
		"nobody has authenticated the caller").with("WWW-Authenticate", `Bearer realm="ldap_admin"`)
}

// clientIP is the address that Caddy takes for the client's, trusted proxies
// considered.
func clientIP(r *http.Request) string {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	return ip
}

var errNoAuthInFront = errors.New("no authentication in front of it: nobody can tell who calls; " +
	"put an authentication handler (such as basic_auth) before it or verify client certificates, or write insecure_no_auth")

// checkAuthentication looks whether something in front of the handler tells who
// calls. It sees that there is an authentication handler, not which requests
// it is for: those that get by it are refused when they come.
func (h *Handler) checkAuthentication(ctx caddy.Context) error {
	if h.InsecureNoAuth {
		return nil
	}
	for _, m := range ctx.Modules() {
		app, ok := m.(*caddyhttp.App)
		if !ok {
			continue
		}
		for _, server := range app.Servers {
			if !guardedServer(server) {
				return errNoAuthInFront
			}
		}
		return nil
	}
	return errNoAuthInFront
}

// guardedServer looks for a handler of ours without authentication before it.
// Handlers that are already provisioned have been looked at by themselves.
func guardedServer(s *caddyhttp.Server) bool {
	g := &guard{always: verifiesClients(s.TLSConnPolicies), named: s.NamedRoutes, invoked: make(map[string]bool), inside: make(map[string]bool)}
	g.on = g.always
	g.routes(s.Routes)
	// An error arises before authentication as well as after it.
	g.errors(s.Errors)
	for name, route := range s.NamedRoutes {
		if !g.invoked[name] { // where we can see it
			g.on = g.always
			g.routes(caddyhttp.RouteList{*route})
		}
	}
	return !g.bare
}

// verifiesClients reports whether every connection that shows a client
// certificate has it verified by one of the policies.
func verifiesClients(policies caddytls.ConnectionPolicies) bool {
	for _, p := range policies {
		c := p.ClientAuthentication
		if c == nil || !c.Active() {
			continue
		}
		switch c.Mode {
		case "request", "require": // taken on trust
		default:
			return true
		}
	}
	return false
}

// guard walks through routes in the order in which requests meet them.
type guard struct {
	always  bool // connections tell who calls
	named   map[string]*caddyhttp.Route
	invoked map[string]bool // named routes that have been walked
	inside  map[string]bool // those that are being walked

	on   bool // authentication has been met
	bare bool // a handler of ours was met before it
}

// routes walks a list. What a terminal route asks for (each site is one) is
// not asked of requests for the routes after it, and of the routes of a group
// a request meets one.
func (g *guard) routes(routes caddyhttp.RouteList) {
	before, groups := g.on, make(map[string]bool)
	for _, route := range routes {
		g.on = before
		for group := range groups {
			g.on = g.on || group != route.Group
		}
		found := g.on
		for _, raw := range route.HandlersRaw {
			g.raw(raw)
		}
		for _, handler := range route.Handlers {
			g.provisioned(handler)
		}
		switch {
		case found || !g.on || route.Terminal:
		case route.Group != "":
			groups[route.Group] = true
		default:
			before = true
		}
	}
	g.on = before || len(groups) > 0
}

func (g *guard) errors(c *caddyhttp.HTTPErrorConfig) {
	if c == nil {
		return
	}
	on := g.on
	g.on = g.always
	g.routes(c.Routes)
	g.on = on
}

func (g *guard) invoke(name string) {
	route := g.named[name]
	if route == nil || g.inside[name] {
		return
	}
	g.invoked[name], g.inside[name] = true, true
	g.routes(caddyhttp.RouteList{*route})
	delete(g.inside, name)
}

func (g *guard) raw(b json.RawMessage) {
	var handler struct {
		Handler        string                     `json:"handler"`
		Name           string                     `json:"name"`
		Routes         caddyhttp.RouteList        `json:"routes"`
		Errors         *caddyhttp.HTTPErrorConfig `json:"errors"`
		InsecureNoAuth bool                       `json:"insecure_no_auth"`
	}
	_ = json.Unmarshal(b, &handler) // what has another shape is of another module
	switch handler.Handler {
	case "authentication":
		g.on = true
	case "ldap_admin":
		g.bare = g.bare || !g.on && !handler.InsecureNoAuth
	case "invoke":
		g.invoke(handler.Name)
	case "subroute":
		g.routes(handler.Routes)
		g.errors(handler.Errors)
	default:
		g.other(b)
	}
}

// other looks for handlers inside of one whose shape is not known. What they
// ask for counts for each other only.
func (g *guard) other(b json.RawMessage) {
	var fields map[string]any
	if json.Unmarshal(b, &fields) != nil {
		return
	}
	on := g.on
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		g.value(fields[name])
	}
	g.on = on
}

func (g *guard) value(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			g.value(e)
		}
	case map[string]any:
		if _, ok := v["handler"].(string); ok {
			if b, err := json.Marshal(v); err == nil {
				g.raw(b)
			}
			return
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			g.value(v[name])
		}
	}
}

func (g *guard) provisioned(handler any) {
	switch handler := handler.(type) {
	case *caddyauth.Authentication, caddyauth.Authentication:
		g.on = true
	case *caddyhttp.Invoke:
		g.invoke(handler.Name)
	case *caddyhttp.Subroute:
		g.routes(handler.Routes)
		g.errors(handler.Errors)
	}
}
