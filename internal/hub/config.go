package hub

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Defaults of Config and Connector.
const (
	DefaultMaxSessions      = 20000
	DefaultMaxLinks         = 8
	DefaultAgentMemory      = 256 << 20
	DefaultDrainTimeout     = 30 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultQueueDepth       = 256 // frames: 4 MiB, which fills 500 Mbit/s at 40 ms with room to spare
	DefaultConnectTimeout   = 3 * time.Second
	DefaultAuthGrace        = 30 * time.Second
	DefaultGrace            = 15 * time.Second
)

// Config is what the hub works by. It must not be changed after Apply.
type Config struct {
	// ID names this hub in logs and to agents.
	ID         string
	Connectors map[string]*Connector
	// Agents lists ids that may log in, for metrics at zero; the ids in
	// Connectors need not be repeated.
	Agents []string
	// MaxSessions bounds live client connections over all connectors; 0 means
	// 20000.
	MaxSessions int
	// MaxLinksPerAgent bounds the links of one agent; 0 means 8.
	MaxLinksPerAgent int
	// AgentMemory bounds the bytes that all sessions of one agent may have
	// queued at this hub; 0 means 256 MiB.
	AgentMemory int64
	// PingInterval and PingTimeout as in tunnel.Config; 0 means 20 s.
	PingInterval, PingTimeout time.Duration
	// DrainTimeout bounds how long sessions may go on after an agent was
	// superseded; 0 means 30 s.
	DrainTimeout time.Duration
	// HandshakeTimeout bounds the time from the upgrade to HELLO; 0 means 10 s.
	HandshakeTimeout time.Duration
	// StillValid reports whether a live link's credential is good under this
	// configuration; nil means always.
	StillValid func(Identity) bool
	// Reauthenticate tells whose a bearer token is that came over the live link
	// of agent; it answers [ErrUnavailable] when it cannot tell now. ctx bounds
	// it. No error may hold a part of the token. nil means that links cannot
	// renew their credential.
	Reauthenticate func(ctx context.Context, agent, token string) (Identity, error)
	// AuthGrace is how long sessions go on, on a link whose credential has
	// expired; 0 means 30 s.
	AuthGrace time.Duration
}

// ErrUnavailable is about a credential that cannot be judged now.
var ErrUnavailable = errors.New("credentials cannot be judged now")

// Connector is a named on-premise TCP service.
type Connector struct {
	Name    string
	Agents  []string // who may serve it, in order of preference
	Balance Balance
	// MaxSessions and MaxSessionsPerClient bound live connections, the latter
	// per client IP address; 0 means no own bound.
	MaxSessions, MaxSessionsPerClient int
	// AllowCIDRs lists where clients may come from; empty means anywhere.
	AllowCIDRs []netip.Prefix
	// QueueDepth bounds each session's agent-to-client queue, in frames of 16
	// KiB; 0 means 256.
	QueueDepth int
	// ConnectTimeout bounds the way from OPEN to the target's answer; 0 means
	// 3 s. IdleTimeout ends silent sessions; 0 means never.
	ConnectTimeout, IdleTimeout time.Duration
	// LDAP makes abnormal ends known to clients by a Notice of Disconnection.
	LDAP bool
	// Grace is how long a live session goes on while policy cannot be asked
	// about it again; 0 means 15 s, and below 0 it ends at the first error.
	Grace time.Duration
	// Decider judges each connection. It is never nil.
	Decider authz.Decider
}

// Balance is how sessions spread over a connector's agents.
type Balance string

// The ways to balance.
const (
	BalanceFirst         Balance = "first"          // the first in the list that is connected
	BalanceRoundRobin    Balance = "round_robin"    // in turn
	BalanceLeastSessions Balance = "least_sessions" // the one with the fewest live sessions
)

// Identity is who an agent proved to be.
type Identity struct {
	AgentID    string
	Method     string   // which kind of agent_auth vouched for it
	Credential [32]byte // digest of the credential, to check it again on reload
	// Connectors limits what the credential allows the agent to serve; nil
	// means no limit beyond the configuration's.
	Connectors []string
	Expires    time.Time // zero means never
	// Bound means that the connection itself proves the credential, as with a
	// client certificate: only a new link can carry a new one.
	Bound bool
}

func (c *Config) setDefaults() {
	setDefault(&c.MaxSessions, DefaultMaxSessions)
	setDefault(&c.MaxLinksPerAgent, DefaultMaxLinks)
	c.MaxLinksPerAgent = min(c.MaxLinksPerAgent, wire.MaxLinks)
	setDefault(&c.AgentMemory, DefaultAgentMemory)
	setDefault(&c.DrainTimeout, DefaultDrainTimeout)
	setDefault(&c.HandshakeTimeout, DefaultHandshakeTimeout)
	setDefault(&c.AuthGrace, DefaultAuthGrace)
	for _, k := range c.Connectors {
		setDefault(&k.QueueDepth, DefaultQueueDepth)
		setDefault(&k.ConnectTimeout, DefaultConnectTimeout)
		setDefault(&k.Grace, DefaultGrace)
		setDefault(&k.Balance, BalanceLeastSessions)
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// agentIDs lists every agent that the configuration names.
func (c *Config) agentIDs() []string {
	ids := slices.Clone(c.Agents)
	for _, k := range c.Connectors {
		ids = append(ids, k.Agents...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// permits reports whether the connector is open to a client at addr.
func (k *Connector) permits(addr netip.Addr) bool {
	if len(k.AllowCIDRs) == 0 {
		return true
	}
	addr = addr.Unmap()
	return slices.ContainsFunc(k.AllowCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
}
