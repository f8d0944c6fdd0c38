package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// agent is the lasting side of an agent: what outlives its links. Fields are
// guarded by Hub.mu.
type agent struct {
	id     string
	stats  *obs.Agent
	budget *tunnel.Budget
	links  []*link
	since  time.Time           // when the first of its links came up; zero without links
	ended  map[int]wire.Reason // why the last link of a slot ended, until it is back
	coming int                 // sessions that wait for policy to be placed with it
}

func newAgent(id string, stats *obs.Agent, memory int64) *agent {
	return &agent{id: id, stats: stats, budget: tunnel.NewBudget(memory), ended: make(map[int]wire.Reason)}
}

// link is one authenticated connection of an agent.
type link struct {
	*tunnel.Link
	agent   *agent
	hello   wire.Hello
	leadsTo map[string]bool // hello.Connectors: looked up for every new session
	remote  string
	carrier string
	since   time.Time
	reauth  bool          // the credential can be renewed with AUTH
	auth    chan []byte   // fresh credentials, from the link's reader; one place
	changed chan struct{} // identity or handed was set by another link's login; one place

	identity atomic.Pointer[Identity] // never nil; set under Hub.mu
	handed   atomic.Bool              // handed over: close once the sessions are over; set under Hub.mu
	retired  bool                     // no new sessions, a newer login has them; guarded by Hub.mu
}

// serves reports whether the link leads to the connector: the agent announced
// it and its credential covers it. Whether the configuration names the agent
// is the caller's to check: that may change while the link lives.
func (l *link) serves(connector string) bool {
	return l.leadsTo[connector] && l.identity.Load().covers(connector)
}

// ServeAgent runs an agent's link from HELLO to its end, on a carrier whose
// peer has proved to be id. It closes the carrier and returns why the link
// ended. When ctx ends the link is closed.
func (h *Hub) ServeAgent(ctx context.Context, c tunnel.Carrier, id Identity, remote string) error {
	defer func() { _ = c.Close() }()
	cfg := h.config()
	if cfg == nil || h.isDraining() {
		_ = tunnel.Refuse(c, wire.ReasonDraining, "hub takes no agents now")
		return &tunnel.LinkError{Reason: wire.ReasonDraining}
	}
	hctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	hello, err := tunnel.ReadHello(hctx, c)
	cancel()
	log := h.logger().With(zap.String("agent", id.AgentID), zap.String("remote", remote), zap.String("carrier", c.Name()))
	if err == nil {
		err = checkHello(cfg, &hello, id)
	}
	if err != nil {
		log.Warn("agent's handshake refused", zap.Error(err))
		_ = tunnel.Refuse(c, wire.ReasonRefused, err.Error())
		return &tunnel.LinkError{Reason: wire.ReasonRefused, Err: err}
	}
	l := h.newLink(cfg, c, hello, id, remote)
	accepted, refused := h.split(cfg, l)
	if len(refused) > 0 {
		log.Error("agent announces connectors that the configuration does not give it",
			zap.Strings("refused", refused), zap.Strings("accepted", accepted))
	}
	// Before the agent knows that it is connected, clients can be placed with it:
	// whoever waits for the agent's word may dial at once.
	if err := h.register(l); err != nil {
		_ = tunnel.Refuse(c, err.Reason, err.Message)
		return err
	}
	if err := l.Welcome(ack(cfg, l, accepted, refused)); err != nil {
		h.unregister(l, err)
		return err
	}
	log.Info("agent connected", zap.String("congestion_control", tunnel.CongestionControl(c)), zap.Int("link", hello.Link), zap.String("instance", hello.Instance),
		zap.Strings("connectors", accepted), zap.String("software", hello.Software))
	err = h.serve(ctx, l)
	h.logger().Info("agent disconnected", zap.String("agent", id.AgentID), zap.Int("link", hello.Link),
		zap.Duration("after", time.Since(l.since)), zap.Error(err))
	return err
}

