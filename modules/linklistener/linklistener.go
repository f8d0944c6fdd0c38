// Package linklistener is the listener wrapper "nowconnect", which gives a
// server's connections a place below TLS where the records of a link gather.
//
// Invariants:
//
//   - It changes nothing about a connection until the agent endpoint has made
//     a link of it: until then every write goes straight through.
//   - It never reads, delays an accept, or closes anything by itself.
package linklistener

import (
	"net"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/nowconnect/nowconnect/internal/tunnel"
)

func init() { caddy.RegisterModule(Wrapper{}) }

// Wrapper makes links cheaper for the hub: crypto/tls writes every record of
// 16 KiB by itself, and with this wrapper below it all records of one batch
// leave in one system call. It is optional; a link without it works the same.
//
// It belongs before `tls` in the listener wrappers of the server that has the
// agent endpoint. On a server without TLS it does nothing; behind `tls` it would
// hide TLS from the HTTP server.
type Wrapper struct{}

// CaddyModule implements caddy.Module.
func (Wrapper) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.listeners.nowconnect", New: func() caddy.Module { return new(Wrapper) }}
}

// WrapListener implements caddy.ListenerWrapper.
func (Wrapper) WrapListener(ln net.Listener) net.Listener { return listener{ln} }

// UnmarshalCaddyfile sets up the wrapper from Caddyfile tokens. Syntax:
//
//	nowconnect
func (Wrapper) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the name
	if d.NextArg() {
		return d.Err("the listener wrapper nowconnect takes no arguments")
	}
	if d.NextBlock(d.Nesting()) {
		return d.Err("the listener wrapper nowconnect takes no block")
	}
	return nil
}

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tunnel.NewGather(c), nil
}

// Interface guards
var (
	_ caddy.ListenerWrapper = (*Wrapper)(nil)
	_ caddyfile.Unmarshaler = (*Wrapper)(nil)
)
