package nowconnect

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/obs"
)

// hubs holds the one hub of the process, counted by the configurations that use
// it. During a reload there are two.
var hubs = caddy.NewUsagePool()

const hubKey = "hub"

// pooledHub closes the hub when the last configuration has let it go.
type pooledHub struct {
	*hub.Hub
	options obs.Options // as the hub was made; fixed for its life
}

// Destruct implements caddy.Destructor.
func (p *pooledHub) Destruct() error {
	p.Close()
	return nil
}

// takeHub takes a reference to the hub, making it if it is not there, and puts
// its metrics into this configuration's registry.
func (a *App) takeHub() error {
	exporter, err := a.loadMetrics()
	if err != nil {
		return err
	}
	var options obs.Options
	if exporter != nil {
		options = exporter.Options()
	}
	v, _, err := hubs.LoadOrNew(hubKey, func() (caddy.Destructor, error) {
		return &pooledHub{Hub: hub.New(a.logger, obs.New(options)), options: options}, nil
	})
	if err != nil {
		return err
	}
	a.hub = v.(*pooledHub)
	if a.hub.options != options {
		a.logger.Warn("changed metrics options take effect when Caddy starts anew, because a reload keeps the metrics")
	}
	if exporter == nil {
		return nil
	}
	return exporter.Export(a.ctx.GetMetricsRegistry(), a.hub.Hub)
}

var (
	current  atomic.Pointer[App] // the committed app; nil when there is none
	commitMu sync.Mutex          // held while current changes and the hub is told
)

// Current returns the app of the configuration in force, or nil. Callers ask
// anew for each connection and do not keep the answer: it pins that whole
// configuration in memory and is stale after the next reload.
func Current() *App { return current.Load() }

// commitOnStarted asks for the event that Caddy emits once every app has
// started. It never comes for a configuration that fails to load.
func (a *App) commitOnStarted() error {
	app, err := a.ctx.App("events")
	if err != nil {
		return err
	}
	return app.(*caddyevents.App).On("started", &startedHandler{app: a})
}

// startedHandler has no exported field, because the events app logs handlers.
type startedHandler struct{ app *App }

// Handle implements caddyevents.Handler.
func (h *startedHandler) Handle(_ context.Context, e caddy.Event) error {
	if e.Origin() == nil { // from Caddy's core, not from a module with an event of that name
		commit(h.app)
	}
	return nil
}

func commit(a *App) {
	commitMu.Lock()
	defer commitMu.Unlock()
	if a.cleaned.Load() {
		return
	}
	commitLocked(a)
}

// commitLocked puts a in force. The authenticators come first: Apply cuts the
// links whose credential no longer holds, and they must not get back in.
func commitLocked(a *App) {
	a.committed.Store(true)
	current.Store(a)
	a.hub.SetLogger(a.logger)
	a.hub.SetAudit(a.AuditLogger(), a.Audit.sampleAllows())
	a.hub.Apply(a.cfg)
	a.logger.Info("configuration in force",
		zap.Int("connectors", len(a.cfg.Connectors)), zap.Int("agents", len(a.cfg.Agents)))
}

// uncommit takes a out of force if it is. Caddy can still give up a
// configuration after it has said "started" (its remote admin endpoint may
// fail); then the one before, which never stopped, is put in force again. What
// the other did not allow is gone by then: nobody could know that it would not
// last.
func uncommit(a *App) {
	commitMu.Lock()
	defer commitMu.Unlock()
	if current.Load() != a {
		return
	}
	before, err := caddy.ActiveContext().AppIfConfigured("nowconnect")
	if prev, ok := before.(*App); err == nil && ok && prev != a && !prev.cleaned.Load() {
		commitLocked(prev)
		return
	}
	current.Store(nil)
}

// Interface guards
var (
	_ caddy.Destructor    = (*pooledHub)(nil)
	_ caddyevents.Handler = (*startedHandler)(nil)
)
