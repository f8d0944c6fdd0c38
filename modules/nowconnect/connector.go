package nowconnect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Connector is a TCP service on the premises that clients reach under a name.
// What the service's address is, only the agent knows.
type Connector struct {
	// Agents names the agents that may serve this connector. An agent that is
	// not named is not used, whatever it announces. Required.
	Agents []string `json:"agents,omitempty"`

	// Balance chooses among connected agents: `first` (in the order of
	// `agents`), `round_robin`, or `least_sessions`. Default: least_sessions.
	Balance string `json:"balance,omitempty"`

	// Protocol is `tcp` or `ldap`. With `ldap`, a client whose connection the
	// hub has to end gets an LDAP Notice of Disconnection where that is
	// possible, instead of a bare close. Bytes pass untouched either way.
	// Default: tcp.
	Protocol string `json:"protocol,omitempty"`

	// MaxSessions bounds the connector's live sessions. Default: 0, no bound
	// but the app's.
	MaxSessions int `json:"max_sessions,omitempty"`

	// MaxSessionsPerClient bounds the live sessions of one client address.
	// Clients behind one NAT count as one. Default: 0, no bound.
	MaxSessionsPerClient int `json:"max_sessions_per_client,omitempty"`

	// AllowCIDRs lists the networks, or single addresses, that clients may
	// come from. It is checked before the policy is asked. Default: empty, any
	// address.
	AllowCIDRs []string `json:"allow_cidrs,omitempty"`

	// QueueDepth bounds each session's queue from agent to client, in frames of
	// up to 16 KiB, from 1 to 4096. One stream needs bandwidth times round trip
	// of it: 256 fills 500 Mbit/s at 40 ms. Default: 256.
	QueueDepth int `json:"queue_depth_per_cid,omitempty"`

	// ConnectTimeout bounds the time from asking the agent for a connection
	// until the service has accepted it. Default: 3s.
	ConnectTimeout caddy.Duration `json:"connect_timeout,omitempty"`

	// IdleTimeout ends sessions on which no byte has passed for so long. It
	// also ends pooled connections that their owner believes to be alive.
	// Default: 0, never.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// Grace is the same as the app's, for this connector alone.
	Grace caddy.Duration `json:"grace,omitempty"`

	// PDPRaw is a policy decision point for this connector alone, or a list of
	// them, in place of the app's.
	PDPRaw PDPs `json:"pdp,omitempty" caddy:"namespace=nowconnect.pdp inline_key=engine"`

	pdp authz.Decider // nil: the app's
}

// Balances lists the values of Balance, the default first.
var Balances = []string{
	string(hub.BalanceLeastSessions), string(hub.BalanceRoundRobin), string(hub.BalanceFirst),
}

// Protocols lists the values of Protocol, the default first.
var Protocols = []string{"tcp", "ldap"}

// Bounds of a connector's settings.
const maxQueueDepth = wire.MaxWindow / wire.MaxFrame

// build checks the connector and makes the hub's view of it.
func (c *Connector) build(name string, app *App) (*hub.Connector, error) {
	hc, err := c.hubConnector(name, app)
	if err != nil {
		return nil, fmt.Errorf("connector %q: %w", name, err)
	}
	return hc, nil
}

func (c *Connector) hubConnector(name string, app *App) (*hub.Connector, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := c.checkAgents(); err != nil {
		return nil, err
	}
	if err := c.checkBounds(); err != nil {
		return nil, err
	}
	if c.Balance != "" && !slices.Contains(Balances, c.Balance) {
		return nil, fmt.Errorf("balance %q is not one of %q", c.Balance, Balances)
	}
	if c.Protocol != "" && !slices.Contains(Protocols, c.Protocol) {
		return nil, fmt.Errorf("protocol %q is not one of %q", c.Protocol, Protocols)
	}
	prefixes, err := ParsePrefixes(c.AllowCIDRs)
	if err != nil {
		return nil, fmt.Errorf("allow_cidrs: %w", err)
	}
	decider := c.pdp
	if decider == nil {
		decider = app.pdp
	}
	if decider == nil {
		return nil, errNoPDP
	}
	grace := c.Grace
	if grace == 0 {
		grace = app.Grace
	}
	return &hub.Connector{
		Name:                 name,
		Agents:               slices.Clone(c.Agents),
		Balance:              hub.Balance(c.Balance), // its default is ours
		MaxSessions:          c.MaxSessions,
		MaxSessionsPerClient: c.MaxSessionsPerClient,
		AllowCIDRs:           prefixes,
		QueueDepth:           c.QueueDepth,
		ConnectTimeout:       time.Duration(c.ConnectTimeout),
		IdleTimeout:          time.Duration(c.IdleTimeout),
		LDAP:                 c.Protocol == "ldap",
		Grace:                time.Duration(grace),
		Decider:              decider,
	}, nil
}

func (c *Connector) checkAgents() error {
	if len(c.Agents) == 0 {
		return fmt.Errorf("no agents: name those that may serve it")
	}
	for i, id := range c.Agents {
		if err := CheckName(id); err != nil {
			return fmt.Errorf("agents: %w", err)
		}
		if slices.Contains(c.Agents[:i], id) {
			return fmt.Errorf("agents: %q twice", id)
		}
	}
	return nil
}

func (c *Connector) checkBounds() error {
	switch {
	case c.MaxSessions < 0:
		return fmt.Errorf("max_sessions is %d, not 0 (no bound) or more", c.MaxSessions)
	case c.MaxSessionsPerClient < 0:
		return fmt.Errorf("max_sessions_per_client is %d, not 0 (no bound) or more", c.MaxSessionsPerClient)
	case c.QueueDepth < 0 || c.QueueDepth > maxQueueDepth:
		return fmt.Errorf("queue_depth_per_cid is %d, not 1 to %d", c.QueueDepth, maxQueueDepth)
	case c.ConnectTimeout < 0:
		return fmt.Errorf("connect_timeout is negative")
	case c.IdleTimeout < 0:
		return fmt.Errorf("idle_timeout is negative")
	}
	return nil
}

// CheckName reports whether s can name a hub, agent or connector, as
// wire.CheckName does, in words for whoever wrote a configuration.
func CheckName(s string) error {
	if err := wire.CheckName(s); err != nil {
		return errors.New(strings.TrimSuffix(err.Error(), ": "+wire.ErrBadHandshake.Error()))
	}
	return nil
}

// ParsePrefixes reads networks and single addresses. It refuses what looks
// like a network and is not, such as 10.1.2.3/8: whoever wrote it meant
// something else than 10.0.0.0/8 says.
func ParsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, err
		}
		if slices.Contains(out, p) {
			return nil, fmt.Errorf("%s twice", s)
		}
		out = append(out, p)
	}
	return out, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%s has a zone, which no policy can rely on", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network in CIDR form", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 network in IPv6 form: write it as IPv4", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits set right of the prefix: the network is %s", s, p.Masked())
	}
	return p, nil
}
