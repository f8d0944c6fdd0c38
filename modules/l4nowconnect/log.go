package l4nowconnect

import (
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// auditLogger returns the logger "nowconnect.audit" of the configuration in
// force. What becomes of a connection that the hub gets, the hub writes there.
func (h *Handler) auditLogger() *zap.Logger {
	if app := nowconnect.Current(); app != nil {
		return app.AuditLogger()
	}
	return h.logger
}

// logFailure counts a connection that never became a client of the hub, and
// writes about it.
func (h *Handler) logFailure(cx *layer4.Connection, err error) {
	h.currentHub().Metrics().Connector(h.Connector).AcceptError()
	if suppressed, ok := h.refused.Allow(); ok {
		h.auditLogger().Warn("connection refused", zap.String("connector", h.Connector),
			zap.Stringer("client", cx.RemoteAddr()), zap.Error(err), suppressed)
	}
}
