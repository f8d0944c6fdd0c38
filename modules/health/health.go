// Package health is the HTTP handler "nowconnect_health": /healthz for whether
// the process answers, /readyz for whether clients can be served.
//
// Invariants:
//
//   - Answers are made at the moment of the request and not cached anywhere.
//   - They name connectors and count agents, and tell no address or id of
//     anything on the premises: load balancers ask without a login.
package health

import (
	"encoding/json"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(Handler{})
	httpcaddyfile.RegisterHandlerDirective("nowconnect_health", parseDirective)
	httpcaddyfile.RegisterDirectiveOrder("nowconnect_health", httpcaddyfile.Before, "reverse_proxy")
}

// Handler answers `/healthz` with 200 while the process lives, and `/readyz`
// with 200 when every connector has an agent and the hub is not draining, else
// with 503. `/readyz?connector=<name>` asks about one connector; a name that is
// not configured gives 404. Both answer in JSON. Other paths go to the next
// handler.
type Handler struct{}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.nowconnect_health",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision makes sure that there is an app to tell about.
func (Handler) Provision(ctx caddy.Context) error {
	_, err := nowconnect.FromContext(ctx)
	return err
}

// answer is the JSON of both paths.
type answer struct {
	Status     string               `json:"status"`
	Connectors map[string]connector `json:"connectors,omitempty"`
}

type connector struct {
	Ready  bool `json:"ready"`
	Agents int  `json:"agents"` // connected now
}

// The values of answer.Status.
const (
	statusOK       = "ok"
	statusReady    = "ready"
	statusNotReady = "not_ready"
	statusDraining = "draining"
	statusUnknown  = "unknown_connector"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	switch r.URL.Path {
	case "/healthz", "/readyz":
	default:
		return next.ServeHTTP(w, r)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return nil
	}
	if r.URL.Path == "/healthz" {
		return reply(w, http.StatusOK, answer{Status: statusOK})
	}
	q := r.URL.Query()
	status, a := ready(q.Get("connector"), q.Has("connector"))
	return reply(w, status, a)
}

// ready tells about one connector, or about all.
func ready(name string, one bool) (int, answer) {
	app := nowconnect.Current()
	if app == nil {
		return http.StatusServiceUnavailable, answer{Status: statusNotReady}
	}
	return judge(app.Hub().Status(), name, one)
}

func judge(s hub.Status, name string, one bool) (int, answer) {
	a := answer{Status: statusReady, Connectors: make(map[string]connector)}
	for _, c := range s.Connectors {
		if one && c.Name != name {
			continue
		}
		a.Connectors[c.Name] = connector{Ready: c.Ready, Agents: len(c.Agents)}
		if !c.Ready {
			a.Status = statusNotReady
		}
	}
	switch {
	case one && len(a.Connectors) == 0:
		return http.StatusNotFound, answer{Status: statusUnknown}
	case s.Draining:
		a.Status = statusDraining
	case !s.Configured:
		a.Status = statusNotReady
	}
	if a.Status != statusReady {
		return http.StatusServiceUnavailable, a
	}
	return http.StatusOK, a
}

func reply(w http.ResponseWriter, status int, a answer) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may be gone
	return nil
}

func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	nowconnect_health [<matcher>]
func (Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	if d.NextArg() {
		return d.Err("nowconnect_health takes no arguments but a matcher")
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unrecognized option %q of nowconnect_health", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
