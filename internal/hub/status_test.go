package hub

import (
	"io"
	"net"
	"slices"
	"testing"

	"github.com/nowconnect/nowconnect/internal/obs"
)

func TestStatus(t *testing.T) {
	cfg := config(dir("a1", "a2"), &Connector{Name: "app", Agents: []string{"a2"}})
	cfg.Agents = []string{"a3"}
	w := newWorld(t, cfg)
	w.agent(login{id: "a1", slot: 1})
	w.agent(login{id: "a1"})
	cl := w.dial()
	defer cl.leave()
	s := w.h.Status()
	if !s.Configured || s.Draining || len(s.Connectors) != 2 || len(s.Agents) != 3 {
		t.Fatalf("%+v", s)
	}
	app, d := s.Connectors[0], s.Connectors[1]
	if app.Name != "app" || app.Ready || len(app.Agents) != 0 || app.Sessions != 0 {
		t.Errorf("%+v", app)
	}
	if d.Name != "dir" || !d.Ready || !slices.Equal(d.Agents, []string{"a1"}) || d.Sessions != 1 {
		t.Errorf("%+v", d)
	}
	a1 := s.Agents[0]
	if a1.ID != "a1" || len(a1.Links) != 2 || a1.Links[0].Link != 0 || a1.Links[1].Link != 1 {
		t.Fatalf("%+v", a1)
	}
	if l := a1.Links[0]; l.Carrier != "nowconnect" || l.Instance != "a1-i1" || l.Software != "test/1" || l.Remote != "test" ||
		!slices.Equal(l.Connectors, []string{"dir"}) || l.Since.IsZero() {
		t.Errorf("%+v", l)
	}
	if n := a1.Links[0].Sessions + a1.Links[1].Sessions; n != 1 {
		t.Errorf("%d sessions", n)
	}
	if s := newWorld(t, nil).h.Status(); s.Configured || s.Connectors == nil || s.Agents == nil {
		t.Errorf("before a configuration: %+v", s)
	}
}

func TestLiveState(t *testing.T) {
	cfg := config(dir("a1"), &Connector{Name: "app", Agents: []string{"a2"}, QueueDepth: 7})
	cfg.Agents = []string{"a3"}
	w := newWorld(t, cfg)
	w.agent(login{id: "a1"})
	w.agent(login{id: "a1", slot: 1})
	w.dial()
	s := w.h.LiveState()
	want := map[string]obs.ConnectorState{
		"dir": {Name: "dir", ActiveSessions: 1, QueueBound: DefaultQueueDepth, AgentsConnected: 1},
		"app": {Name: "app", QueueBound: 7},
	}
	if len(s.Connectors) != 2 {
		t.Errorf("%+v", s.Connectors)
	}
	for _, c := range s.Connectors {
		if c != want[c.Name] {
			t.Errorf("%+v, want %+v", c, want[c.Name])
		}
	}
	links := map[string]int{}
	for _, a := range s.Agents {
		links[a.ID] = a.Links
		if a.Since.IsZero() != (a.Links == 0) {
			t.Errorf("%+v", a)
		}
	}
	if len(links) != 3 || links["a1"] != 2 || links["a2"] != 0 || links["a3"] != 0 {
		t.Errorf("links %v", links)
	}
	w.wantMetric(0, "nowconnect_tunnel_links", "agent", "a3") // at zero before it was ever seen
}

// TestStalledClientShowsInTheQueue has a client that reads nothing.
func TestStalledClientShowsInTheQueue(t *testing.T) {
	w := newWorld(t, config(dir("a1")))
	w.agent(login{id: "a1", target: w.serve(flood)})
	cl := w.client("dir", "10.0.0.1:1")
	cl.SetReadBuffer(4096)
	eventually(t, "the queue shows", func() bool {
		s := w.h.Sessions("dir")
		return len(s) == 1 && s[0].QueueFrames > 0 && w.metric("nowconnect_inbound_queue_size", "connector", "dir") > 0
	})
	if n := w.metric("nowconnect_inbound_queue_size", "connector", "dir"); n > DefaultQueueDepth {
		t.Errorf("%v frames queued, the bound is %d", n, DefaultQueueDepth)
	}
	cl.Close()
}

// flood sends until it cannot.
func flood(c net.Conn) {
	defer c.Close()
	io.Copy(c, neverEnding{})
}
