package nowconnect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// PDPs lists policy decision points in the order in which they are asked. In
// JSON it is a list of modules, or one module without a list around it.
type PDPs []json.RawMessage

// UnmarshalJSON reads either form.
func (p *PDPs) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		return json.Unmarshal(b, (*[]json.RawMessage)(p))
	}
	*p = PDPs{slices.Clone(b)}
	return nil
}

// MarshalJSON writes the short form where it is enough.
func (p PDPs) MarshalJSON() ([]byte, error) {
	if len(p) == 1 {
		return p[0], nil
	}
	return json.Marshal([]json.RawMessage(p))
}

var errNoPDP = errors.New("no pdp: nobody decides who may connect; configure one, or write `pdp allow_all` to let everybody in")

// loadPDPs loads the app's policy modules and those of its connectors, and
// listens to those that can change by themselves.
func (a *App) loadPDPs() error {
	var err error
	var shared []*engine
	if a.pdp, shared, err = a.loadDeciders(a, a.PDPRaw); err != nil {
		return fmt.Errorf("pdp: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(a.Connectors)) {
		c := a.Connectors[name]
		if c == nil {
			return fmt.Errorf("connector %q: no settings", name)
		}
		var own []*engine
		if c.pdp, own, err = a.loadDeciders(c, c.PDPRaw); err != nil {
			return fmt.Errorf("connector %q: pdp: %w", name, err)
		}
		if c.pdp == nil {
			own = shared
		}
		for _, e := range own {
			e.connectors = append(e.connectors, name)
		}
	}
	if a.pdp == nil && len(a.Connectors) == 0 {
		return errNoPDP
	}
	return nil
}

// loadDeciders loads the guests in host's field PDPRaw; the Decider is nil when
// there are none.
func (a *App) loadDeciders(host any, raw PDPs) (authz.Decider, []*engine, error) {
	if len(raw) == 0 {
		return nil, nil, nil
	}
	guests, err := a.ctx.LoadModule(host, "PDPRaw")
	if err != nil {
		return nil, nil, err
	}
	var deciders []authz.Decider
	var engines []*engine
	for _, g := range guests.([]any) {
		d, ok := g.(authz.Decider)
		if !ok {
			return nil, nil, fmt.Errorf("%T cannot decide", g)
		}
		e := &engine{decider: d, name: g.(caddy.Module).CaddyModule().ID.Name(), logger: a.ctx.Logger()}
		deciders, engines = append(deciders, e), append(engines, e)
	}
	a.engines = append(a.engines, engines...)
	return authz.Chain(deciders...), engines, nil
}

// engine is a policy module of this configuration. It makes a panic of the
// module an error, which refuses the one connection: the hub judges live
// sessions in goroutines of its own, where a panic would end the process.
type engine struct {
	decider    authz.Decider
	name       string
	logger     *zap.Logger
	connectors []string // those that it decides about
}

// Decide implements authz.Decider.
func (e *engine) Decide(ctx context.Context, r *authz.Request) (d authz.Decision) {
	defer func() {
		if p := recover(); p != nil {
			d = e.panicked(p)
		}
		d = e.sign(d)
	}()
	return e.decider.Decide(ctx, r)
}

// DecideBatch implements authz.BatchDecider, also for a module that does not.
func (e *engine) DecideBatch(ctx context.Context, rs []*authz.Request) (out []authz.Decision) {
	batch, ok := e.decider.(authz.BatchDecider)
	if !ok {
		return authz.DecideEach(ctx, authz.DeciderFunc(e.Decide), rs, eachAtOnce)
	}
	defer func() {
		if p := recover(); p != nil {
			out = slices.Repeat([]authz.Decision{e.panicked(p)}, len(rs))
		}
		for i, d := range out {
			out[i] = e.sign(d)
		}
	}()
	return authz.DecideAll(ctx, batch, rs)
}

// eachAtOnce bounds the questions to a module that answers them one by one.
const eachAtOnce = 8

func (e *engine) sign(d authz.Decision) authz.Decision {
	if d.Engine == "" {
		d.Engine = e.name
	}
	return d
}

func (e *engine) panicked(p any) authz.Decision {
	e.logger.Error("policy module panicked", zap.String("engine", e.name), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
	return authz.Fail(authz.KindPanic, fmt.Errorf("policy module panicked: %v", p))
}

// flush makes the module forget answers, if it remembers any.
func (e *engine) flush() {
	f, ok := e.decider.(authz.Flusher)
	if !ok {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			_ = e.panicked(p)
		}
	}()
	f.Flush()
}

// listen has live sessions judged again when a module's policy changes. It does
// nothing while this configuration is not in force: when it comes into force all
// are judged.
func (a *App) listen() {
	for _, e := range a.engines {
		if n, ok := e.decider.(authz.Notifier); ok {
			n.OnChange(func() {
				live := a.hub.PolicyChanged(a.cfg, e.connectors...)
				a.logger.Info("policy changed, judging live sessions again",
					zap.String("engine", e.name), zap.Strings("connectors", e.connectors), zap.Int("sessions", live))
			})
		}
	}
}

func (a *App) stopListening() {
	for _, e := range a.engines {
		if n, ok := e.decider.(authz.Notifier); ok {
			n.OnChange(nil)
		}
	}
}

// Reevaluate makes policy modules forget remembered answers and has live
// sessions judged again: those of a connector, or all when it is empty. It
// returns how many there are.
func (a *App) Reevaluate(connector string) (live int) {
	a.FlushPolicy(connector)
	if connector != "" {
		return a.hub.PolicyChanged(a.cfg, connector)
	}
	return a.hub.PolicyChanged(a.cfg, slices.Collect(maps.Keys(a.Connectors))...)
}

// FlushPolicy makes the modules that decide about a connector, or all when it
// is empty, forget remembered answers.
func (a *App) FlushPolicy(connector string) {
	for _, e := range a.engines {
		if connector == "" || slices.Contains(e.connectors, connector) {
			e.flush()
		}
	}
}

// Interface guard
var _ authz.BatchDecider = (*engine)(nil)