// serve runs the link and what looks after its credential, until the link ends.
func (h *Hub) serve(ctx context.Context, l *link) error {
	keep, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.keepCredential(keep, l) })
	err := l.Serve(ctx)
	h.unregister(l, err)
	stop()
	wg.Wait()
	return err
}

// checkHello judges what the agent says of itself against what it proved.
func checkHello(cfg *Config, hello *wire.Hello, id Identity) error {
	if hello.AgentID != id.AgentID {
		return fmt.Errorf("hello: agent_id %q is not the authenticated %q", hello.AgentID, id.AgentID)
	}
	if hello.Link >= cfg.MaxLinksPerAgent {
		return fmt.Errorf("hello: link %d, at most %d links per agent are allowed (max_links_per_agent)", hello.Link, cfg.MaxLinksPerAgent)
	}
	return nil
}

func (h *Hub) newLink(cfg *Config, c tunnel.Carrier, hello wire.Hello, id Identity, remote string) *link {
	h.mu.Lock()
	a := h.agentLocked(id.AgentID)
	h.mu.Unlock()
	l := &link{
		agent: a, hello: hello, remote: remote, carrier: c.Name(), since: time.Now(),
		reauth: cfg.Reauthenticate != nil && !id.Bound && slices.Contains(hello.Capabilities, wire.CapReauth),
		auth:   make(chan []byte, 1), changed: make(chan struct{}, 1), leadsTo: make(map[string]bool),
	}
	for _, name := range hello.Connectors {
		l.leadsTo[name] = true
	}
	l.identity.Store(&id)
	tc := tunnel.Config{
		PingInterval: cfg.PingInterval, PingTimeout: cfg.PingTimeout,
		Budget: a.budget, OnRTT: a.stats.RTT,
	}
	if l.reauth {
		tc.OnAuth = h.takeAuth(l)
	}
	l.Link = tunnel.NewHubLink(c, tc, hello.Window)
	l.Hold()
	return l
}

// split sorts the announced connectors by whether the agent may serve them.
func (h *Hub) split(cfg *Config, l *link) (accepted, refused []string) {
	accepted = []string{}
	for _, name := range l.hello.Connectors {
		k := cfg.Connectors[name]
		if k != nil && slices.Contains(k.Agents, l.hello.AgentID) && l.serves(name) {
			accepted = append(accepted, name)
		} else {
			refused = append(refused, name)
		}
	}
	return accepted, refused
}

func ack(cfg *Config, l *link, accepted, refused []string) wire.HelloAck {
	interval, timeout := cfg.PingInterval, cfg.PingTimeout
	setDefault(&interval, tunnel.DefaultPing)
	setDefault(&timeout, tunnel.DefaultPing)
	return wire.HelloAck{
		Version: wire.Version, Capabilities: l.capabilities(), Accepted: accepted, Refused: refused,
		PingInterval: interval.Milliseconds(), PingTimeout: timeout.Milliseconds(),
		MaxSessions: cfg.MaxSessions, MaxLinks: cfg.MaxLinksPerAgent, Hub: cfg.ID, ExpiresIn: l.identity.Load().expiresIn(),
	}
}

// lockIfValid locks Hub.mu if id is good under the configuration in force, which
// then cannot change. A credential was checked some time ago, and Apply judges
// only the links that it finds.
func (h *Hub) lockIfValid(id *Identity) bool {
	for {
		cfg := h.config()
		if cfg.StillValid != nil && !cfg.StillValid(*id) {
			return false
		}
		h.mu.Lock()
		if h.cfg == cfg {
			return true
		}
		h.mu.Unlock()
	}
}

