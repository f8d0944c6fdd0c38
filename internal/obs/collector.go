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
	descActive = prometheus.NewDesc("nowconnect_tcp_active_connections",
		"Client connections live now.", []string{"connector"}, nil)
	descQueue = prometheus.NewDesc("nowconnect_inbound_queue_size",
		"Frames in the deepest agent-to-client queue among the connector's live sessions.", []string{"connector"}, nil)
	descDepth = prometheus.NewDesc("nowconnect_queue_depth_per_cid",
		"Frames that one session's agent-to-client queue may hold.", []string{"connector"}, nil)
	descAgents = prometheus.NewDesc("nowconnect_agents_connected",
		"Agents that serve the connector now.", []string{"connector"}, nil)
	descLinks = prometheus.NewDesc("nowconnect_tunnel_links",
		"Links of the agent that are up now.", []string{"agent"}, nil)
	descUptime = prometheus.NewDesc("nowconnect_tunnel_uptime_seconds",
		"How long the agent has had a link without a gap; 0 when it has none.", []string{"agent"}, nil)

	liveDescs = []*prometheus.Desc{descActive, descQueue, descDepth, descAgents, descLinks, descUptime}
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
	for _, v := range c.metrics.vecs {
		v.Describe(ch)
	}
	for _, d := range liveDescs {
		ch <- d
	}
}

// Collect sends every series.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.metrics.vecs {
		v.Collect(ch)
	}
	s := c.live.LiveState()
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	for _, k := range s.Connectors {
		gauge(descActive, float64(k.ActiveSessions), k.Name)
		gauge(descQueue, float64(k.QueueFrames), k.Name)
		gauge(descDepth, float64(k.QueueBound), k.Name)
		gauge(descAgents, float64(k.AgentsConnected), k.Name)
	}
	now := time.Now()
	for _, a := range s.Agents {
		gauge(descLinks, float64(a.Links), a.ID)
		gauge(descUptime, uptime(now, a), a.ID)
	}
}

func uptime(now time.Time, a AgentState) float64 {
	if a.Links == 0 || a.Since.IsZero() {
		return 0
	}
	return max(0, now.Sub(a.Since).Seconds())
}
