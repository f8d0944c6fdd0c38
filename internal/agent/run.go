package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Agent is one agent process. Make it with [New] and call Run once.
type Agent struct {
	cfg        Config
	log        *zap.Logger
	dialer     *dialer
	dialTarget dialFunc
	targets    map[string]served // what we serve, and nothing else; read-only
	instance   string            // random per process: tells our logins from a namesake's
	budget     *tunnel.Budget
	metrics    *obs.AgentMetrics
	sessions   sessions
	links      []*slot // those in use and those that may come into use; see links.go
	acks       ackLog
	health     *healthPort // nil without HealthAddr
	cut        chan struct{}
	cutOnce    sync.Once
	serving    sync.WaitGroup // links, also those that were handed over
	keepSlot   func(*slot)    // set by Run
}

// served is one connector with where it leads.
type served struct {
	target  Target
	metrics *obs.AgentConnector
}

// slot is one of the agent's links: the same number from one connection to the
// next.
type slot struct {
	n    int
	used atomic.Bool // is kept up; never taken back

	// Owned by keepLink.
	backoff backoff
	trouble string    // stateKey of what was logged; empty while all is well
	told    time.Time // when that was

	mu    sync.Mutex // guards all below
	link  *tunnel.Link
	state linkState
}

// linkState is what the health port tells about a link.
type linkState struct {
	Up       bool      `json:"up"`
	Carrier  string    `json:"carrier,omitempty"`
	Hub      string    `json:"hub,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Expires  time.Time `json:"expires,omitzero"` // when its credential does; absent for never
	Accepted []string  `json:"accepted,omitempty"`
	Refused  []string  `json:"refused,omitempty"`
}

// New checks cfg, fills in its defaults and returns an agent that does nothing
// before Run. Faults that time may heal, such as an absent token file, are no
// error here: Run logs them and tries again.
func New(cfg Config, log *zap.Logger) (*Agent, error) {
	cfg.setDefaults()
	cfg.Connectors = slices.Clone(cfg.Connectors)
	if cfg.Software == "" {
		cfg.Software = "nowconnect-agent"
	}
	if err := cfg.validate(func(s string) string { return "agent: " + s }); err != nil {
		return nil, err
	}
	hub, err := parseHubURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if _, err := readRoots(cfg.CABundle); err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: log,
		targets:  make(map[string]served),
		instance: rand.Text(),
		budget:   tunnel.NewBudget(cfg.Memory),
		metrics:  obs.NewAgentMetrics(),
		cut:      make(chan struct{}),
	}
	a.dialer = newDialer(&a.cfg, hub, log)
	a.dialTarget = targetDialer().DialContext
	a.sessions.max = cfg.MaxSessions
	for _, name := range cfg.Connectors {
		a.targets[name] = served{cfg.Targets[name], a.metrics.Connector(name)}
	}
	for n := range cmp.Or(cfg.Links, lossyLinks) {
		a.links = append(a.links, &slot{n: n, backoff: backoff{min: cfg.BackoffMin, max: cfg.BackoffMax}})
	}
	if cfg.HealthAddr != "" {
		a.health = newHealthPort(a)
	}
	return a, nil
}

// Metrics returns the agent's collector, for a registry of the caller's.
func (a *Agent) Metrics() *obs.AgentMetrics { return a.metrics }

// Run keeps the links up and serves sessions until ctx ends, and then drains:
// it takes no new sessions, gives the live ones DrainTimeout, and reports what
// it had to cut. The error is not nil only when the health port cannot listen.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if a.health != nil {
		if err := a.health.listen(); err != nil {
			return fmt.Errorf("health port: %w", err)
		}
		wg.Go(a.health.serve)
	}
	a.logStart()
	// Links outlive ctx: their sessions end in order.
	linkCtx, endLinks := context.WithCancel(context.WithoutCancel(ctx))
	defer endLinks()
	a.keepSlot = func(s *slot) { wg.Go(func() { a.keepLink(ctx, linkCtx, s) }) }
	a.useLinks(cmp.Or(a.cfg.Links, nearLinks))
	<-ctx.Done()
	a.drain()
	endLinks()
	if a.health != nil {
		a.health.close()
	}
	wg.Wait()
	a.serving.Wait()
	a.sessions.wg.Wait()
	return nil
}

// Cut ends a drain in progress at once, and one to come as soon as it begins.
func (a *Agent) Cut() { a.cutOnce.Do(func() { close(a.cut) }) }

// Ready reports whether at least one link is up whose hub lets this agent
// serve something and whose credential has not expired, and the agent is not
// leaving.
func (a *Agent) Ready() bool {
	if a.sessions.isLeaving() {
		return false
	}
	for _, s := range a.links {
		if st := s.current(); st.Up && len(st.Accepted) > 0 && (st.Expires.IsZero() || time.Now().Before(st.Expires)) {
			return true
		}
	}
	return false
}

// insecure reports whether the hub is reached without TLS over a network.
func (a *Agent) insecure() bool { return !a.dialer.hub.tls && !a.dialer.hub.loopback }

func (a *Agent) logStart() {
	for _, w := range a.cfg.Warnings {
		a.log.Warn("configuration: " + w)
	}
	if a.insecure() {
		a.log.Warn("INSECURE: the hub is reached without TLS; the token and all traffic can be read and changed on the way",
			zap.Stringer("hub", a.dialer.hub))
	}
	if info, err := os.Stat(a.cfg.ClientKey); a.cfg.ClientKey != "" && err == nil && openToAll(info) {
		a.log.Warn("every user of this machine can read the client certificate's key; chmod 600 the file",
			zap.String("client_key_file", a.cfg.ClientKey), zap.String("mode", info.Mode().Perm().String()))
	}
	a.log.Info("agent starts",
		zap.String("software", a.cfg.Software), zap.String("go", runtime.Version()),
		zap.Stringer("hub", a.dialer.hub), zap.String("agent", a.cfg.AgentID), zap.String("instance", a.instance),
		zap.String("links", linksText(a.cfg.Links)), zap.String("carrier", a.cfg.Carrier), zap.Strings("connectors", a.cfg.Connectors))
}

// keepLink is the loop of one link. ctx ends it; linkCtx ends the link.
func (a *Agent) keepLink(ctx, linkCtx context.Context, s *slot) {
	for ctx.Err() == nil {
		lived, err := a.oneLink(ctx, linkCtx, s)
		if ctx.Err() != nil {
			return
		}
		s.backoff.lived(lived)
		kind := classify(err)
		delay := s.backoff.next(kind)
		a.noteDown(s, err, kind, lived > 0, delay)
		if lived > 0 {
			a.metrics.Reconnected(linkReason(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// oneLink connects, serves the link, and those that it is handed over to, until
// the last one ends, and tells how long that was (0: it never began) and why it
// ended.
func (a *Agent) oneLink(ctx, linkCtx context.Context, s *slot) (time.Duration, error) {
	l, err := a.dialer.connect(ctx, a.hello(s.n))
	if err != nil {
		return 0, err
	}
	start := time.Now()
	v := a.startLink(linkCtx, s, l)
	if v == nil {
		return 0, ctx.Err()
	}
	a.metrics.LinkUp(s.n, true)
	a.noteUp(s, l)
	if a.cfg.Links == 0 {
		a.useLinks(min(l.worthLinks(), l.ack.MaxLinks))
	}
	for {
		next := a.tend(ctx, s, v)
		if next == nil {
			break
		}
		fresh := a.startLink(linkCtx, s, next)
		if fresh == nil {
			break // v's sessions end with the agent
		}
		old := v
		a.serving.Go(func() { a.leave(old) })
		v = fresh
		a.log.Info("link goes on with a new credential", zap.Int("link", s.n), zap.Time("expires", next.expires))
	}
	<-v.done
	s.down()
	a.metrics.LinkUp(s.n, false)
	return max(time.Since(start), 1), v.whyEnded()
}

func (a *Agent) hello(n int) wire.Hello {
	return wire.Hello{
		Version: wire.Version, Capabilities: []string{wire.CapReauth, wire.CapHandover},
		AgentID: a.cfg.AgentID, Instance: a.instance, Link: n,
		Connectors: a.cfg.Connectors, Window: firstWindow, Software: a.cfg.Software,
	}
}

func (s *slot) up(v *liveLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := v.login
	s.link = v.Link
	s.state = linkState{
		Up: true, Carrier: l.carrier.Name(), Hub: l.ack.Hub, Since: v.start, Expires: l.expires,
		Accepted: l.ack.Accepted, Refused: l.ack.Refused,
	}
}

// renewed notes what the hub said about a new token. Lists that did not fit
// into its answer stay as they are.
func (s *slot) renewed(expires time.Time, ack wire.AuthAck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Expires = expires
	if len(ack.Accepted)+len(ack.Refused) > 0 {
		s.state.Accepted, s.state.Refused = ack.Accepted, ack.Refused
	}
}

func (s *slot) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.state = nil, linkState{}
}

func (s *slot) current() linkState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *slot) currentLink() *tunnel.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// noteUp logs that a link is up.
func (a *Agent) noteUp(s *slot, l *login) {
	s.trouble = ""
	a.log.Info("link is up", zap.Int("link", s.n), zap.String("carrier", l.carrier.Name()),
		zap.String("congestion_control", tunnel.CongestionControl(l.carrier)), zap.String("hub", l.ack.Hub),
		zap.String("tls", l.tls), zap.String("proxy", l.proxy), zap.Strings("accepted", l.ack.Accepted))
	a.noteRefused(l.ack.Refused, l.ack.Hub)
}

// noteRefused logs the connectors that the hub does not let this agent serve.
func (a *Agent) noteRefused(refused []string, hub string) {
	if a.acks.changed(refused) {
		a.log.Warn("the hub refuses connectors that this agent offers: its configuration does not name the agent for them, or the credential does not",
			zap.Strings("refused", refused), zap.String("hub", hub))
	}
}

// remind is how often a trouble that goes on is told again.
const remind = 10 * time.Minute

// noteDown logs a lost link or a failed attempt: loudly when it is news, and
// at debug when it is more of the same.
func (a *Agent) noteDown(s *slot, err error, kind trouble, wasUp bool, delay time.Duration) {
	fields := []zap.Field{zap.Int("link", s.n), zap.Duration("retry_in", delay), zap.Error(err)}
	if wasUp {
		fields = append(fields, zap.Stringer("reason", linkReason(err)))
	}
	key := stateKey(err)
	if key == s.trouble && time.Since(s.told) < remind {
		a.log.Debug("link is still down", fields...)
		return
	}
	s.trouble, s.told = key, time.Now()
	switch {
	case kind == troubleSuperseded:
		a.log.Error("another agent process has logged in with this agent's id and token: "+
			"stop one of them, or give each its own id", append(fields, zap.String("agent", a.cfg.AgentID))...)
	case wasUp && linkReason(err) == wire.ReasonRevoked:
		a.log.Error("the hub has ended the link because this agent's credential is no longer good there: "+
			"renew the token or the certificate", fields...)
	case kind == troubleRefused && stageOf(err) == stageProxy:
		a.log.Error("the proxy cannot be used", fields...)
	case kind == troubleRefused:
		a.log.Error("the hub cannot be used", fields...)
	case wasUp:
		a.log.Warn("link is lost", fields...)
	default:
		a.log.Warn("link cannot be made", fields...)
	}
}

// ackLog remembers which connectors the hub refused last, over all links, so
// that each change is told once.
type ackLog struct {
	mu   sync.Mutex
	last string
}

func (k *ackLog) changed(refused []string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := strings.Join(refused, ",")
	news := now != k.last && now != ""
	k.last = now
	return news
}
