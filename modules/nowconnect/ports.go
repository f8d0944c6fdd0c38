package nowconnect

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
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

	transport string // tcp, udp, or empty; a web server counts as tcp alone
	host      string // as hostKey has it
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
	for x, y := range meetings(all) {
		if x.host == y.host {
			return fmt.Errorf("%s and %s both listen on %s: the kernel would deal connections out between them at random", y.server, x.server, x.addr)
		}
		a.logger.Warn("listeners overlap: connections to the single address go to the one that names it",
			zap.String("one", y.server+" on "+y.addr.String()), zap.String("other", x.server+" on "+x.addr.String()))
	}
	return nil
}

// meetings yields each two listeners that share a port of the same transport, on
// the same host or with one of them on all hosts; the second comes first in the
// list. The http app checks its own. Nobody is compared with everybody, since a
// hub may have thousands of listeners and a reload is to be short.
func meetings(all []listener) iter.Seq2[listener, listener] {
	order := make([]int, 0, len(all))
	for i, l := range all {
		if l.transport != "" && l.addr.StartPort != 0 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(all[i].addr.StartPort, all[j].addr.StartPort) })
	return func(yield func(x, y listener) bool) {
		open := make(map[[2]string][]int) // by transport and host: those whose ports are not over yet
		meet := func(i int, key [2]string) bool {
			x := all[i]
			open[key] = slices.DeleteFunc(open[key], func(j int) bool { return all[j].addr.EndPort < x.addr.StartPort })
			if len(open[key]) == 0 {
				delete(open, key)
			}
			for _, j := range open[key] {
				if (x.layer4 || all[j].layer4) && !yield(all[max(i, j)], all[min(i, j)]) {
					return false
				}
			}
			return true
		}
		for _, i := range order {
			x := all[i]
			keys := [][2]string{{x.transport, x.host}, {x.transport, anyHost}}
			if x.host == anyHost {
				keys = slices.Collect(maps.Keys(open))
			}
			for _, key := range slices.Compact(keys) {
				if key[0] == x.transport && !meet(i, key) {
					return
				}
			}
			key := [2]string{x.transport, x.host}
			open[key] = append(open[key], i)
		}
	}
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
			all = append(all, listener{app + " server " + server, l4, addr, transport(addr.Network), hostKey(addr.Host)})
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

// anyHost is the key of a listener on all hosts.
const anyHost = ""

// hostKey is the same for two spellings of a host.
func hostKey(host string) string {
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return strings.ToLower(host)
	case a.Unmap().IsUnspecified():
		return anyHost
	}
	return a.Unmap().String()
}
