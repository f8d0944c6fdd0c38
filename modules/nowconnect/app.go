package nowconnect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

func init() {
	caddy.RegisterModule(&App{})
}

// App gives cloud clients a way to TCP services inside a company network. It
// owns the hub that agents connect to, the named services behind them
// (connectors), and the policy that decides who may use which.
//
// A reload swaps the policy; links to agents and the sessions on them stay, and
// live sessions are judged again under the new policy. When Caddy exits, the
// hub drains: it takes no new session and lets the live ones finish for
// `drain_timeout`.
//
// The app does not load without `agent_auth`, nor without a policy decision
// point (`pdp`) for every connector.
type App struct {
	// HubID names this hub in logs, in the context of policy requests and to
	// agents. Letters, digits, dots, hyphens and underscores. Default: the
	// host's name.
	HubID string `json:"hub_id,omitempty"`

	// AgentAuthRaw lists the ways in which agents prove who they are. They are
	// asked in order, and one must know the agent. Required.
	AgentAuthRaw []json.RawMessage `json:"agent_auth,omitempty" caddy:"namespace=nowconnect.agent_auth inline_key=method"`

	// PDPRaw is the policy decision point asked for every client connection,
	// unless the connector has its own: one module, or a list of them, which are
	// asked in order until one does not allow. Required when a connector has
	// none; the module `allow_all` is the explicit way to let everybody in.
	PDPRaw PDPs `json:"pdp,omitempty" caddy:"namespace=nowconnect.pdp inline_key=engine"`

	// Connectors maps each connector's name to its settings. The name is also a
	// metric label and the policy's resource id: 1 to 64 letters, digits, dots,
	// hyphens and underscores.
	Connectors map[string]*Connector `json:"connectors,omitempty"`

	// MaxSessions bounds the live sessions over all connectors. Each costs
	// memory and two file descriptors at most. Default: 20000.
	MaxSessions int `json:"max_sessions,omitempty"`

	// MaxLinksPerAgent bounds the links that one agent may hold, from 1 to 16.
	// Default: 8.
	MaxLinksPerAgent int `json:"max_links_per_agent,omitempty"`

	// AgentMemory bounds, in bytes, what all sessions of one agent together may
	// have waiting in the hub. At least 1048576. Default: 268435456 (256 MiB).
	AgentMemory int64 `json:"agent_memory,omitempty"`

	// CongestionControl is TCP's on the hub's end of links: `auto` is BBR where the
	// kernel has it and lets us, which keeps a link fast that loses packets;
	// `system` leaves it to the system; anything else is the name of an algorithm,
	// such as `cubic`. The log tells what a link got. It holds for links that
	// begin after the reload. Default: auto.
	CongestionControl string `json:"congestion_control,omitempty"`

	// PingInterval is how often the hub pings each link. Keep it below the idle
	// timeout of any proxy in between. Default: 20s.
	PingInterval caddy.Duration `json:"ping_interval,omitempty"`

	// PingTimeout is how long an answer to a ping may take before the link
	// counts as lost and its sessions are reset. Default: 20s.
	PingTimeout caddy.Duration `json:"ping_timeout,omitempty"`

	// HandshakeTimeout bounds the time from the HTTP upgrade to the end of the
	// agent's HELLO. Default: 10s.
	HandshakeTimeout caddy.Duration `json:"handshake_timeout,omitempty"`

	// DrainTimeout is how long live sessions may go on when Caddy exits; then
	// they are cut and the log tells how many. The service manager must wait
	// longer than this. Default: 30s.
	DrainTimeout caddy.Duration `json:"drain_timeout,omitempty"`

	// AuthGrace is how long sessions go on when the token or certificate of
	// their agent's link has expired and was not renewed; new sessions are not
	// placed on the link from the expiry on, and after the grace it ends. Longer
	// forgives a provider or a timer that is late, and lets a credential that
	// nobody renews work for longer. At most 1h. Default: 30s.
	AuthGrace caddy.Duration `json:"auth_grace,omitempty"`

	// Grace is how long a live session goes on when it is to be judged again and
	// the policy decision point gives no answer. It is asked again all the
	// while, and if it has not answered by then, the session ends. Default: 15s;
	// a negative value ends it at the first error.
	Grace caddy.Duration `json:"grace,omitempty"`

	// Audit sets up the log of decisions. Default: everything is logged.
	Audit *Audit `json:"audit,omitempty"`

	// MetricsRaw sets up the module `nowconnect.metrics`. Default: its own
	// defaults; the metrics are always there.
	MetricsRaw json.RawMessage `json:"metrics,omitempty"`

	// owned by Provision; read-only afterwards
	ctx       caddy.Context
	logger    *zap.Logger
	auth      []AgentAuthenticator
	pdp       authz.Decider // nil when every connector has its own
	engines   []*engine     // all policy modules
	cfg       *hub.Config
	hub       *pooledHub // nil until taken from the pool
	checks    checks     // of modules that are provisioned later
	committed atomic.Bool
	cleaned   atomic.Bool
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect",
		New: func() caddy.Module { return new(App) },
	}
}

