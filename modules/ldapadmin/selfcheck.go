package ldapadmin

import (
	"context"
	"errors"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// The self-check waits for a directory that is not there yet: after a start
// the agents have to come first.
const (
	firstCheckPause = time.Second
	lastCheckPause  = time.Minute
	checkTime       = 30 * time.Second
)

// watch subscribes to what the handler has to know of Caddy's life.
func (h *Handler) watch(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return err
	}
	events := app.(*caddyevents.App)
	if err := events.On("started", &coreEvent{h.beginSelfCheck}); err != nil {
		return err
	}
	return events.On("stopping", &coreEvent{h.releaseOnExit})
}

// coreEvent calls a function for an event of Caddy's core, not for one of a
// module with that name. It has no exported field, because the events app logs
// handlers.
type coreEvent struct{ call func() error }

// Handle implements caddyevents.Handler.
func (c *coreEvent) Handle(_ context.Context, e caddy.Event) error {
	if e.Origin() != nil {
		return nil
	}
	return c.call()
}

// releaseOnExit lets go of the directory before the hub drains. Caddy cleans
// handlers up only after all apps have stopped, and idle connections of ours
// would be sessions for which the hub waits.
func (h *Handler) releaseOnExit() error {
	if caddy.Exiting() {
		return h.Cleanup()
	}
	return nil
}

// beginSelfCheck looks in the background whether the directory is as the
// configuration says, so that a mistake is in the log before the first caller
// meets it.
func (h *Handler) beginSelfCheck() error {
	h.backend.inBackground(h.selfCheck)
	return nil
}

// selfCheck tries until the directory answers, or ctx ends. A refused account
// is not tried again: that could lock it.
func (h *Handler) selfCheck(ctx context.Context) {
	for pause := firstCheckPause; ; pause = min(2*pause, lastCheckPause) {
		attempt, cancel := context.WithTimeout(ctx, checkTime)
		report, err := h.backend.engine.Check(attempt)
		cancel()
		if ctx.Err() != nil {
			return
		}
		var e *ldapgroup.Error
		waiting := errors.As(err, &e) && (e.Class == ldapgroup.ClassUnavailable || e.Class == ldapgroup.ClassTimeout)
		if !waiting {
			h.logReport(report)
			return
		}
		if pause == firstCheckPause {
			h.logger.Info("the directory cannot be checked yet", zap.String("connector", h.name), zap.Error(err))
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// examine looks at the directory for an operator who asks now.
func (h *Handler) examine(ctx context.Context) []nowconnect.Finding {
	if !h.backend.acquire() {
		return nil // the configuration is on its way out
	}
	defer h.backend.release()
	report, _ := h.backend.engine.Check(ctx) // whose last finding is the error
	found := make([]nowconnect.Finding, len(report.Findings))
	for i, f := range report.Findings {
		found[i] = nowconnect.Finding{Place: h.name, What: f.What, Target: f.Target, OK: f.OK, Detail: f.Detail}
	}
	return found
}

func (h *Handler) logReport(r *ldapgroup.Report) {
	for _, f := range r.Findings {
		fields := []zap.Field{
			zap.String("connector", h.name), zap.String("what", f.What), zap.String("target", f.Target), zap.String("detail", f.Detail),
		}
		if f.OK {
			h.logger.Debug("directory checked", fields...)
			continue
		}
		h.logger.Error("the directory is not as the configuration says", fields...)
	}
	if r.OK() {
		h.logger.Info("directory checked", zap.String("connector", h.name), zap.Stringer("server", r.Server.Vendor),
			zap.String("version", r.Server.VendorVersion))
	}
}

// Interface guard
var _ caddyevents.Handler = (*coreEvent)(nil)