// register makes the link eligible and lets it take the place of older ones:
// of the same instance and slot at once, or as soon as their sessions are over
// if there is a handover or was one before; of another instance likewise.
func (h *Hub) register(l *link) *tunnel.LinkError {
	if !h.lockIfValid(l.identity.Load()) {
		return &tunnel.LinkError{Reason: wire.ReasonRevoked, Message: "credential is no longer valid"}
	}
	if h.drain != nil {
		h.mu.Unlock()
		return &tunnel.LinkError{Reason: wire.ReasonDraining, Message: "hub began to drain during the handshake"}
	}
	l.agent = h.agentLocked(l.agent.id) // the one that the link was made for may have been forgotten
	a := l.agent
	var replaced, older []*link
	var handover handover
	for _, o := range a.links {
		switch {
		case o.hello.Instance != l.hello.Instance:
			if !o.retired {
				o.retired = true
				older = append(older, o)
			}
		case o.hello.Link != l.hello.Link:
		case l.hello.Handover, o.handed.Load(): // one that was handed over before is leaving by itself
			handover.takeLocked(h, o, l)
		default:
			o.retired = true
			replaced = append(replaced, o)
		}
	}
	if reason, was := a.ended[l.hello.Link]; was {
		delete(a.ended, l.hello.Link)
		a.stats.Reconnected(reason)
	} else if len(replaced)+len(older) > 0 {
		a.stats.Reconnected(wire.ReasonSuperseded)
	}
	if len(a.links) == 0 {
		a.since = time.Now()
	}
	a.links = append(a.links, l)
	patience := h.cfg.DrainTimeout
	h.mu.Unlock()
	for _, o := range append(replaced, handover.tooMany()...) {
		go o.Close(wire.ReasonSuperseded, "the same agent instance logged in again")
	}
	for _, o := range older {
		go o.retire(patience)
	}
	handover.finish(h, l)
	return nil
}

// retire lets the sessions of an older instance's link finish and closes it.
func (l *link) retire(patience time.Duration) {
	l.Drain("another process has logged in as this agent")
	deadline := time.Now().Add(patience)
	for l.NumSessions() > 0 && !l.Ended() && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond) // polled: it happens once per restart of an agent
	}
	l.Close(wire.ReasonSuperseded, "another process has logged in as this agent")
}

func (h *Hub) unregister(l *link, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := l.agent
	a.links = slices.DeleteFunc(a.links, func(o *link) bool { return o == l })
	if len(a.links) == 0 {
		a.since = time.Time{}
	}
	var le *tunnel.LinkError
	if errors.As(err, &le) && le.Reason != wire.ReasonSuperseded && !l.retired {
		a.ended[l.hello.Link] = le.Reason
	}
}

// candidatesLocked returns the links that may carry a session of the connector, best
// first: per agent in the order that the balance gives, its emptiest link.
func (h *Hub) candidatesLocked(c *connector, k *Connector) []*link {
	type choice struct {
		link *link
		load int
	}
	var found []choice
	for _, id := range k.Agents {
		if a := h.agents[id]; a != nil {
			if l, load := a.bestLink(c.name); l != nil {
				found = append(found, choice{l, load + a.coming})
			}
		}
	}
	switch k.Balance {
	case BalanceRoundRobin:
		if n := len(found); n > 1 {
			c.turn++
			found = append(slices.Clone(found[c.turn%n:]), found[:c.turn%n]...)
		}
	case BalanceLeastSessions:
		slices.SortStableFunc(found, func(x, y choice) int { return x.load - y.load })
	}
	links := make([]*link, len(found))
	for i, f := range found {
		links[i] = f.link
	}
	return links
}

// sessionRate is the traffic of a link, in bytes per second, that weighs as much
// as one session when a new one is placed: a bulk transfer keeps others off its
// link as a crowd of small sessions would, and they stay calm when it is the
// network that is slow.
const sessionRate = 64 << 10

// bestLink returns the agent's least loaded link that serves the connector, and
// how many sessions the agent has in all.
func (a *agent) bestLink(connector string) (best *link, load int) {
	least, now := 0, time.Now()
	for _, l := range a.links {
		n := l.NumSessions()
		load += n
		n += int(l.Rate() / sessionRate)
		if l.retired || l.Draining() || l.Ended() || l.identity.Load().expired(now) || !l.serves(connector) {
			continue
		}
		if best == nil || n < least {
			best, least = l, n
		}
	}
	return best, load
}
