package obs

import "sync"

// Options says how series are kept. It holds for the life of the Metrics,
// because a histogram cannot change its form without losing its counts.
type Options struct {
	// NativeHistograms adds Prometheus native histograms (factor 1.1, at most
	// 160 buckets) to the classic buckets. Scrapers that do not ask for them
	// see the classic ones. Recording costs about twice as much with them.
	NativeHistograms bool
}

// Metrics holds the hub's series for the life of the process.
type Metrics struct {
	families hubFamilies
	unwanted sync.Map // channels of those who gather and do not want these metrics

	mu         sync.Mutex
	connectors map[string]*Connector  // guarded by mu; never shrinks
	agents     map[string]*Agent      // guarded by mu; never shrinks
	members    map[string]*Membership // guarded by mu; never shrinks
}

// hubFamilies has one field per recorded name of the contract.
type hubFamilies struct {
	writeDrain    *vec
	overflow      *vec
	listenerErr   *vec
	acceptErr     *vec
	connections   *vec
	bytes         *vec
	finSent       *vec
	finRecv       *vec
	rstSent       *vec
	rstRecv       *vec
	closed        *vec
	open          *vec
	duration      *vec
	frameBytes    *vec
	pdpDecisions  *vec
	pdpSeconds    *vec
	tunnelRTT     *vec
	tunnelReconns *vec
	tunnelReauths *vec

	membershipBatches *vec
	membershipValues  *vec
	membershipErrors  *vec
	membershipSeconds *vec

	all []*vec // in order
}

// New returns empty Metrics. It registers nothing anywhere.
func New(o Options) *Metrics {
	f := newHubFactory(o.NativeHistograms)
	m := &Metrics{connectors: make(map[string]*Connector), agents: make(map[string]*Agent), members: make(map[string]*Membership)}
	m.families = hubFamilies{
		writeDrain: f.histogram("nowconnect_write_drain_seconds",
			"Agent-to-client writes: handing bytes to the socket without waiting (write), and waiting until the kernel took the rest (drain).",
			ioBuckets, "connector", "phase"),
		overflow: f.counter("nowconnect_queue_overflow_total",
			"Sessions reset because a peer sent more than its credit, by the side whose queue it was.", "side", "connector"),
		listenerErr: f.counter("nowconnect_listener_errors_total",
			"Errors while serving an accepted connection: write to the client, the session, or the policy decision point.", "connector", "type"),
		acceptErr: f.counter("nowconnect_listener_accept_errors_total",
			"Connections that failed while being accepted.", "connector"),
		connections: f.counter("nowconnect_tcp_connections_total",
			"Client connections accepted.", "connector"),
		bytes: f.counter("nowconnect_tcp_bytes_total",
			"Bytes carried, client to agent (c2a) and agent to client (a2c), counted as they pass.", "direction", "connector"),
		finSent: f.counter("nowconnect_fin_sent_total",
			"FIN frames sent to agents.", "connector"),
		finRecv: f.counter("nowconnect_fin_recv_total",
			"FIN frames received from agents.", "connector"),
		rstSent: f.counter("nowconnect_rst_sent_total",
			"RST frames sent to agents.", "connector"),
		rstRecv: f.counter("nowconnect_rst_recv_total",
			"RST frames received from agents.", "connector"),
		closed: f.counter("nowconnect_sessions_closed_total",
			"Sessions ended, by reason.", "connector", "reason"),
		open: f.histogram("nowconnect_open_seconds",
			"From accepting a client until the first byte from the target was possible.", openBuckets, "connector"),
		duration: f.histogram("nowconnect_connection_duration_seconds",
			"How long client connections lasted.", durationBuckets, "connector"),
		frameBytes: f.histogram("nowconnect_frame_bytes",
			"Payload sizes of DATA frames.", frameBuckets, "direction", "connector"),
		pdpDecisions: f.counter("nowconnect_pdp_decisions_total",
			"Policy decisions, by result.", "result", "connector"),
		pdpSeconds: f.histogram("nowconnect_pdp_decision_seconds",
			"How long policy decisions took.", ioBuckets, "connector", "cached"),
		tunnelRTT: f.histogram("nowconnect_tunnel_rtt_seconds",
			"Round-trip times of pings to agents.", rttBuckets, "agent"),
		tunnelReconns: f.counter("nowconnect_tunnel_reconnects_total",
			"Links that ended and were to be replaced, by the reason they ended.", "agent", "reason"),
		tunnelReauths: f.counter("nowconnect_tunnel_reauth_total",
			"Credentials that agents sent over live links to renew them, by result.", "agent", "result"),
		membershipBatches: f.counter("nowconnect_ldap_membership_batch_total",
			"Modify requests about group members, by what became of them.", "connector", "action", "outcome"),
		membershipValues: f.counter("nowconnect_ldap_membership_values_total",
			"Group members asked to be added or removed, by what became of each.", "connector", "action", "outcome"),
		membershipErrors: f.counter("nowconnect_ldap_membership_errors_total",
			"Modify requests about group members that were not answered with success, by LDAP result code.", "connector", "action", "code"),
		membershipSeconds: f.histogram("nowconnect_ldap_membership_batch_seconds",
			"How long modify requests about group members took.", openBuckets, "connector", "action"),
	}
	m.families.all = f.made
	return m
}

// Connector returns the recorder of one configured connector, creating all its
// series at zero. The same name gives the same pointer for ever, so counts
// survive a connector that is removed and comes back.
func (m *Metrics) Connector(name string) *Connector {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.connectors[name]
	if !ok {
		c = newConnector(&m.families, name)
		m.connectors[name] = c
	}
	return c
}

// Agent returns the recorder of one configured agent, creating all its series
// at zero. The same id gives the same pointer for ever.
func (m *Metrics) Agent(id string) *Agent {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.agents[id]
	if !ok {
		a = newAgent(&m.families, id)
		m.agents[id] = a
	}
	return a
}

// Membership returns the recorder of group memberships in one directory,
// creating all its series at zero. The same name gives the same pointer for
// ever.
func (m *Metrics) Membership(name string) *Membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.members[name]
	if !ok {
		r = newMembership(&m.families, name)
		m.members[name] = r
	}
	return r
}
