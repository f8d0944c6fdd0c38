package agentendpoint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler is where agents connect. It turns an authenticated HTTP/1.1 request
// with `Upgrade: nowconnect` or `Upgrade: websocket` into a link to the hub,
// and refuses everything else: requests with an `Origin` header (403), HTTP/2
// and requests without an upgrade (426), agents that no `agent_auth` of the
// nowconnect app knows (401), malformed requests (400), and all while the hub
// drains (503).
//
// Put TLS in front of it: the agent's credential is in the request. Do not put
// the `layer4` listener wrapper of caddy-l4 in front of it, because v0.1.2 of
// that wrapper mixes the bytes of different connections.
type Handler struct {
	// Path is the one path to answer; requests for others go to the next
	// handler. Default: empty, every request that gets here.
	Path string `json:"path,omitempty"`

	// MaxHandshakes bounds the upgrades that are between their request and the
	// end of the agent's HELLO, over the whole process. More get 503 and come
	// back. Default: 1024.
	MaxHandshakes int `json:"max_handshakes,omitempty"`

	logger  *zap.Logger
	refused *nowconnect.LogLimiter
}

const defaultMaxHandshakes = 1024

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.nowconnect_agent",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision makes sure that there is an app to connect agents to.
func (h *Handler) Provision(ctx caddy.Context) error {
	if _, err := nowconnect.FromContext(ctx); err != nil {
		return err
	}
	if h.MaxHandshakes == 0 {
		h.MaxHandshakes = defaultMaxHandshakes
	}
	h.logger = ctx.Logger()
	h.refused = nowconnect.NewLogLimiter(1, 20)
	return nil
}

// Validate checks the settings.
func (h *Handler) Validate() error {
	if h.MaxHandshakes < 0 {
		return fmt.Errorf("max_handshakes is %d, not 0 (default) or more", h.MaxHandshakes)
	}
	if h.Path != "" && h.Path[0] != '/' {
		return fmt.Errorf("path %q does not start with /", h.Path)
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler. For an agent it returns
// when the link has ended.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if h.Path != "" && r.URL.Path != h.Path {
		return next.ServeHTTP(w, r)
	}
	w.Header().Set(headerVersion, strconv.Itoa(wire.Version))
	up, refusal := judge(r)
	if refusal != nil {
		h.logRefused("upgrade refused", r, zap.String("why", refusal.message))
		refusal.write(w, r)
		return nil
	}
	app := nowconnect.Current()
	if app == nil || app.Hub().Draining() {
		draining.write(w, r)
		return nil
	}
	slot := takeSlot(h.MaxHandshakes)
	if slot == nil {
		h.logRefused("upgrade refused", r, zap.String("why", crowded.message))
		crowded.write(w, r)
		return nil
	}
	defer slot.release()
	id, err := authenticate(app, r)
	if err != nil {
		h.logRefused("agent login failed", r, zap.Error(err))
		unauthorized.write(w, r)
		return nil
	}
	// From here on the agent is known.
	if !slot.assign(id.AgentID) {
		h.logRefused("upgrade refused", r, zap.String("agent", id.AgentID), zap.String("why", crowdedAgent.message))
		crowdedAgent.write(w, r)
		return nil
	}
	carrier, err := up.take(w, r, app, slot.release)
	if err != nil {
		return caddyhttp.Error(http.StatusInternalServerError, fmt.Errorf("take over the connection: %w", err))
	}
	serve(app.Hub(), carrier, id, remote(r))
	return nil
}

// serve lends the goroutine to the link. The context is nobody's: the request's
// ends with the first read error and the module's with the next reload, while
// the link ends when the hub says so. How it ended, the hub has logged.
func serve(h *hub.Hub, c tunnel.Carrier, id hub.Identity, remote string) {
	defer func() { _ = c.Close() }()
	_ = h.ServeAgent(context.Background(), c, id, remote)
}

// errOtherAgent is about a credential that is right, but another agent's.
var errOtherAgent = errors.New("the credential is another agent's")

// authenticate asks the app of the configuration in force, which need not be
// the one that this handler was made for.
func authenticate(app *nowconnect.App, r *http.Request) (hub.Identity, error) {
	id, err := app.Authenticate(r)
	if err != nil {
		return id, err
	}
	if hint := r.Header.Get(nowconnect.HeaderAgent); hint != "" && hint != id.AgentID {
		return hub.Identity{}, errOtherAgent
	}
	return id, nil
}

// remote describes where the agent comes from, for logs.
func remote(r *http.Request) string {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	host := hostOf(r.RemoteAddr)
	if ip == "" || ip == host {
		return r.RemoteAddr
	}
	return ip + " via " + r.RemoteAddr
}

// logRefused writes one line about a request of somebody unknown, unless there
// have been too many.
func (h *Handler) logRefused(msg string, r *http.Request, fields ...zap.Field) {
	suppressed, ok := h.refused.Allow()
	if !ok {
		return
	}
	claimed := r.Header.Get(nowconnect.HeaderAgent)
	if wire.CheckName(claimed) != nil {
		claimed = ""
	}
	h.logger.Warn(msg, append(fields, zap.String("claimed_agent", claimed), zap.String("remote", remote(r)), suppressed)...)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
