package obs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Live is the owner of what is going on now: the hub.
type Live interface {
	// LiveState is called at every scrape, by several goroutines at once when
	// several registries are scraped. It must name each connector and each
	// agent at most once.
	LiveState() LiveState
}

// LiveState is what the hub knows at one moment.
type LiveState struct {
	Connectors []ConnectorState // every configured connector, idle ones too
	Agents     []AgentState     // every configured agent, absent ones too
}

// ConnectorState is one connector at one moment.
type ConnectorState struct {
	Name            string
	ActiveSessions  int // client connections live now
	QueueFrames     int // frames in the deepest agent-to-client queue of a live session
	QueueBound      int // frames that such a queue may hold
	AgentsConnected int // agents with a link that serve this connector
}

// AgentState is one agent at one moment.
type AgentState struct {
	ID    string
	Links int
	Since time.Time // since when it has had a link without a gap; zero when it has none
}

// The families that are read and not recorded.
var (
	connectorGauges = []struct {
		gauge
		value func(ConnectorState) float64
	}{
		{newGauge("nowconnect_tcp_active_connections",
			"Client connections live now.", "connector"),
			func(k ConnectorState) float64 { return float64(k.ActiveSessions) }},
		{newGauge("nowconnect_inbound_queue_size",
			"Frames in the deepest agent-to-client queue among the connector's live sessions.", "connector"),
			func(k ConnectorState) float64 { return float64(k.QueueFrames) }},
		{newGauge("nowconnect_queue_depth_per_cid",
			"Frames that one session's agent-to-client queue may hold.", "connector"),
			func(k ConnectorState) float64 { return float64(k.QueueBound) }},
		{newGauge("nowconnect_agents_connected",
			"Agents that serve the connector now.", "connector"),
			func(k ConnectorState) float64 { return float64(k.AgentsConnected) }},
	}
	agentGauges = []struct {
		gauge
		value func(AgentState, time.Time) float64
	}{
		{newGauge("nowconnect_tunnel_links",
			"Links of the agent that are up now.", "agent"),
			func(a AgentState, _ time.Time) float64 { return float64(a.Links) }},
		{newGauge("nowconnect_tunnel_uptime_seconds",
			"How long the agent has had a link without a gap; 0 when it has none.", "agent"), uptime},
	}
)

// Collector returns a collector of everything recorded in m and of live's
// state. Each registry gets one; any number of them may be registered at once,
// since none keeps anything of its own.
func (m *Metrics) Collector(live Live) prometheus.Collector {
	return &collector{metrics: m, live: live}
}

type collector struct {
	metrics *Metrics
	live    Live
}

// Describe sends every family, also those without a series yet: a pedantic
// registry rejects what was not described.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.metrics.families.all {
		f.Describe(ch)
	}
	for _, g := range connectorGauges {
		ch <- g.desc
	}
	for _, g := range agentGauges {
		ch <- g.desc
	}
}

// Collect sends every series, unless [Metrics.Rest] asks.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	if _, ok := c.metrics.unwanted.Load(ch); ok {
		return
	}
	for _, f := range c.metrics.families.all {
		f.Collect(ch)
	}
	s := c.live.LiveState()
	for _, k := range s.Connectors {
		for _, g := range connectorGauges {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(k), k.Name)
		}
	}
	now := time.Now()
	for _, a := range s.Agents {
		for _, g := range agentGauges {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(a, now), a.ID)
		}
	}
}

// Rest returns a gatherer of all that is registered in reg but m's own metrics.
func (m *Metrics) Rest(reg prometheus.Collector) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(rest{m, reg})
	return r
}

// rest is an unchecked collector: it describes nothing, as what it leads to may
// change.
type rest struct {
	metrics *Metrics
	reg     prometheus.Collector
}

// Describe implements prometheus.Collector.
func (rest) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. The channel tells m's collectors who
// asks, as every gathering has its own.
func (r rest) Collect(ch chan<- prometheus.Metric) {
	r.metrics.unwanted.Store(ch, true)
	defer r.metrics.unwanted.Delete(ch)
	r.reg.Collect(ch)
}

func uptime(a AgentState, now time.Time) float64 {
	if a.Links == 0 || a.Since.IsZero() {
		return 0
	}
	return max(0, now.Sub(a.Since).Seconds())
}
