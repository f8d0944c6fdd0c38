package l4nowconnect

import (
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// auditLogger returns the logger "nowconnect.audit" of the configuration in
// force: a session may end long after its own was replaced.
func (h *Handler) auditLogger() *zap.Logger {
	if app := nowconnect.Current(); app != nil {
		return app.Logger().Named("audit")
	}
	return h.logger
}

// log writes the one line that a connection gets.
func (h *Handler) log(c *hub.Client, o hub.Outcome) {
	if !refusal(o.Reason) {
		if e := h.auditLogger().Check(zapcore.InfoLevel, "session ended"); e != nil {
			e.Write(fields(c, o)...)
		}
		return
	}
	suppressed, ok := h.refused.Allow()
	if !ok {
		return
	}
	if e := h.auditLogger().Check(zapcore.WarnLevel, "connection refused"); e != nil {
		e.Write(append(fields(c, o), suppressed)...)
	}
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

// refusal reports whether a connection that ends for r never was a session.
func refusal(r wire.Reason) bool {
	switch r {
	case wire.ReasonNoAgent, wire.ReasonDenied, wire.ReasonPDPError, wire.ReasonConnectFailed,
		wire.ReasonConnectTimeout, wire.ReasonLimit, wire.ReasonDraining:
		return true
	}
	return false
}

func fields(c *hub.Client, o hub.Outcome) []zap.Field {
	f := []zap.Field{
		zap.String("session", o.Session),
		zap.String("connector", c.Connector),
		zap.Stringer("client", c.Addr),
		zap.String("listener", c.Listener),
		zap.Stringer("reason", o.Reason),
		zap.Stringer("decision", o.Decision.Outcome),
		zap.String("decision_reason", o.Decision.Reason),
		zap.Int64("bytes_c2a", o.BytesC2A),
		zap.Int64("bytes_a2c", o.BytesA2C),
		zap.Duration("duration", o.Duration),
	}
	for _, s := range [][2]string{{"agent", o.Agent}, {"message", o.Message}, {"policy", o.Decision.Policy}, {"sni", c.SNI}} {
		if s[1] != "" {
			f = append(f, zap.String(s[0], s[1]))
		}
	}
	if c.Subject != nil {
		f = append(f, zap.String("subject_type", c.Subject.Type), zap.String("subject", c.Subject.ID))
	}
	if o.Decision.Err != nil {
		f = append(f, zap.NamedError("decision_error", o.Decision.Err))
	}
	return f
}
