package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// Label values of closed sets, and the names that the test's configuration has.
var (
	connectorNames = []string{"echo", "unused"}
	agentNames     = []string{agentID, agent2ID}
	directions     = []string{"c2a", "a2c"}
	sessionReasons = []string{
		"fin", "rst", "no_agent", "denied", "pdp_error", "connect_failed", "connect_timeout", "limit", "draining",
		"link_lost", "overflow", "idle", "revoked", "shutdown",
	}
	linkReasons = []string{"unknown", "link_lost", "ping_timeout", "superseded", "revoked", "refused", "protocol", "shutdown"}
)

// family is one row of the metrics contract.
type family struct {
	name, kind string
	labels     map[string][]string // and all the values that each label has
}

func labels(of ...any) map[string][]string {
	m := make(map[string][]string)
	for i := 0; i < len(of); i += 2 {
		m[of[i].(string)] = of[i+1].([]string)
	}
	return m
}

// contract is what dashboards and alerts lean on, written down here once more
// on purpose: a name that changes in the code must not change here by itself.
var contract = []family{
	{"nowconnect_write_drain_seconds", "histogram", labels("connector", connectorNames, "phase", []string{"write", "drain"})},
	{"nowconnect_inbound_queue_size", "gauge", labels("connector", connectorNames)},
	{"nowconnect_queue_depth_per_cid", "gauge", labels("connector", connectorNames)},
	{"nowconnect_queue_overflow_total", "counter", labels("side", []string{"hub", "agent"}, "connector", connectorNames)},
	{"nowconnect_listener_errors_total", "counter", labels("connector", connectorNames, "type", []string{"write", "session", "pdp"})},
	{"nowconnect_listener_accept_errors_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_tcp_connections_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_tcp_active_connections", "gauge", labels("connector", connectorNames)},
	{"nowconnect_tcp_bytes_total", "counter", labels("direction", directions, "connector", connectorNames)},
	{"nowconnect_fin_sent_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_fin_recv_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_rst_sent_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_rst_recv_total", "counter", labels("connector", connectorNames)},
	{"nowconnect_sessions_closed_total", "counter", labels("connector", connectorNames, "reason", sessionReasons)},
	{"nowconnect_open_seconds", "histogram", labels("connector", connectorNames)},
	{"nowconnect_connection_duration_seconds", "histogram", labels("connector", connectorNames)},
	{"nowconnect_frame_bytes", "histogram", labels("direction", directions, "connector", connectorNames)},
	{"nowconnect_pdp_decisions_total", "counter", labels("result", []string{"allow", "deny", "error"}, "connector", connectorNames)},
	{"nowconnect_pdp_decision_seconds", "histogram", labels("connector", connectorNames, "cached", []string{"true", "false"})},
	{"nowconnect_agents_connected", "gauge", labels("connector", connectorNames)},
	{"nowconnect_tunnel_links", "gauge", labels("agent", agentNames)},
	{"nowconnect_tunnel_uptime_seconds", "gauge", labels("agent", agentNames)},
	{"nowconnect_tunnel_rtt_seconds", "histogram", labels("agent", agentNames)},
	{"nowconnect_tunnel_reconnects_total", "counter", labels("agent", agentNames, "reason", linkReasons)},
	{"nowconnect_tunnel_reauth_total", "counter", labels("agent", agentNames, "result", []string{"accepted", "error", "limited", "refused"})},
}

// combinations lists each set of label values as Prometheus would print it.
func combinations(of map[string][]string) []string {
	out := []string{""}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		var longer []string
		for _, head := range out {
			for _, v := range of[name] {
				longer = append(longer, head+fmt.Sprintf("%s=%q,", name, v))
			}
		}
		out = longer
	}
	slices.Sort(out)
	return out
}

// labelled prints a sample's own labels in the same way.
func labelled(s testpeer.Sample) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		if name != "job" && name != "instance" && name != "le" {
			fmt.Fprintf(&b, "%s=%q,", name, s.Labels[name])
		}
	}
	return b.String()
}

// samples is the part of a family that tells of each series whether anything
// happened: a histogram's count.
func (f family) samples(p *testpeer.Prom) []testpeer.Sample {
	if f.kind == "histogram" {
		return p.Query(f.name + "_count")
	}
	return p.Query(f.name)
}