// minAgentMemory lets a few sessions of an agent make progress at once.
const minAgentMemory = 1 << 20

// maxAuthGrace keeps an expired credential from being as good as a valid one.
const maxAuthGrace = time.Hour

// Provision loads the guests, builds the hub's configuration and takes a
// reference to the hub. The hub learns of it only when the whole of Caddy has
// started with this configuration.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = ctx.Logger()
	if err := a.checkLimits(); err != nil {
		return err
	}
	if err := a.loadAuth(); err != nil {
		return err
	}
	if err := a.loadPDPs(); err != nil {
		return err
	}
	if err := a.buildConfig(); err != nil {
		return err
	}
	if err := a.takeHub(); err != nil {
		return err
	}
	a.listen()
	return a.commitOnStarted()
}

func (a *App) checkLimits() error {
	if a.HubID != "" {
		if err := CheckName(a.HubID); err != nil {
			return fmt.Errorf("hub_id: %w", err)
		}
	}
	if a.CongestionControl != "" {
		if err := tunnel.CheckCongestionControl(a.CongestionControl); err != nil {
			return fmt.Errorf("congestion_control: %w", err)
		}
	}
	if a.MaxSessions < 0 {
		return fmt.Errorf("max_sessions is %d, not 0 (default) or more", a.MaxSessions)
	}
	if a.MaxLinksPerAgent < 0 || a.MaxLinksPerAgent > wire.MaxLinks {
		return fmt.Errorf("max_links_per_agent is %d, not 1 to %d", a.MaxLinksPerAgent, wire.MaxLinks)
	}
	if a.AgentMemory != 0 && a.AgentMemory < minAgentMemory {
		return fmt.Errorf("agent_memory is %d bytes, at least %d", a.AgentMemory, minAgentMemory)
	}
	if err := a.Audit.check(); err != nil {
		return err
	}
	for _, d := range []struct {
		name  string
		value caddy.Duration
	}{
		{"ping_interval", a.PingInterval},
		{"ping_timeout", a.PingTimeout},
		{"handshake_timeout", a.HandshakeTimeout},
		{"drain_timeout", a.DrainTimeout},
		{"auth_grace", a.AuthGrace},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s is negative", d.name)
		}
	}
	if g := time.Duration(a.AuthGrace); g > maxAuthGrace {
		return fmt.Errorf("auth_grace is %v, at most %v", g, maxAuthGrace)
	}
	return nil
}

// buildConfig makes the hub's view of this configuration.
func (a *App) buildConfig() error {
	a.cfg = &hub.Config{
		ID:               a.hubID(),
		Connectors:       make(map[string]*hub.Connector, len(a.Connectors)),
		Agents:           a.knownAgents(),
		MaxSessions:      a.MaxSessions,
		MaxLinksPerAgent: a.MaxLinksPerAgent,
		AgentMemory:      a.AgentMemory,
		PingInterval:     time.Duration(a.PingInterval),
		PingTimeout:      time.Duration(a.PingTimeout),
		DrainTimeout:     time.Duration(a.DrainTimeout),
		HandshakeTimeout: time.Duration(a.HandshakeTimeout),
		StillValid:       stillValid(a.auth),
		Reauthenticate:   a.reauthenticate,
		AuthGrace:        time.Duration(a.AuthGrace),
	}
	for name, c := range a.Connectors {
		hc, err := c.build(name, a)
		if err != nil {
			return err
		}
		a.cfg.Connectors[name] = hc
	}
	return nil
}

