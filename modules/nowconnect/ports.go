package nowconnect

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"
)

// listener is one address that a server of this configuration listens on.
type listener struct {
	server string // for messages: app and server name
	layer4 bool
	addr   caddy.NetworkAddress
}

// checkPorts finds listeners that would share a port. Caddy opens every socket
// with SO_REUSEPORT, so the kernel would deal connections out among them at
// random and nobody would get an error: LDAP clients would talk to the web
// server, and web clients to the directory.
func (a *App) checkPorts() error {
	all, err := a.listeners()
	if err != nil {
		return err
	}
	for i, x := range all {
		for _, y := range all[:i] {
			if !x.layer4 && !y.layer4 || !portsMeet(x.addr, y.addr) {
				continue // the http app checks its own
			}
			if sameHost(x.addr.Host, y.addr.Host) {
				return fmt.Errorf("%s and %s both listen on %s: the kernel would deal connections out between them at random", y.server, x.server, x.addr)
			}
			if isWildcard(x.addr.Host) || isWildcard(y.addr.Host) {
				a.logger.Warn("listeners overlap: connections to the single address go to the one that names it",
					zap.String("one", y.server+" on "+y.addr.String()), zap.String("other", x.server+" on "+x.addr.String()))
			}
		}
	}
	return nil
}

// listeners collects the addresses of the http and layer4 apps, in the order of
// their names.
func (a *App) listeners() ([]listener, error) {
	var all []listener
	add := func(app, server string, l4 bool, listen []string) error {
		repl := caddy.NewReplacer()
		for _, s := range listen {
			addr, err := caddy.ParseNetworkAddress(repl.ReplaceAll(s, ""))
			if err != nil {
				return fmt.Errorf("%s server %s: listen address %q: %w", app, server, s, err)
			}
			all = append(all, listener{server: app + " server " + server, layer4: l4, addr: addr})
		}
		return nil
	}
	web, err := configured[*caddyhttp.App](a.ctx, "http")
	if err != nil {
		return nil, err
	}
	if web != nil {
		for _, name := range slices.Sorted(maps.Keys(web.Servers)) {
			if err := add("http", name, false, web.Servers[name].Listen); err != nil {
				return nil, err
			}
		}
	}
	l4, err := configured[*layer4.App](a.ctx, "layer4")
	if err != nil {
		return nil, err
	}
	if l4 != nil {
		for _, name := range slices.Sorted(maps.Keys(l4.Servers)) {
			if err := add("layer4", name, true, l4.Servers[name].Listen); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// configured returns an app of this configuration; nil when it is not in it.
func configured[T caddy.App](ctx caddy.Context, name string) (T, error) {
	var none T
	app, err := ctx.AppIfConfigured(name)
	if errors.Is(err, caddy.ErrNotConfigured) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	t, _ := app.(T)
	return t, nil
}

// portsMeet reports whether x and y share a port of the same transport. A web
// server counts as TCP alone.
func portsMeet(x, y caddy.NetworkAddress) bool {
	return transport(x.Network) != "" && transport(x.Network) == transport(y.Network) &&
		x.StartPort != 0 && x.StartPort <= y.EndPort && y.StartPort <= x.EndPort
}

// Network is the network of TCP addresses such as nowconnect/:389, whose
// listeners layer4.handlers.nowconnect makes.
const Network = "nowconnect"

func transport(network string) string {
	if network == Network {
		return "tcp"
	}
	for _, t := range []string{"tcp", "udp"} {
		if strings.HasPrefix(network, t) {
			return t
		}
	}
	return ""
}

func sameHost(x, y string) bool {
	if isWildcard(x) || isWildcard(y) {
		return isWildcard(x) && isWildcard(y)
	}
	ax, errX := netip.ParseAddr(x)
	ay, errY := netip.ParseAddr(y)
	if errX != nil || errY != nil {
		return strings.EqualFold(x, y)
	}
	return ax.Unmap() == ay.Unmap()
}

func isWildcard(host string) bool {
	if host == "" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsUnspecified()
}
