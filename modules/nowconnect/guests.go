package nowconnect

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/obs"
)

// AgentAuthenticator tells who an agent is. Modules in the namespace
// nowconnect.agent_auth implement it; their methods may be called concurrently
// and after Cleanup.
type AgentAuthenticator interface {
	// Authenticate returns who sent r. It answers [ErrNoCredential] when r has
	// nothing for it to judge, and an error that is [ErrBadCredential] when that
	// is not good; other errors mean that it cannot tell now. No error may
	// contain a secret. A token that renews a live link's credential comes in a
	// request that has the headers Authorization and [HeaderAgent] alone.
	Authenticate(r *http.Request) (hub.Identity, error)
	// StillValid reports whether an identity, which may come from an earlier
	// configuration or from another authenticator, holds under this one.
	StillValid(id hub.Identity) bool
	// AgentIDs lists every agent that it can ever recognise, or is nil when it
	// cannot know that beforehand.
	AgentIDs() []string
}

// MetricsExporter is what the module nowconnect.metrics implements.
type MetricsExporter interface {
	// Options are wanted when the hub is made, once per process.
	Options() obs.Options
	// Export registers the hub's collector with one configuration's registry.
	Export(reg *prometheus.Registry, h *hub.Hub) error
}

// Errors of authentication.
var (
	ErrNoCredential  = errors.New("no credential")
	ErrBadCredential = errors.New("wrong credential")
)

var (
	errNoAuth = errors.New("no agent_auth: nobody can tell who an agent is; configure one, such as `agent_auth token`")
)

// HeaderAgent tells which agent a request says it is from. It helps to choose
// the secret to compare with, and proves nothing.
const HeaderAgent = "Nowconnect-Agent"

// BearerToken returns the token of an Authorization header. It answers
// [ErrNoCredential] when there is no such header or its scheme is another.
func BearerToken(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	switch {
	case len(values) == 0:
		return "", ErrNoCredential
	case len(values) > 1:
		return "", fmt.Errorf("%w: several Authorization headers", ErrBadCredential)
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrNoCredential
	}
	if token = strings.Trim(token, " "); token == "" {
		return "", fmt.Errorf("%w: empty bearer token", ErrBadCredential)
	}
	return token, nil
}

func (a *App) loadAuth() error {
	if len(a.AgentAuthRaw) == 0 {
		return errNoAuth
	}
	guests, err := a.ctx.LoadModule(a, "AgentAuthRaw")
	if err != nil {
		return fmt.Errorf("agent_auth: %w", err)
	}
	for _, g := range guests.([]any) {
		auth, ok := g.(AgentAuthenticator)
		if !ok {
			return fmt.Errorf("agent_auth: %T cannot authenticate agents", g)
		}
		a.auth = append(a.auth, auth)
	}
	return nil
}

// metricsModule is loaded by its full name: it has no siblings to choose from.
const metricsModule = "nowconnect.metrics"

// loadMetrics returns nil when the module is not in this build and nobody asked
// for it.
func (a *App) loadMetrics() (MetricsExporter, error) {
	if _, err := caddy.GetModule(metricsModule); err != nil && len(a.MetricsRaw) == 0 {
		a.logger.Warn("the module " + metricsModule + " is not in this build: there will be no metrics")
		return nil, nil
	}
	guest, err := a.ctx.LoadModuleByID(metricsModule, a.MetricsRaw)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	e, ok := guest.(MetricsExporter)
	if !ok {
		return nil, fmt.Errorf("metrics: %T cannot export", guest)
	}
	return e, nil
}

// knownAgents lists the ids that the authenticators know beforehand, sorted.
func (a *App) knownAgents() []string {
	var ids []string
	for _, auth := range a.auth {
		ids = append(ids, auth.AgentIDs()...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// checkAgents finds agents that a connector names and nobody can ever be, and
// agents that can log in and serve nothing. The first is an error: it is a
// connector without an agent, or a mistyped name that grants nothing today and
// something to whoever gets that name tomorrow.
func (a *App) checkAgents() error {
	known := a.knownAgents()
	open := slices.ContainsFunc(a.auth, func(auth AgentAuthenticator) bool { return auth.AgentIDs() == nil })
	used := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(a.Connectors)) {
		for _, id := range a.Connectors[name].Agents {
			used[id] = true
			if _, ok := slices.BinarySearch(known, id); !ok && !open {
				return fmt.Errorf("connector %q: agent %q is not known to any agent_auth, so it can never log in", name, id)
			}
		}
	}
	for _, id := range known {
		if !used[id] {
			a.logger.Warn("agent can log in, but no connector names it", zap.String("agent", id))
		}
	}
	return nil
}

// stillValid makes the check of a live link's credential under this
// configuration.
func stillValid(auths []AgentAuthenticator) func(hub.Identity) bool {
	return func(id hub.Identity) bool {
		return slices.ContainsFunc(auths, func(auth AgentAuthenticator) bool { return auth.StillValid(id) })
	}
}
