// Package muxhub owns the two Caddy modules that put yamux or smux in the
// place of NowConnect's engine, for the benchmark only: the layer-4 handler
// layer4.handlers.ncbench_mux and the agent endpoint http.handlers.ncbench_mux.
//
// Invariants: clients and agents arrive through the same Caddy listeners, TLS
// set-up and hijack as NowConnect's own; sessions are process-wide, so one
// process measures one engine; there is no policy, metric or limit here, which
// flatters the libraries and not us.
package muxhub

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/nowconnect/nowconnect/bench/mux"
)

func init() {
	caddy.RegisterModule(&Handler{})
	caddy.RegisterModule(&Endpoint{})
	httpcaddyfile.RegisterHandlerDirective("ncbench_mux", parseEndpoint)
	httpcaddyfile.RegisterDirectiveOrder("ncbench_mux", httpcaddyfile.Before, "respond")
}

var links = new(linkSet)

// linkSet hands out live sessions in turn.
type linkSet struct {
	mu   sync.Mutex
	all  []mux.Session // guarded by mu
	next int           // guarded by mu
}

func (l *linkSet) add(s mux.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *linkSet) remove(s mux.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(o mux.Session) bool { return o == s })
}

var errNoAgent = errors.New("no agent")

func (l *linkSet) pick() (mux.Session, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return nil, errNoAgent
	}
	l.next++
	return l.all[l.next%len(l.all)], nil
}

// Handler carries each accepted connection over a stream of the next session.
type Handler struct{}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.ncbench_mux", New: func() caddy.Module { return new(Handler) }}
}

// Handle blocks until the connection is over.
func (*Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	plain, ok := cx.Conn.(*net.TCPConn)
	if !ok || len(cx.MatchingBytes()) > 0 {
		return errors.New("ncbench_mux: want a bare TCP connection without matchers in front")
	}
	s, err := links.pick()
	if err == nil {
		var st mux.Stream
		if st, err = s.Open(); err == nil {
			mux.Relay(plain, st)
			return nil
		}
	}
	_ = plain.SetLinger(0)
	return fmt.Errorf("ncbench_mux: %w", err)
}

// UnmarshalCaddyfile sets up the handler. Syntax:
//
//	ncbench_mux
func (*Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	return nil
}

// Endpoint is where the benchmark's agents connect.
type Endpoint struct {
	Engine string `json:"engine"` // yamux or smux
	Token  string `json:"token"`
}

// CaddyModule returns the Caddy module information.
func (*Endpoint) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.ncbench_mux", New: func() caddy.Module { return new(Endpoint) }}
}

// ServeHTTP upgrades the connection and blocks until its session ends.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	want := "Bearer " + e.Token
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) != 1 {
		return caddyhttp.Error(http.StatusUnauthorized, errors.New("ncbench_mux: wrong token"))
	}
	if r.Header.Get("Upgrade") != mux.UpgradeName {
		return caddyhttp.Error(http.StatusUpgradeRequired, errors.New("ncbench_mux: no upgrade"))
	}
	conn, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return caddyhttp.Error(http.StatusUpgradeRequired, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + mux.UpgradeName + "\r\n\r\n")); err != nil {
		return fmt.Errorf("ncbench_mux: answer upgrade: %w", err)
	}
	s, err := mux.NewSession(e.Engine, conn, brw, true)
	if err != nil {
		return err
	}
	defer s.Close()
	links.add(s)
	defer links.remove(s)
	<-s.Done()
	return nil
}

// parseEndpoint sets up the endpoint. Syntax:
//
//	ncbench_mux [<matcher>] <engine> <token>
func parseEndpoint(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	e := new(Endpoint)
	h.Next()
	if !h.Args(&e.Engine, &e.Token) {
		return nil, h.ArgErr()
	}
	if !slices.Contains(mux.Engines, e.Engine) {
		return nil, h.Errf("unknown engine %q, want one of %v", e.Engine, mux.Engines)
	}
	return e, nil
}

var (
	_ layer4.NextHandler          = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Endpoint)(nil)
)
