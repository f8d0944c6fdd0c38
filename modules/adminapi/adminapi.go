// Package adminapi is the module "admin.api.nowconnect": what an operator asks
// of the hub and tells it, on Caddy's admin endpoint, and the commands that do
// so from a shell.
//
// Invariants:
//
//   - It keeps no app and no hub: after a load that failed, Caddy goes on using
//     the admin routes of the configuration that it gave up.
//   - What changes something is a POST with a JSON content type, which no web
//     page can send unasked.
//   - Nothing secret is in a path, a query or an answer, because Caddy logs the
//     first two.
package adminapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(API{})
}

// API adds these to Caddy's admin endpoint:
//
//   - `GET /nowconnect/agents`: agents with their links, and connectors.
//   - `GET /nowconnect/sessions?connector=<name>`: live sessions, of one
//     connector or of all.
//   - `GET /nowconnect/doctor`: look whether what the configuration leads to is as
//     it says: agents, and the directories of `ldap_admin`.
//   - `POST /nowconnect/sessions/revoke`: end live sessions. The body is JSON with
//     one or more of `cid`, `connector`, `agent` and `source` (an address or a
//     network), all of which must hold, and optionally a `reason` for the audit;
//     the answer tells which sessions were ended.
//   - `POST /nowconnect/reevaluate`: the policy has changed behind a policy
//     decision point; forget its answers and judge all live sessions again. The
//     body is JSON, `{}` or `{"connector": "addomain"}`.
//   - `POST /nowconnect/drain`: take the hub out of service. The body is JSON,
//     `{}` or `{"timeout": "30s"}`; the answer, once all is over, the report.
//   - `POST /nowconnect/undrain`: put a drained hub back into service. The body is
//     `{}`. While a drain goes on the answer is 409.
//
// They are there whenever the module is in the build, and answer 503 while no
// nowconnect app runs.
type API struct{}

// CaddyModule returns the Caddy module information.
func (API) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.nowconnect",
		New: func() caddy.Module { return new(API) },
	}
}

// Routes implements caddy.AdminRouter.
func (API) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/nowconnect/agents", Handler: get(agents)},
		{Pattern: "/nowconnect/sessions", Handler: get(sessions)},
		{Pattern: "/nowconnect/doctor", Handler: get(doctor)},
		{Pattern: "/nowconnect/sessions/revoke", Handler: post(revoke)},
		{Pattern: "/nowconnect/reevaluate", Handler: post(reevaluate)},
		{Pattern: "/nowconnect/drain", Handler: post(drain)},
		{Pattern: "/nowconnect/undrain", Handler: post(undrain)},
	}
}

// get makes a handler that only reads.
func get(answer func(*nowconnect.App, *http.Request) (any, error)) caddy.AdminHandler {
	return caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if err := allow(r, http.MethodGet); err != nil {
			return err
		}
		app, err := activeApp()
		if err != nil {
			return err
		}
		v, err := answer(app, r)
		if err != nil {
			return err
		}
		return reply(w, v)
	})
}

// post makes a handler that changes something as its JSON body says.
func post[T any](act func(*nowconnect.App, T) (any, error)) caddy.AdminHandler {
	return caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		if err := allow(r, http.MethodPost); err != nil {
			return err
		}
		var body T
		if err := read(r, &body); err != nil {
			return err
		}
		app, err := activeApp()
		if err != nil {
			return err
		}
		v, err := act(app, body)
		if err != nil {
			return err
		}
		return reply(w, v)
	})
}

// maxBody is far more than any request needs.
const maxBody = 4 << 10

// read reads a JSON body.
func read(r *http.Request, body any) error {
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return caddy.APIError{HTTPStatus: http.StatusUnsupportedMediaType, Err: errors.New("the body must be application/json")}
	}
	dec := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(body); err != nil {
		return badRequest(fmt.Errorf("read the body: %w", err))
	}
	return nil
}

func badRequest(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
}

func checkConnector(app *nowconnect.App, name string) error {
	if name != "" && !app.HasConnector(name) {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("connector %q is not configured", name)}
	}
	return nil
}

// agentsAnswer is the hub's status without what health checks are for.
type agentsAnswer struct {
	Draining   bool                  `json:"draining"`
	Connectors []hub.ConnectorStatus `json:"connectors"`
	Agents     []hub.AgentStatus     `json:"agents"`
}

func agents(app *nowconnect.App, _ *http.Request) (any, error) {
	s := app.Hub().Status()
	return agentsAnswer{s.Draining, s.Connectors, s.Agents}, nil
}

func sessions(app *nowconnect.App, r *http.Request) (any, error) {
	name := r.URL.Query().Get("connector")
	if err := checkConnector(app, name); err != nil {
		return nil, err
	}
	return app.Hub().Sessions(name), nil
}

// drainReport is hub.DrainReport as JSON.
type drainReport struct {
	Finished int      `json:"finished"` // sessions that ended by themselves
	Cut      []string `json:"cut"`      // sessions that had to be ended
	Links    int      `json:"links"`    // links that were closed
	Took     string   `json:"took"`
}

type drainRequest struct {
	Timeout caddy.Duration `json:"timeout"`
}

func drain(app *nowconnect.App, body drainRequest) (any, error) {
	patience := time.Duration(body.Timeout)
	switch {
	case patience < 0:
		return nil, badRequest(errors.New("timeout is negative"))
	case patience == 0:
		patience = app.DrainPatience()
	}
	// Not the request's context: a client that goes away does not cut sessions.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d := app.Hub().Drain(ctx)
	if d.Cut == nil {
		d.Cut = []string{}
	}
	return drainReport{d.Finished, d.Cut, d.Links, d.Took.String()}, nil
}

// undrainAnswer is what an undrained hub is.
type undrainAnswer struct {
	Draining bool `json:"draining"`
}

func undrain(app *nowconnect.App, _ struct{}) (any, error) {
	if err := app.Hub().Undrain(); err != nil {
		return nil, caddy.APIError{HTTPStatus: http.StatusConflict, Err: err}
	}
	return undrainAnswer{app.Hub().Draining()}, nil
}

func allow(r *http.Request, method string) error {
	if r.Method == method {
		return nil
	}
	return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method %s not allowed, only %s", r.Method, method)}
}

// activeApp finds the app anew for each request; see the package's invariants.
func activeApp() (*nowconnect.App, error) {
	v, err := caddy.ActiveContext().AppIfConfigured("nowconnect")
	if app, ok := v.(*nowconnect.App); err == nil && ok {
		return app, nil
	}
	return nil, caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: errors.New("no nowconnect app is running")}
}

func reply(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "\t")
	return enc.Encode(v)
}

// Interface guard
var _ caddy.AdminRouter = (*API)(nil)
