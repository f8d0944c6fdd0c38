package l4nowconnect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler connects a client to a connector of the nowconnect app. It is
// terminal: no handler after it runs. The client is who the `tls` handler
// before it has verified by certificate, or else its address, which the
// `proxy_protocol` handler may have corrected for a trusted proxy.
//
// A client that is refused sees a TCP reset, or an LDAP notice if the connector
// says `protocol ldap`. Refusals are logged, at most ten a second.
//
// It does not load inside the `layer4` listener wrapper, because v0.1.2 of that
// wrapper mixes the bytes of different connections.
type Handler struct {
	// Connector is the name of the connector. Required.
	Connector string `json:"connector,omitempty"`

	// TrustedProxies lists the addresses and networks of load balancers whose
	// PROXY header is believed. A connection whose client somebody else has named
	// by such a header is refused: the `allow` of caddy-l4's `proxy_protocol`
	// handler does not keep anybody from it. Default: nobody is trusted.
	TrustedProxies []string `json:"trusted_proxies,omitempty"`

	trusted []netip.Prefix
	hub     *hub.Hub // for connections that come before the first configuration is in force
	logger  *zap.Logger
	refused *nowconnect.LogLimiter
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.handlers.nowconnect",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision checks that the connector exists.
func (h *Handler) Provision(ctx caddy.Context) error {
	for _, m := range ctx.Modules() {
		if _, ok := m.(*layer4.ListenerWrapper); ok {
			return errors.New("inside the layer4 listener wrapper, which mixes the bytes of different connections: listen with the layer4 app")
		}
	}
	if h.Connector == "" {
		return errors.New("no connector: name the one to connect clients to")
	}
	var err error
	if h.trusted, err = nowconnect.ParsePrefixes(h.TrustedProxies); err != nil {
		return fmt.Errorf("trusted_proxies: %w", err)
	}
	app, err := nowconnect.FromContext(ctx)
	if err != nil {
		return err
	}
	if !app.HasConnector(h.Connector) {
		return fmt.Errorf("connector %q is not configured in the nowconnect app", h.Connector)
	}
	h.hub = app.Hub()
	h.logger = ctx.Logger()
	h.refused = nowconnect.NewLogLimiter(10, 50)
	return nil
}

// Handle implements layer4.NextHandler. The hub writes what became of the
// connection into the audit log. Errors from before that go to the log here and not
// to caddy-l4, which would write one line for each, as many as a client likes.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	defer h.survive()
	client, err := h.client(cx)
	if err != nil {
		h.logFailure(cx, err)
		return nil
	}
	h.currentHub().ServeClient(context.Background(), client)
	return nil
}

var errNotTCP = errors.New("only TCP can be tunnelled")

// currentHub looks the hub up without keeping the app, which would pin a whole
// configuration in memory for as long as the session lasts. This handler's own
// hub is another one only if the app has left the configuration since, and
// then it refuses everything.
func (h *Handler) currentHub() *hub.Hub {
	if app := nowconnect.Current(); app != nil {
		return app.Hub()
	}
	return h.hub
}

// client collects what is known about the connection.
func (h *Handler) client(cx *layer4.Connection) (*hub.Client, error) {
	if strings.HasPrefix(cx.LocalAddr().Network(), "udp") {
		return nil, errNotTCP
	}
	if err := h.checkProxied(cx); err != nil {
		return nil, err
	}
	prefix, err := takePrefetched(cx)
	if err != nil {
		return nil, err
	}
	// caddy-l4 sets deadlines while it matches.
	if err := cx.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	conn, tcp := endpoint(cx.Conn)
	if tcp != nil {
		served.learn(tcp.LocalAddr(), h.Connector)
	}
	sni, subject := tlsIdentity(cx)
	return &hub.Client{
		Connector: h.Connector,
		Conn:      conn,
		TCP:       tcp,
		Prefix:    prefix,
		Addr:      addrPort(cx.RemoteAddr()),
		Listener:  listener(cx, tcp),
		SNI:       sni,
		Subject:   subject,
	}, nil
}

// listener is the address that the hub itself listens on. A PROXY header's
// destination is somebody else's.
func listener(cx *layer4.Connection, tcp *net.TCPConn) string {
	if tcp != nil {
		return tcp.LocalAddr().String()
	}
	return cx.LocalAddr().String()
}

// takePrefetched takes the bytes that matchers have read ahead. They are
// copied: their buffer is caddy-l4's. Afterwards the connection below cx goes
// on where they end.
func takePrefetched(cx *layer4.Connection) ([]byte, error) {
	n := len(cx.MatchingBytes())
	if n == 0 {
		return nil, nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(cx, p); err != nil {
		return nil, fmt.Errorf("take prefetched bytes: %w", err)
	}
	return p, nil
}

// survive keeps a panic from ending the process. caddy-l4 closes the
// connection afterwards.
func (h *Handler) survive() {
	if p := recover(); p != nil {
		h.logger.Error("panic while serving a connection",
			zap.Any("panic", p), zap.String("connector", h.Connector), zap.ByteString("stack", debug.Stack()))
	}
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	nowconnect <connector> {
//		trusted_proxies <address>|<network>...
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the handler's name
	if !d.AllArgs(&h.Connector) {
		return d.Err("nowconnect takes the name of one connector")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch {
		case d.Val() != "trusted_proxies":
			return d.Errf("unrecognized option %q of nowconnect", d.Val())
		case h.TrustedProxies != nil:
			return d.Err("trusted_proxies twice in the same block")
		}
		if h.TrustedProxies = d.RemainingArgs(); len(h.TrustedProxies) == 0 {
			return d.Err("trusted_proxies needs at least one address or network")
		}
		if _, err := nowconnect.ParsePrefixes(h.TrustedProxies); err != nil {
			return d.Errf("trusted_proxies: %v", err)
		}
		if d.NextBlock(nesting + 1) {
			return d.Err("trusted_proxies takes no block")
		}
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
)
