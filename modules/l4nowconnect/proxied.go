package l4nowconnect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	"github.com/pires/go-proxyproto"
)

// checkProxied refuses a connection whose client is named by somebody who is no
// trusted proxy. The proxy_protocol handler of caddy-l4 v0.1.2 believes everybody
// who is not in its deny list, whatever its allow list says: it looks its policy
// up and does not hand it on. Without this, each client could choose the address
// that policy judges.
func (h *Handler) checkProxied(cx *layer4.Connection) error {
	c, ok := l4proxyprotocol.GetConn(cx).(*proxyproto.Conn)
	if !ok || c.ProxyHeader() == nil {
		return nil
	}
	switch peer := bottom(c).(type) {
	case *net.UnixConn: // whoever may open the socket, by its file's mode
		return nil
	case *net.TCPConn:
		addr := addrPort(peer.RemoteAddr())
		if addr == addrPort(cx.RemoteAddr()) || h.trusts(addr.Addr()) {
			return nil // LOCAL, the proxy's own check of our health; or trusted
		}
		return fmt.Errorf("PROXY header from %s, which is not in trusted_proxies", addr.Addr())
	}
	return errors.New("PROXY header from nobody knows whom: another handler hides the socket")
}

func (h *Handler) trusts(proxy netip.Addr) bool {
	return slices.ContainsFunc(h.trusted, func(p netip.Prefix) bool { return p.Contains(proxy) })
}

// bottom is the lowest layer of a connection.
func bottom(c net.Conn) net.Conn {
	for range maxLayers {
		next := below(c)
		if next == nil {
			return c
		}
		c = next
	}
	return nil
}
