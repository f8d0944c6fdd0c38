package obs

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// AgentMetrics holds the series of the agent process. Their prefix is
// nowconnect_agent_, so that hub and agent may share one Prometheus job.
type AgentMetrics struct {
	families   agentFamilies
	vecs       []prometheus.Collector
	rtt        prometheus.Observer
	reconnects map[wire.Reason]incrementer // fixed keys: wire.LinkReasons
	reauths    map[ReauthResult]incrementer

	mu         sync.Mutex
	connectors map[string]*AgentConnector // guarded by mu; never shrinks
}

type agentFamilies struct {
	sessions   *prometheus.CounterVec
	active     *prometheus.GaugeVec
	closed     *prometheus.CounterVec
	bytes      *prometheus.CounterVec
	writeDrain *prometheus.HistogramVec
	dial       *prometheus.HistogramVec
	linkUp     *prometheus.GaugeVec
	reconnects *prometheus.CounterVec
	reauths    *prometheus.CounterVec
	rtt        *prometheus.HistogramVec
}

// NewAgentMetrics returns the series of one agent process. It registers
// nothing anywhere: AgentMetrics is itself the collector.
func NewAgentMetrics() *AgentMetrics {
	var f factory
	m := &AgentMetrics{connectors: make(map[string]*AgentConnector)}
	m.families = agentFamilies{
		sessions: f.counter("nowconnect_agent_sessions_total",
			"Sessions that the hub asked for.", "connector"),
		active: f.gauge("nowconnect_agent_sessions_active",
			"Sessions live now, those still dialing included.", "connector"),
		closed: f.counter("nowconnect_agent_sessions_closed_total",
			"Sessions ended, by reason.", "connector", "reason"),
		bytes: f.counter("nowconnect_agent_bytes_total",
			"Bytes carried, client to agent (c2a) and agent to client (a2c), counted as they pass.", "direction", "connector"),
		writeDrain: f.histogram("nowconnect_agent_write_drain_seconds",
			"Writes to the target: handing bytes to the socket without waiting (write), and waiting until the kernel took the rest (drain).",
			ioBuckets, "connector", "phase"),
		dial: f.histogram("nowconnect_agent_dial_seconds",
			"How long dialing the target took, failures included.", openBuckets, "connector"),
		linkUp: f.gauge("nowconnect_agent_link_up",
			"1 while this link to the hub is up, else 0.", "link"),
		reconnects: f.counter("nowconnect_agent_reconnects_total",
			"Links that ended and were dialed again, by the reason they ended.", "reason"),
		reauths: f.counter("nowconnect_agent_reauth_total",
			"Tokens sent over live links to renew them, by the hub's answer.", "result"),
		rtt: f.histogram("nowconnect_agent_link_rtt_seconds",
			"Round-trip times of pings to the hub.", rttBuckets),
	}
	m.vecs = f.made
	m.rtt = m.families.rtt.WithLabelValues()
	m.reconnects = linkReasonCounters(func(r wire.Reason) incrementer {
		return m.families.reconnects.WithLabelValues(r.String())
	})
	m.reauths = reauthCounters(func(r ReauthResult) incrementer {
		return m.families.reauths.WithLabelValues(string(r))
	})
	return m
}

