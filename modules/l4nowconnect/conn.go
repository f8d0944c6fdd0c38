package l4nowconnect

import (
	"net"
	"net/netip"

	"github.com/mholt/caddy-l4/layer4"
)

// maxLayers bounds the walk down a connection. Nobody stacks that many.
const maxLayers = 16

type closeWriter interface{ CloseWrite() error }

// endpoint finds what to move bytes on and the socket below it. The first is c
// itself, not the layer4.Connection around it, which has no half-close and
// hides the socket from the kernel's fast paths. Where c has no half-close
// either, as with the PROXY protocol, it borrows that of the first layer below
// that has one. Layers that hide what is below them (throttle, tee) have no
// half-close and no socket: there an RST becomes a close.
func endpoint(c net.Conn) (net.Conn, *net.TCPConn) {
	var half closeWriter
	for layer, n := c, 0; layer != nil && n < maxLayers; layer, n = below(layer), n+1 {
		if cw, ok := layer.(closeWriter); ok && half == nil {
			half = cw
		}
		if tcp, ok := layer.(*net.TCPConn); ok {
			if _, ok := c.(closeWriter); !ok {
				c = &halfCloser{Conn: c, below: half}
			}
			return c, tcp
		}
	}
	return c, nil
}

// below returns the connection that c is built on, or nil.
func below(c net.Conn) net.Conn {
	switch c := c.(type) {
	case *layer4.Connection:
		return c.Conn
	case interface{ NetConn() net.Conn }: // tls.Conn
		return c.NetConn()
	case interface{ Raw() net.Conn }: // proxyproto.Conn
		return c.Raw()
	}
	return nil
}

// halfCloser gives a connection the half-close of a layer below it. That is
// right for layers that pass written bytes on unchanged.
type halfCloser struct {
	net.Conn
	below closeWriter
}

// CloseWrite ends the direction towards the client.
func (h *halfCloser) CloseWrite() error { return h.below.CloseWrite() }

// addrPort returns the address in the form that policies see: IPv4 as IPv4.
// It is the zero value for what is no IP address, such as a unix socket's.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
