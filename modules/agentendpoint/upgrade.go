package agentendpoint

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // RFC 6455 prescribes it; nothing rests on its strength
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

const (
	webSocketVersion  = "13"
	webSocketProtocol = "nowconnect.v1"
	webSocketGUID     = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455 §1.3
)

// upgrade is a request that may become a link: how it wants to be carried.
type upgrade struct {
	carrier string // tunnel.NativeName or tunnel.WebSocketName
	key     string // Sec-WebSocket-Key; empty for the native carrier
}

func malformed(format string, args ...any) *refusal {
	return &refusal{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

func upgradeRequired(message string) *refusal {
	return &refusal{http.StatusUpgradeRequired, message,
		http.Header{"Upgrade": {tunnel.NativeName + ", " + tunnel.WebSocketName}}}
}

// judge reads how r wants to be carried, or says why it cannot be. It trusts
// nothing in r and does nothing that costs.
func judge(r *http.Request) (upgrade, *refusal) {
	if _, ok := r.Header["Origin"]; ok {
		// Only browsers send it: a page must not open a tunnel with a visitor's
		// network position or cookies.
		return upgrade{}, &refusal{status: http.StatusForbidden, message: "requests from web pages are refused (Origin header)"}
	}
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 {
		return upgrade{}, upgradeRequired("this endpoint needs HTTP/1.1, because a connection of " + r.Proto +
			" cannot become a tunnel; offer only http/1.1 in ALPN")
	}
	if !slices.Contains(tokens(r.Header, "Connection"), "upgrade") {
		return upgrade{}, upgradeRequired("this endpoint is for agents: send Connection: Upgrade and Upgrade: nowconnect or websocket")
	}
	if f := judgeForm(r); f != nil {
		return upgrade{}, f
	}
	switch protocols := tokens(r.Header, "Upgrade"); {
	case slices.Contains(protocols, tunnel.NativeName):
		return judgeNative(r)
	case slices.Contains(protocols, tunnel.WebSocketName):
		return judgeWebSocket(r)
	}
	return upgrade{}, upgradeRequired("unknown Upgrade: this endpoint speaks nowconnect and websocket")
}

// judgeForm checks what both carriers ask of a request.
func judgeForm(r *http.Request) *refusal {
	if r.Method != http.MethodGet {
		return malformed("method %s: an upgrade is a GET", strconv.QuoteToASCII(r.Method))
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		return malformed("an upgrade has no body")
	}
	switch ids := r.Header.Values(nowconnect.HeaderAgent); {
	case len(ids) > 1:
		return malformed("several %s headers", nowconnect.HeaderAgent)
	case len(ids) == 1 && wire.CheckName(ids[0]) != nil:
		return malformed("%s is not an agent id", nowconnect.HeaderAgent)
	}
	return nil
}

func judgeNative(r *http.Request) (upgrade, *refusal) {
	if v := r.Header.Values(headerVersion); len(v) != 1 || v[0] != strconv.Itoa(wire.Version) {
		return upgrade{}, upgradeRequired(fmt.Sprintf("this hub speaks version %d of nowconnect: send %s: %d",
			wire.Version, headerVersion, wire.Version))
	}
	return upgrade{carrier: tunnel.NativeName}, nil
}

func judgeWebSocket(r *http.Request) (upgrade, *refusal) {
	if v := r.Header.Values("Sec-Websocket-Version"); len(v) != 1 || v[0] != webSocketVersion {
		f := upgradeRequired("this hub speaks version 13 of WebSocket")
		f.header.Set("Sec-Websocket-Version", webSocketVersion)
		return upgrade{}, f
	}
	if !slices.Contains(tokens(r.Header, "Sec-Websocket-Protocol"), webSocketProtocol) {
		return upgrade{}, malformed("Sec-WebSocket-Protocol does not offer %s", webSocketProtocol)
	}
	keys := r.Header.Values("Sec-Websocket-Key")
	if len(keys) != 1 {
		return upgrade{}, malformed("%d Sec-WebSocket-Key headers, not 1", len(keys))
	}
	if k, err := base64.StdEncoding.Strict().DecodeString(keys[0]); err != nil || len(k) != 16 {
		return upgrade{}, malformed("Sec-WebSocket-Key is not 16 bytes in base64")
	}
	return upgrade{carrier: tunnel.WebSocketName, key: keys[0]}, nil
}

// take answers 101 and takes the connection from the HTTP server. welcomed is
// called when the first bytes go to the agent, which is the end of the
// handshake, one way or the other.
func (u upgrade) take(w http.ResponseWriter, r *http.Request, app *nowconnect.App, welcomed func()) (tunnel.Carrier, error) {
	h := w.Header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", u.carrier)
	if u.carrier == tunnel.WebSocketName {
		h.Set("Sec-Websocket-Accept", acceptKey(u.key))
		h.Set("Sec-Websocket-Protocol", webSocketProtocol)
	}
	// Before Hijack, so that the server writes it and the access log has it.
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if err := brw.Flush(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	// The server's own deadlines are for requests.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	tunnel.TuneLink(socket(r, conn), app.LinkTimeout(), app.CongestionControl)
	var early io.Reader
	if n := brw.Reader.Buffered(); n > 0 {
		// The agent did not wait for the 101. Past these bytes we read from the
		// connection itself, not through the server's buffer.
		b, _ := brw.Peek(n)
		early = io.MultiReader(bytes.NewReader(bytes.Clone(b)), conn)
	}
	flush := func() error { welcomed(); return nil }
	if g := tunnel.GatherBelow(socket(r, conn)); g != nil {
		g.Collect()
		flush = func() error { welcomed(); return g.Flush() }
	}
	if u.carrier == tunnel.WebSocketName {
		return tunnel.NewWebSocket(conn, early, flush, false), nil
	}
	return tunnel.NewNative(conn, early, flush), nil
}

// socket returns the connection to set socket options on. The hijacked one may
// be a wrapper of Caddy's that hides it; the server has noted the original.
func socket(r *http.Request, hijacked net.Conn) net.Conn {
	if c, ok := r.Context().Value(caddyhttp.ConnCtxKey).(net.Conn); ok {
		return c
	}
	return hijacked
}

func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + webSocketGUID)) //nolint:gosec // see the import
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tokens returns the elements of a comma-separated header, in lower case.
func tokens(h http.Header, name string) []string {
	var out []string
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			out = append(out, strings.ToLower(strings.TrimSpace(t)))
		}
	}
	return out
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
