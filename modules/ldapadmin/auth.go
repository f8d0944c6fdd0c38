package ldapadmin

import (
	"encoding/json"
	"errors"
	"net/http"

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
	start := verifiesClients(s.TLSConnPolicies)
	g := guard{on: start}
	g.routes(s.Routes)
	seen := g.on
	for _, route := range s.NamedRoutes {
		// Whoever invokes it may have asked for authentication before.
		inner := guard{on: seen}
		inner.routes(caddyhttp.RouteList{*route})
		g.bare = g.bare || inner.bare
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
	on   bool // authentication has been met
	bare bool // a handler of ours was met before it
}

func (g *guard) routes(routes caddyhttp.RouteList) {
	for _, route := range routes {
		for _, raw := range route.HandlersRaw {
			g.raw(raw)
		}
		for _, handler := range route.Handlers {
			g.provisioned(handler)
		}
	}
}

func (g *guard) raw(b json.RawMessage) {
	var handler struct {
		Handler        string              `json:"handler"`
		Routes         caddyhttp.RouteList `json:"routes"`
		InsecureNoAuth bool                `json:"insecure_no_auth"`
	}
	if json.Unmarshal(b, &handler) != nil {
		return // another module's, and of another shape
	}
	switch handler.Handler {
	case "authentication":
		g.on = true
	case "ldap_admin":
		g.bare = g.bare || !g.on && !handler.InsecureNoAuth
	case "subroute":
		g.routes(handler.Routes)
	}
}

func (g *guard) provisioned(handler any) {
	switch handler := handler.(type) {
	case *caddyauth.Authentication, caddyauth.Authentication:
		g.on = true
	case *caddyhttp.Subroute:
		g.routes(handler.Routes)
	}
}
