package ldapadmin

import (
	"context"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

// releaseOnExit lets go of the directory before the hub drains. Caddy cleans
// handlers up only after all apps have stopped, and idle connections of ours
// would be sessions for which the hub waits.
func (h *Handler) releaseOnExit(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return err
	}
	return app.(*caddyevents.App).On("stopping", &stoppingHandler{h: h})
}

// stoppingHandler has no exported field, because the events app logs handlers.
type stoppingHandler struct{ h *Handler }

// Handle implements caddyevents.Handler.
func (s *stoppingHandler) Handle(_ context.Context, e caddy.Event) error {
	if e.Origin() == nil && caddy.Exiting() {
		return s.h.Cleanup()
	}
	return nil
}

// Interface guard
var _ caddyevents.Handler = (*stoppingHandler)(nil)
