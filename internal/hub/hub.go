package hub

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/loglimit"
	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Hub is the meeting point of agents and clients. It lives as long as the
// process; configurations pass through it. Safe for concurrent use.
type Hub struct {
	metrics *obs.Metrics
	log     atomic.Pointer[zap.Logger]
	boot    string        // makes session names unique over restarts
	serial  atomic.Uint64 // of session names
	audit   atomic.Pointer[audit]
	unknown connector // stands for all that are not configured, in the audit

	mu         sync.Mutex      // guards all below
	judging    *sync.WaitGroup // whoever judges live sessions
	judgment   context.Context // of the questions about live sessions
	silence    context.CancelFunc
	cfg        *Config       // nil before the first Apply
	changed    chan struct{} // closed and replaced by each Apply
	connectors map[string]*connector
	agents     map[string]*agent
	live       int // sessions over all connectors
	leases     leases
	drain      *drain
	closed     bool // nobody is judged any more
}

// connector is the lasting side of a configured connector: its statistics and
// live sessions survive every reload.
type connector struct {
	name     string
	stats    *obs.Connector
	sessions map[*session]struct{}
	clients  map[string]int // live sessions per client IP
	turn     int            // for round robin
	refused  *loglimit.Limiter

	epoch  uint64     // changes with the policy: what was decided in another one counts no more
	queue  []*session // live sessions to be judged
	judges int        // goroutines at it
	coming int        // those of them that have not taken any yet
}

// New returns a hub that serves nothing until Apply. It starts nothing.
func New(log *zap.Logger, m *obs.Metrics) *Hub {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand says
	h := &Hub{
		metrics: m, boot: hex.EncodeToString(b[:]),
		changed:    make(chan struct{}),
		connectors: make(map[string]*connector),
		agents:     make(map[string]*agent),
		leases:     leases{born: time.Now()},
		unknown:    connector{refused: loglimit.New(10, 50)},
	}
	h.judging = new(sync.WaitGroup)
	h.judgment, h.silence = context.WithCancel(context.Background())
	h.SetLogger(log)
	h.SetAudit(nil, 0)
	return h
}

// Metrics returns what the hub records into.
func (h *Hub) Metrics() *obs.Metrics { return h.metrics }

// SetLogger makes the hub log to the current configuration's sinks.
func (h *Hub) SetLogger(log *zap.Logger) {
	if log == nil {
		log = zap.NewNop()
	}
	h.log.Store(log)
}

func (h *Hub) logger() *zap.Logger { return h.log.Load() }

// Apply puts cfg in force at once. New connections are judged by it; live
// sessions and links are judged again in the background and end if it no
// longer allows them.
func (h *Hub) Apply(cfg *Config) {
	cfg.setDefaults()
	h.mu.Lock()
	h.cfg = cfg
	for name := range cfg.Connectors {
		h.connectorLocked(name)
	}
	for _, id := range cfg.agentIDs() {
		h.agentLocked(id)
	}
	for _, a := range h.agents {
		a.budget.SetMax(cfg.AgentMemory)
	}
	close(h.changed)
	h.changed = make(chan struct{})
	for _, c := range h.connectors {
		h.policyChangedLocked(c)
	}
	h.forgetUnusedLocked()
	h.mu.Unlock()
	go h.judgeLinks(cfg)
}

// connectorLocked returns the lasting side of a connector, made on first use.
func (h *Hub) connectorLocked(name string) *connector {
	c := h.connectors[name]
	if c == nil {
		c = &connector{
			name: name, stats: h.metrics.Connector(name),
			sessions: make(map[*session]struct{}), clients: make(map[string]int),
			refused: loglimit.New(10, 50),
		}
		h.connectors[name] = c
	}
	return c
}

// agentLocked returns the lasting side of an agent, made on first use. Only
// configured or authenticated ids come here, so the number is bounded.
func (h *Hub) agentLocked(id string) *agent {
	a := h.agents[id]
	if a == nil {
		a = newAgent(id, h.metrics.Agent(id), h.cfg.AgentMemory)
		h.agents[id] = a
	}
	return a
}

// forgetUnusedLocked drops what no configuration names and nobody uses. The
// counters stay: a name that comes back counts on.
func (h *Hub) forgetUnusedLocked() {
	for name, c := range h.connectors {
		if h.cfg.Connectors[name] == nil && len(c.sessions) == 0 {
			delete(h.connectors, name)
		}
	}
	ids := h.cfg.agentIDs()
	for id, a := range h.agents {
		if _, named := slices.BinarySearch(ids, id); !named && len(a.links) == 0 {
			delete(h.agents, id)
		}
	}
}

// startPatience is how long a connection waits for a configuration that knows
// its connector: a listener accepts shortly before its configuration commits.
const startPatience = 2 * time.Second

// lookup returns the connector and its configuration in force, waiting a
// moment for one that is about to commit.
func (h *Hub) lookup(ctx context.Context, name string) (*connector, *Connector) {
	var timeout <-chan time.Time
	for {
		h.mu.Lock()
		if h.cfg != nil && h.cfg.Connectors[name] != nil {
			c, k := h.connectorLocked(name), h.cfg.Connectors[name]
			h.mu.Unlock()
			return c, k
		}
		changed := h.changed
		h.mu.Unlock()
		if timeout == nil {
			t := time.NewTimer(startPatience)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-changed:
		case <-timeout:
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
}

func (h *Hub) sessionName() string {
	return h.boot + "-" + strconv.FormatUint(h.serial.Add(1), 36)
}

// config returns the configuration in force; nil before the first Apply.
func (h *Hub) config() *Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cfg
}

// judgeLinks ends the links whose credential the new configuration does not
// know. A later Apply makes it stop: its own judging covers everything.
func (h *Hub) judgeLinks(cfg *Config) {
	h.mu.Lock()
	if h.cfg != cfg {
		h.mu.Unlock()
		return
	}
	var links []*link
	for _, a := range h.agents {
		links = append(links, a.links...)
	}
	h.mu.Unlock()

	for _, l := range links {
		if cfg.StillValid != nil && !cfg.StillValid(*l.identity.Load()) {
			h.logger().Warn("agent's credential is no longer valid, closing its link",
				zap.String("agent", l.hello.AgentID), zap.Int("link", l.hello.Link))
			go l.Close(wire.ReasonRevoked, "credential is no longer valid")
		}
	}
}
