package nowconnect

import (
	"net/netip"
	"slices"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// Decider returns who decides about a connector: its own policy decision point,
// or the app's. With an empty name it is the app's. It is nil when there is no
// such connector, or when the app has none of its own.
func (a *App) Decider(connector string) authz.Decider {
	if connector == "" {
		return a.pdp
	}
	if c := a.cfg.Connectors[connector]; c != nil {
		return c.Decider
	}
	return nil
}

// Admits reports whether a connector's allow_cidrs let clients in from addr.
func (a *App) Admits(connector string, addr netip.Addr) bool {
	c := a.cfg.Connectors[connector]
	return c != nil && (len(c.AllowCIDRs) == 0 ||
		slices.ContainsFunc(c.AllowCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) }))
}

// Name is the hub's, as in the context of policy requests.
func (a *App) Name() string { return a.cfg.ID }