// Describe implements prometheus.Collector.
func (m *AgentMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.vecs {
		v.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *AgentMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, v := range m.vecs {
		v.Collect(ch)
	}
}

// LinkUp tells whether link i, counted from 0, is up. Call it with false for
// every configured link at the start, so that its series exists.
func (m *AgentMetrics) LinkUp(i int, up bool) {
	v := 0.0
	if up {
		v = 1
	}
	m.families.linkUp.WithLabelValues(strconv.Itoa(i)).Set(v)
}

// Reconnected counts a link that ended for r and is dialed again.
func (m *AgentMetrics) Reconnected(r wire.Reason) { countLink(m.reconnects, r) }

// Reauth counts the answer to a token that was sent over a live link.
func (m *AgentMetrics) Reauth(r ReauthResult) { m.reauths[r].Inc() }

// RTT records the round trip of one ping.
func (m *AgentMetrics) RTT(d time.Duration) { m.rtt.Observe(d.Seconds()) }

// Connector returns the recorder of one connector that the agent's own
// configuration maps, creating all its series at zero.
func (m *AgentMetrics) Connector(name string) *AgentConnector {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.connectors[name]
	if !ok {
		c = newAgentConnector(&m.families, name)
		m.connectors[name] = c
	}
	return c
}

// AgentConnector records one connector's sessions, seen from the agent. It is
// the tunnel.Observer of the agent's sessions: what is sent goes to the hub.
// Its methods may be called concurrently; none allocates or blocks.
type AgentConnector struct {
	sessions           prometheus.Counter
	active             prometheus.Gauge
	closed             map[wire.Reason]prometheus.Counter // fixed keys: wire.SessionReasons
	bytesC2A, bytesA2C prometheus.Counter
	write, drain       prometheus.Observer
	dial               prometheus.Observer
}

func newAgentConnector(f *agentFamilies, name string) *AgentConnector {
	c := &AgentConnector{
		sessions: f.sessions.WithLabelValues(name),
		active:   f.active.WithLabelValues(name),
		closed:   make(map[wire.Reason]prometheus.Counter),
		bytesC2A: f.bytes.WithLabelValues(c2a, name),
		bytesA2C: f.bytes.WithLabelValues(a2c, name),
		write:    f.writeDrain.WithLabelValues(name, "write"),
		drain:    f.writeDrain.WithLabelValues(name, "drain"),
		dial:     f.dial.WithLabelValues(name),
	}
	for _, r := range wire.SessionReasons() {
		c.closed[r] = f.closed.WithLabelValues(name, r.String())
	}
	return c
}

// Opened counts a session that the hub asked for. Each Opened is followed by
// one Closed, whether or not the target could be dialed.
func (c *AgentConnector) Opened() {
	c.sessions.Inc()
	c.active.Inc()
}

// Closed counts the end of a session. A reason outside of
// wire.SessionReasons counts as rst.
func (c *AgentConnector) Closed(r wire.Reason) {
	n, ok := c.closed[r]
	if !ok {
		n = c.closed[wire.ReasonRst]
	}
	n.Inc()
	c.active.Dec()
}

// DialTime records how long dialing the target took, whether or not it
// succeeded.
func (c *AgentConnector) DialTime(d time.Duration) { c.dial.Observe(d.Seconds()) }

// FrameSent counts a DATA frame of n payload bytes to the hub.
func (c *AgentConnector) FrameSent(n int) { c.bytesA2C.Add(float64(n)) }

// FrameReceived does nothing: bytes from the hub count when the target's
// socket took them.
func (c *AgentConnector) FrameReceived(int) {}

// Written counts n bytes that the target's socket took.
func (c *AgentConnector) Written(n int) { c.bytesC2A.Add(float64(n)) }

// WriteTime records how long handing a frame to the target's socket took, as
// far as it went without waiting.
func (c *AgentConnector) WriteTime(d time.Duration) { c.write.Observe(d.Seconds()) }

// DrainTime records how long the kernel then took to accept the rest.
func (c *AgentConnector) DrainTime(d time.Duration) { c.drain.Observe(d.Seconds()) }

// FinSent does nothing, as FinReceived, RstSent and RstReceived: the hub counts
// the same frames at its end, and the agent's closed reasons tell the rest.
func (c *AgentConnector) FinSent() {}

// FinReceived does nothing; see FinSent.
func (c *AgentConnector) FinReceived() {}

// RstSent does nothing; see FinSent.
func (c *AgentConnector) RstSent() {}

// RstReceived does nothing; see FinSent.
func (c *AgentConnector) RstReceived() {}
