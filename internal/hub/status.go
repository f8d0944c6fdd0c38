package hub

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
)

// Status is the hub at one moment, for health checks and operators.
type Status struct {
	Configured bool              `json:"configured"` // a configuration is in force
	Draining   bool              `json:"draining"`
	Connectors []ConnectorStatus `json:"connectors"`
	Agents     []AgentStatus     `json:"agents"`
}

// ConnectorStatus is one configured connector.
type ConnectorStatus struct {
	Name     string   `json:"name"`
	Ready    bool     `json:"ready"`    // an agent serves it
	Agents   []string `json:"agents"`   // those connected now
	Sessions int      `json:"sessions"` // live now
}

// AgentStatus is one agent that is configured or connected.
type AgentStatus struct {
	ID    string       `json:"id"`
	Links []LinkStatus `json:"links"`
}

// LinkStatus is one link.
type LinkStatus struct {
	Link       int       `json:"link"` // slot
	Instance   string    `json:"instance"`
	Remote     string    `json:"remote"`
	Carrier    string    `json:"carrier"`
	Software   string    `json:"software,omitempty"`
	Connectors []string  `json:"connectors"` // as announced
	Since      time.Time `json:"since"`
	Expires    time.Time `json:"expires,omitzero"` // when its credential does; absent for never
	RTT        float64   `json:"rtt_seconds"`
	Sessions   int       `json:"sessions"`
	Draining   bool      `json:"draining"`
}

// SessionStatus is one live session.
type SessionStatus struct {
	Session     string    `json:"cid"`
	Connector   string    `json:"connector"`
	Client      string    `json:"client"`
	Agent       string    `json:"agent,omitempty"` // empty until placed
	Since       time.Time `json:"since"`
	BytesC2A    int64     `json:"bytes_c2a"`
	BytesA2C    int64     `json:"bytes_a2c"`
	QueueFrames int       `json:"queue_frames"`
}

// Ready reports whether an agent serves the connector, and whether the
// configuration knows it.
func (h *Hub) Ready(connector string) (ready, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cfg == nil || h.cfg.Connectors[connector] == nil {
		return false, false
	}
	return len(h.servingLocked(h.cfg.Connectors[connector])) > 0, true
}

// servingLocked lists the connected agents that a session could be placed with.
func (h *Hub) servingLocked(k *Connector) []string {
	ids := []string{}
	for _, id := range k.Agents {
		if a := h.agents[id]; a != nil {
			if l, _ := a.bestLink(k.Name); l != nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// Status describes the hub now.
func (h *Hub) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Status{Configured: h.cfg != nil, Draining: h.drain != nil, Connectors: []ConnectorStatus{}, Agents: []AgentStatus{}}
	if h.cfg != nil {
		for name, k := range h.cfg.Connectors {
			cs := ConnectorStatus{Name: name, Agents: h.servingLocked(k), Sessions: len(h.connectorLocked(name).sessions)}
			cs.Ready = len(cs.Agents) > 0
			s.Connectors = append(s.Connectors, cs)
		}
	}
	for id, a := range h.agents {
		as := AgentStatus{ID: id, Links: []LinkStatus{}}
		for _, l := range a.links {
			as.Links = append(as.Links, LinkStatus{
				Link: l.hello.Link, Instance: l.hello.Instance, Remote: l.remote, Carrier: l.carrier,
				Software: l.hello.Software, Connectors: l.hello.Connectors, Since: l.since,
				Expires: l.identity.Load().Expires, RTT: l.RTT().Seconds(), Sessions: l.NumSessions(), Draining: l.Draining() || l.retired,
			})
		}
		slices.SortFunc(as.Links, func(x, y LinkStatus) int { return x.Link - y.Link })
		s.Agents = append(s.Agents, as)
	}
	slices.SortFunc(s.Connectors, func(x, y ConnectorStatus) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(s.Agents, func(x, y AgentStatus) int { return strings.Compare(x.ID, y.ID) })
	return s
}

// Sessions lists the live sessions of a connector, or of all when connector is
// empty, oldest first.
func (h *Hub) Sessions(connector string) []SessionStatus {
	out := []SessionStatus{}
	for _, s := range h.sessionsNow() {
		if connector != "" && s.conn.name != connector {
			continue
		}
		st := SessionStatus{Session: s.name, Connector: s.conn.name, Client: s.client.Addr.String(), Since: s.started}
		if a := s.agent.Load(); a != nil {
			st.Agent = *a
		}
		if t := s.tunnel.Load(); t != nil {
			st.BytesC2A, st.BytesA2C = t.Transferred()
			st.QueueFrames = t.QueueFrames()
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(x, y SessionStatus) int { return x.Since.Compare(y.Since) })
	return out
}

// LiveState implements obs.Live. New sessions wait for Hub.mu, so what can be read
// without it, the queues of thousands of sessions, is.
func (h *Hub) LiveState() obs.LiveState {
	s, sessions := h.snapshot()
	for i, of := range sessions {
		for _, ss := range of {
			if t := ss.tunnel.Load(); t != nil {
				s.Connectors[i].QueueFrames = max(s.Connectors[i].QueueFrames, t.QueueFrames())
			}
		}
	}
	return s
}

// snapshot reads what needs Hub.mu. It returns the sessions of each connector, too.
func (h *Hub) snapshot() (s obs.LiveState, sessions [][]*session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*session, 0, h.live)
	for name, c := range h.connectors {
		st := obs.ConnectorState{Name: name, ActiveSessions: len(c.sessions)}
		if h.cfg != nil {
			if k := h.cfg.Connectors[name]; k != nil {
				st.QueueBound = k.QueueDepth
				st.AgentsConnected = len(h.servingLocked(k))
			}
		}
		from := len(all)
		all = slices.AppendSeq(all, maps.Keys(c.sessions))
		sessions = append(sessions, all[from:])
		s.Connectors = append(s.Connectors, st)
	}
	for id, a := range h.agents {
		s.Agents = append(s.Agents, obs.AgentState{ID: id, Links: len(a.links), Since: a.since})
	}
	return s, sessions
}

var _ tunnel.Observer = (*obs.Connector)(nil)