func (a *App) hubID() string {
	if a.HubID != "" {
		return a.HubID
	}
	host, err := os.Hostname()
	if err != nil {
		return "hub"
	}
	return host
}

// Validate checks what one part of the configuration says about another.
func (a *App) Validate() error {
	if err := a.checkAgents(); err != nil {
		return err
	}
	if len(a.Connectors) == 0 {
		a.logger.Warn("no connector is configured: agents can log in, but no client can connect")
	}
	return nil
}

// Start checks for listeners that would take each other's connections. It can
// do so only now, when every app has been provisioned. It commits nothing:
// another app may yet fail to start.
func (a *App) Start() error {
	return a.checkPorts()
}

// Stop drains the hub when Caddy exits. On a reload it does nothing, because
// links and sessions go on under the new configuration.
func (a *App) Stop() error {
	if !caddy.Exiting() || a.hub == nil || !a.committed.Load() {
		return nil
	}
	patience := a.DrainPatience()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a.logger.Info("draining", zap.Duration("drain_timeout", patience))
	a.hub.Drain(ctx) // and the hub logs its report
	return nil
}

// Cleanup gives the hub back. It is enough by itself: Caddy calls it without
// Stop when the configuration failed to load, and after half a Provision.
func (a *App) Cleanup() error {
	if !a.cleaned.CompareAndSwap(false, true) {
		return nil
	}
	a.stopListening()
	uncommit(a)
	if a.hub == nil {
		return nil
	}
	_, err := hubs.Delete(hubKey)
	return err
}

// Hub returns the process-wide hub.
func (a *App) Hub() *hub.Hub { return a.hub.Hub }

// HasConnector reports whether the configuration names this connector.
func (a *App) HasConnector(name string) bool {
	_, ok := a.Connectors[name]
	return ok
}

// Logger returns the app's logger. Modules that log for a connection long after
// their own configuration was replaced use that of [Current].
func (a *App) Logger() *zap.Logger { return a.logger }

// DrainPatience is how long live sessions may go on in a drain.
func (a *App) DrainPatience() time.Duration {
	if a.DrainTimeout == 0 {
		return hub.DefaultDrainTimeout
	}
	return time.Duration(a.DrainTimeout)
}

// LinkTimeout is after how much silence a link's socket may give up: no pong
// can still come in time then.
func (a *App) LinkTimeout() time.Duration {
	interval, timeout := time.Duration(a.PingInterval), time.Duration(a.PingTimeout)
	if interval == 0 {
		interval = tunnel.DefaultPing
	}
	if timeout == 0 {
		timeout = tunnel.DefaultPing
	}
	return interval + timeout
}

// Authenticate asks each authenticator in turn who sent r. When none knows, the
// error is that of the first one that found a credential to judge, or
// [ErrNoCredential].
func (a *App) Authenticate(r *http.Request) (hub.Identity, error) {
	var refused error
	for _, auth := range a.auth {
		id, err := auth.Authenticate(r)
		if err == nil {
			return id, nil
		}
		if refused == nil && !errors.Is(err, ErrNoCredential) {
			refused = err
		}
	}
	if refused == nil {
		refused = ErrNoCredential
	}
	return hub.Identity{}, refused
}

// FromContext returns the app of the configuration being loaded. Modules call
// it in Provision.
func FromContext(ctx caddy.Context) (*App, error) {
	app, err := ctx.AppIfConfigured("nowconnect")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, errors.New("the nowconnect app is not configured: add a nowconnect block to the global options")
	}
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