func TestPrometheusSeesTheContract(t *testing.T) {
	s := startSite(t, siteOptions{process: true, race: true, noAgent: true, hub: []string{agent2Auth()}, connectors: []connector{
		{name: "echo", target: testpeer.Echo(t).Addr, lines: []string{"queue_depth_per_cid 100"}},
		{name: "unused", lines: []string{"queue_depth_per_cid 100", "agents " + agentID + " " + agent2ID}},
	}})
	p := testpeer.Prometheus(t, "http://"+s.http+"/metrics")
	p.Scrape()
	checkTypes(t, p)
	checkZero(t, p)

	s.agent(nil)
	c := s.dial("echo")
	bytes := func(direction string) string {
		return fmt.Sprintf("nowconnect_tcp_bytes_total{connector=%q,direction=%q}", "echo", direction)
	}
	// A connection that stays open: what it carries shows while it lives.
	message := strings.Repeat("x", 1000)
	for i := 1; i <= 3; i++ {
		roundTrip(t, c, message)
		carried := float64(i * len(message))
		for expr, want := range map[string]func(v float64) bool{
			bytes("c2a"): exactly(carried),
			bytes("a2c"): exactly(carried),
			`nowconnect_tcp_connections_total{connector="echo"}`: exactly(1),
			active("echo"): exactly(1),
			`nowconnect_agents_connected{connector="echo"}`: exactly(1),
			linksOf(agentID): exactly(nearLinks),
			`nowconnect_tunnel_uptime_seconds{agent="` + agentID + `"}`:                                above(0),
			`nowconnect_tunnel_rtt_seconds_count{agent="` + agentID + `"}`:                             above(0),
			`nowconnect_tunnel_rtt_seconds_sum{agent="` + agentID + `"}`:                               above(0),
			`nowconnect_open_seconds_count{connector="echo"}`:                                          exactly(1),
			`nowconnect_open_seconds_sum{connector="echo"}`:                                            above(0),
			`nowconnect_frame_bytes_count{connector="echo",direction="c2a"}`:                           above(float64(i) - 1),
			`nowconnect_frame_bytes_count{connector="echo",direction="a2c"}`:                           above(float64(i) - 1),
			`nowconnect_frame_bytes_sum{connector="echo",direction="a2c"}`:                             exactly(carried),
			`nowconnect_write_drain_seconds_count{connector="echo",phase="write"}`:                     above(float64(i) - 1),
			`nowconnect_pdp_decisions_total{connector="echo",result="allow"}`:                          exactly(1),
			`nowconnect_pdp_decision_seconds_count{connector="echo",cached="false"}`:                   exactly(1),
			`nowconnect_connection_duration_seconds_count{connector="echo"}`:                           exactly(0),
			`sum(nowconnect_sessions_closed_total{connector="echo"})`:                                  exactly(0),
			`sum(nowconnect_fin_sent_total) + sum(nowconnect_fin_recv_total)`:                          exactly(0),
			`histogram_quantile(0.5, nowconnect_frame_bytes_bucket{connector="echo",direction="c2a"})`: above(0),
		} {
			awaitValue(t, p, expr, want)
		}
	}
	finish(t, c)
	carried := float64(3*len(message) + len("still served"))
	for expr, want := range map[string]func(v float64) bool{
		bytes("c2a"):                            exactly(carried),
		bytes("a2c"):                            exactly(carried),
		active("echo"):                          exactly(0),
		closed("echo", "fin"):                   exactly(1),
		`sum(nowconnect_sessions_closed_total)`: exactly(1),
		`nowconnect_fin_sent_total{connector="echo"}`:                    exactly(1),
		`nowconnect_fin_recv_total{connector="echo"}`:                    exactly(1),
		`nowconnect_connection_duration_seconds_count{connector="echo"}`: exactly(1),
		`nowconnect_connection_duration_seconds_sum{connector="echo"}`:   above(0),
	} {
		awaitValue(t, p, expr, want)
	}
	// Nobody's series move with somebody else's.
	for _, f := range contract {
		for _, sample := range f.samples(p) {
			if sample.Labels["connector"] == "unused" && sample.Value != 0 && f.name != "nowconnect_queue_depth_per_cid" ||
				sample.Labels["agent"] == agent2ID && sample.Value != 0 {
				t.Errorf("%s{%s} is %v", sample.Name, labelled(sample), sample.Value)
			}
		}
	}
	checkTypes(t, p)
}

func exactly(want float64) func(float64) bool { return func(v float64) bool { return v == want } }

func above(least float64) func(float64) bool { return func(v float64) bool { return v > least } }

// awaitValue waits until Prometheus has the value: some counts follow the bytes
// that the client has seen, and scrapes follow both.
func awaitValue(t *testing.T, p *testpeer.Prom, expr string, want func(float64) bool) {
	t.Helper()
	var got []testpeer.Sample
	if !eventually(func() bool {
		got = p.Query(expr)
		return len(got) == 1 && want(got[0].Value)
	}) {
		t.Errorf("%s is %v", expr, got)
	}
}

// checkTypes compares names and types. What nowconnect_ names there are beyond
// the contract would be a promise that nobody has made.
func checkTypes(t *testing.T, p *testpeer.Prom) {
	t.Helper()
	types := p.Types()
	for _, f := range contract {
		// Prometheus asks for OpenMetrics, which names a counter's family
		// without the suffix that its series have.
		name := f.name
		if f.kind == "counter" {
			name = strings.TrimSuffix(name, "_total")
		}
		if types[name] != f.kind {
			t.Errorf("%s is a %s, not a %s", f.name, cmp.Or(types[name], "metric that is missing"), f.kind)
		}
		delete(types, name)
	}
	for name, kind := range types {
		if strings.HasPrefix(name, "nowconnect_") {
			t.Errorf("%s, a %s, is not in the contract", name, kind)
		}
	}
}

// checkZero sees that each series is there before anything has happened, with
// each value of each label, and zero.
func checkZero(t *testing.T, p *testpeer.Prom) {
	t.Helper()
	for _, f := range contract {
		var got []string
		for _, sample := range f.samples(p) {
			got = append(got, labelled(sample))
			want := float64(0)
			if f.name == "nowconnect_queue_depth_per_cid" {
				want = 100
			}
			if sample.Value != want {
				t.Errorf("%s{%s} is %v before anything happened, want %v", sample.Name, labelled(sample), sample.Value, want)
			}
		}
		slices.Sort(got)
		if want := combinations(f.labels); !slices.Equal(got, want) {
			t.Errorf("%s has the series\n%s\nwant\n%s", f.name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if f.kind != "histogram" {
			continue
		}
		for _, part := range []string{"_sum", "_bucket"} {
			if n := len(p.Query(f.name + part)); n < len(got) {
				t.Errorf("%s%s has %d series", f.name, part, n)
			}
		}
	}
}
