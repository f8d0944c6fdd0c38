package obs

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// family is what the contract says of one name.
type family struct {
	kind   dto.MetricType
	labels []string            // sorted
	values map[string][]string // closed sets of label values, all present at zero
}

const (
	aCounter   = dto.MetricType_COUNTER
	aGauge     = dto.MetricType_GAUGE
	aHistogram = dto.MetricType_HISTOGRAM
)

func words(rs []wire.Reason) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.String())
	}
	return out
}

// hubContract is the table of names, types and labels that dashboards rely on,
// written out by hand so that renaming anything fails here.
var hubContract = map[string]family{
	"nowconnect_write_drain_seconds":          {aHistogram, []string{"connector", "phase"}, map[string][]string{"phase": {"write", "drain"}}},
	"nowconnect_inbound_queue_size":           {aGauge, []string{"connector"}, nil},
	"nowconnect_queue_depth_per_cid":          {aGauge, []string{"connector"}, nil},
	"nowconnect_queue_overflow_total":         {aCounter, []string{"connector", "side"}, map[string][]string{"side": {"hub", "agent"}}},
	"nowconnect_listener_errors_total":        {aCounter, []string{"connector", "type"}, map[string][]string{"type": {"write", "session", "pdp"}}},
	"nowconnect_listener_accept_errors_total": {aCounter, []string{"connector"}, nil},
	"nowconnect_tcp_connections_total":        {aCounter, []string{"connector"}, nil},
	"nowconnect_tcp_active_connections":       {aGauge, []string{"connector"}, nil},
	"nowconnect_tcp_bytes_total":              {aCounter, []string{"connector", "direction"}, map[string][]string{"direction": {"c2a", "a2c"}}},
	"nowconnect_fin_sent_total":               {aCounter, []string{"connector"}, nil},
	"nowconnect_fin_recv_total":               {aCounter, []string{"connector"}, nil},
	"nowconnect_rst_sent_total":               {aCounter, []string{"connector"}, nil},
	"nowconnect_rst_recv_total":               {aCounter, []string{"connector"}, nil},
	"nowconnect_sessions_closed_total": {aCounter, []string{"connector", "reason"}, map[string][]string{"reason": {
		"fin", "rst", "no_agent", "denied", "pdp_error", "connect_failed", "connect_timeout", "limit", "draining",
		"link_lost", "overflow", "idle", "revoked", "shutdown",
	}}},
	"nowconnect_open_seconds":                {aHistogram, []string{"connector"}, nil},
	"nowconnect_connection_duration_seconds": {aHistogram, []string{"connector"}, nil},
	"nowconnect_frame_bytes":                 {aHistogram, []string{"connector", "direction"}, map[string][]string{"direction": {"c2a", "a2c"}}},
	"nowconnect_pdp_decisions_total":         {aCounter, []string{"connector", "result"}, map[string][]string{"result": {"allow", "deny", "error"}}},
	"nowconnect_pdp_decision_seconds":        {aHistogram, []string{"cached", "connector"}, map[string][]string{"cached": {"true", "false"}}},
	"nowconnect_agents_connected":            {aGauge, []string{"connector"}, nil},
	"nowconnect_tunnel_links":                {aGauge, []string{"agent"}, nil},
	"nowconnect_tunnel_uptime_seconds":       {aGauge, []string{"agent"}, nil},
	"nowconnect_tunnel_rtt_seconds":          {aHistogram, []string{"agent"}, nil},
	"nowconnect_tunnel_reconnects_total":     {aCounter, []string{"agent", "reason"}, map[string][]string{"reason": words(wire.LinkReasons())}},
	"nowconnect_tunnel_reauth_total":         {aCounter, []string{"agent", "result"}, map[string][]string{"result": reauthResults()}},
	"nowconnect_ldap_membership_batch_total": {aCounter, []string{"action", "connector", "outcome"}, map[string][]string{
		"action": {"add", "remove"}, "outcome": {"ok", "noop", "refused", "lost"}}},
	"nowconnect_ldap_membership_values_total": {aCounter, []string{"action", "connector", "outcome"}, map[string][]string{
		"action":  {"add", "remove"},
		"outcome": {"added", "already_member", "removed", "not_member", "failed", "unknown", "skipped"}}},
	"nowconnect_ldap_membership_batch_seconds": {aHistogram, []string{"action", "connector"}, map[string][]string{"action": {"add", "remove"}}},
	"nowconnect_ldap_membership_errors_total": {aCounter, []string{"action", "code", "connector"}, map[string][]string{
		"action": {"add", "remove"},
		"code": {"1", "8", "10", "16", "17", "19", "20", "21", "32", "34", "49", "50", "51", "52", "53", "65", "68", "80", "122",
			"other", "none"}}},
}

// reauthResults makes a new slice: checkContract sorts it in place.
func reauthResults() []string { return []string{"accepted", "refused", "error", "limited"} }

var agentContract = map[string]family{
	"nowconnect_agent_sessions_total":        {aCounter, []string{"connector"}, nil},
	"nowconnect_agent_sessions_active":       {aGauge, []string{"connector"}, nil},
	"nowconnect_agent_sessions_closed_total": {aCounter, []string{"connector", "reason"}, map[string][]string{"reason": words(wire.SessionReasons())}},
	"nowconnect_agent_bytes_total":           {aCounter, []string{"connector", "direction"}, map[string][]string{"direction": {"c2a", "a2c"}}},
	"nowconnect_agent_write_drain_seconds":   {aHistogram, []string{"connector", "phase"}, map[string][]string{"phase": {"write", "drain"}}},
	"nowconnect_agent_dial_seconds":          {aHistogram, []string{"connector"}, nil},
	"nowconnect_agent_link_up":               {aGauge, []string{"link"}, map[string][]string{"link": {"0", "1"}}},
	"nowconnect_agent_reconnects_total":      {aCounter, []string{"reason"}, map[string][]string{"reason": words(wire.LinkReasons())}},
	"nowconnect_agent_reauth_total":          {aCounter, []string{"result"}, map[string][]string{"result": reauthResults()}},
	"nowconnect_agent_link_rtt_seconds":      {aHistogram, nil, nil},
}

// fakeLive stands in for the hub, whose state a test must choose.
type fakeLive struct {
	mu    sync.Mutex
	state LiveState
}

func (f *fakeLive) LiveState() LiveState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeLive) set(s LiveState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
}

func idleLive() *fakeLive {
	return &fakeLive{state: LiveState{
		Connectors: []ConnectorState{{Name: "addomain", QueueBound: 256}},
		Agents:     []AgentState{{ID: "premise-1"}},
	}}
}

func register(t *testing.T, c prometheus.Collector) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	return r
}

func gather(t *testing.T, r *prometheus.Registry) map[string]*dto.MetricFamily {
	t.Helper()
	got, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]*dto.MetricFamily)
	for _, f := range got {
		m[f.GetName()] = f
	}
	return m
}

// number gives a series' value, a histogram's count.
func number(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	default:
		return float64(m.Histogram.GetSampleCount())
	}
}

// value finds the one series of name whose labels include all of kv.
func value(t *testing.T, fs map[string]*dto.MetricFamily, name string, kv ...string) float64 {
	t.Helper()
	var found []*dto.Metric
	for _, m := range fs[name].GetMetric() {
		have := make(map[string]string)
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		ok := true
		for i := 0; i < len(kv); i += 2 {
			ok = ok && have[kv[i]] == kv[i+1]
		}
		if ok {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s%v: %d series, want one", name, kv, len(found))
	}
	return number(found[0])
}

func checkContract(t *testing.T, got map[string]*dto.MetricFamily, want map[string]family) {
	t.Helper()
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is not in the contract", name)
		}
	}
	for name, w := range want {
		f, ok := got[name]
		if !ok {
			t.Errorf("%s is missing", name)
			continue
		}
		if f.GetType() != w.kind {
			t.Errorf("%s is a %v, want %v", name, f.GetType(), w.kind)
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		seen := make(map[string]map[string]bool)
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
				if seen[l.GetName()] == nil {
					seen[l.GetName()] = make(map[string]bool)
				}
				seen[l.GetName()][l.GetValue()] = true
			}
			if slices.Sort(labels); !slices.Equal(labels, w.labels) {
				t.Errorf("%s has labels %v, want %v", name, labels, w.labels)
			}
		}
		for label, values := range w.values {
			slices.Sort(values)
			if have := slices.Sorted(maps.Keys(seen[label])); !slices.Equal(have, values) {
				t.Errorf("%s: %s is one of %v, want %v", name, label, have, values)
			}
		}
	}
}

func TestEverySeriesOfTheContractExistsAtZero(t *testing.T) {
	for _, native := range []bool{false, true} {
		m := New(Options{NativeHistograms: native})
		m.Connector("addomain")
		m.Agent("premise-1")
		m.Membership("addomain")
		got := gather(t, register(t, m.Collector(idleLive())))
		checkContract(t, got, hubContract)
		for name, f := range got {
			for _, s := range f.GetMetric() {
				if name != "nowconnect_queue_depth_per_cid" && number(s) != 0 {
					t.Errorf("%s starts at %v", name, number(s))
				}
				if f.GetType() == aHistogram && native != (s.GetHistogram().GetZeroThreshold() > 0) {
					t.Errorf("%s: native is %v, want %v", name, !native, native)
				}
			}
		}
	}
}

func TestAgentSeriesExistAtZero(t *testing.T) {
	m := NewAgentMetrics()
	m.Connector("addomain")
	m.LinkUp(0, false)
	m.LinkUp(1, false)
	got := gather(t, register(t, m))
	checkContract(t, got, agentContract)
	for name, f := range got {
		for _, s := range f.GetMetric() {
			if number(s) != 0 {
				t.Errorf("%s starts at %v", name, number(s))
			}
		}
	}
}

func TestEachMethodMovesItsOwnSeries(t *testing.T) {
	tests := map[string]struct {
		do    func(*Connector)
		moves map[string]float64 // "name label value": by how much
	}{
		"Accepted":          {func(c *Connector) { c.Accepted() }, map[string]float64{"nowconnect_tcp_connections_total": 1}},
		"AcceptError":       {func(c *Connector) { c.AcceptError() }, map[string]float64{"nowconnect_listener_accept_errors_total": 1}},
		"Closed":            {func(c *Connector) { c.Closed(wire.ReasonIdle) }, map[string]float64{"nowconnect_sessions_closed_total reason idle": 1}},
		"Closed of unknown": {func(c *Connector) { c.Closed(wire.ReasonUnknown) }, map[string]float64{"nowconnect_sessions_closed_total reason rst": 1}},
		"Closed of newer":   {func(c *Connector) { c.Closed(200) }, map[string]float64{"nowconnect_sessions_closed_total reason rst": 1}},
		"OpenTime":          {func(c *Connector) { c.OpenTime(time.Second) }, map[string]float64{"nowconnect_open_seconds": 1}},
		"Duration":          {func(c *Connector) { c.Duration(time.Second) }, map[string]float64{"nowconnect_connection_duration_seconds": 1}},
		"Overflow hub":      {func(c *Connector) { c.Overflow(SideHub) }, map[string]float64{"nowconnect_queue_overflow_total side hub": 1}},
		"Overflow agent":    {func(c *Connector) { c.Overflow(SideAgent) }, map[string]float64{"nowconnect_queue_overflow_total side agent": 1}},
		"ListenerError write": {func(c *Connector) { c.ListenerError(ErrorWrite) },
			map[string]float64{"nowconnect_listener_errors_total type write": 1}},
		"ListenerError session": {func(c *Connector) { c.ListenerError(ErrorSession) },
			map[string]float64{"nowconnect_listener_errors_total type session": 1}},
		"ListenerError pdp": {func(c *Connector) { c.ListenerError(ErrorPDP) },
			map[string]float64{"nowconnect_listener_errors_total type pdp": 1}},
		"PDP allow": {func(c *Connector) { c.PDP(authz.Allow, false, time.Millisecond) },
			map[string]float64{"nowconnect_pdp_decisions_total result allow": 1, "nowconnect_pdp_decision_seconds cached false": 1}},
		"PDP deny": {func(c *Connector) { c.PDP(authz.Deny, true, time.Millisecond) },
			map[string]float64{"nowconnect_pdp_decisions_total result deny": 1, "nowconnect_pdp_decision_seconds cached true": 1}},
		"PDP error": {func(c *Connector) { c.PDP(authz.Error, false, time.Millisecond) },
			map[string]float64{"nowconnect_pdp_decisions_total result error": 1, "nowconnect_pdp_decision_seconds cached false": 1}},
		"FrameSent": {func(c *Connector) { c.FrameSent(100) },
			map[string]float64{"nowconnect_tcp_bytes_total direction c2a": 100, "nowconnect_frame_bytes direction c2a": 1}},
		"FrameReceived": {func(c *Connector) { c.FrameReceived(100) }, map[string]float64{"nowconnect_frame_bytes direction a2c": 1}},
		"Written":       {func(c *Connector) { c.Written(100) }, map[string]float64{"nowconnect_tcp_bytes_total direction a2c": 100}},
		"WriteTime":     {func(c *Connector) { c.WriteTime(time.Millisecond) }, map[string]float64{"nowconnect_write_drain_seconds phase write": 1}},
		"DrainTime":     {func(c *Connector) { c.DrainTime(time.Millisecond) }, map[string]float64{"nowconnect_write_drain_seconds phase drain": 1}},
		"FinSent":       {func(c *Connector) { c.FinSent() }, map[string]float64{"nowconnect_fin_sent_total": 1}},
		"FinReceived":   {func(c *Connector) { c.FinReceived() }, map[string]float64{"nowconnect_fin_recv_total": 1}},
		"RstSent":       {func(c *Connector) { c.RstSent() }, map[string]float64{"nowconnect_rst_sent_total": 1}},
		"RstReceived":   {func(c *Connector) { c.RstReceived() }, map[string]float64{"nowconnect_rst_recv_total": 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := New(Options{})
			other := m.Connector("other")
			c := m.Connector("addomain")
			if c == other {
				t.Fatal("two connectors share a recorder")
			}
			tt.do(c)
			got := make(map[string]float64)
			for name, f := range gather(t, register(t, m.Collector(&fakeLive{}))) {
				for _, s := range f.GetMetric() {
					if n := number(s); n != 0 {
						got[seriesKey(name, s)] = n
					}
				}
			}
			if !maps.Equal(got, tt.moves) {
				t.Errorf("moved %v, want %v", got, tt.moves)
			}
		})
	}
}

func TestMembershipMovesItsOwnSeries(t *testing.T) {
	const batches, values, seconds, errs = "nowconnect_ldap_membership_batch_total", "nowconnect_ldap_membership_values_total",
		"nowconnect_ldap_membership_batch_seconds", "nowconnect_ldap_membership_errors_total"
	for name, tt := range map[string]struct {
		do    func(*Membership)
		moves map[string]float64
	}{
		"ok":      {func(m *Membership) { m.Batch(false, 0, time.Second) }, map[string]float64{batches + " action add outcome ok": 1, seconds + " action add": 1}},
		"no-op":   {func(m *Membership) { m.Batch(true, 16, time.Second) }, map[string]float64{batches + " action remove outcome noop": 1, seconds + " action remove": 1, errs + " action remove code 16": 1}},
		"refused": {func(m *Membership) { m.Batch(false, 50, time.Second) }, map[string]float64{batches + " action add outcome refused": 1, seconds + " action add": 1, errs + " action add code 50": 1}},
		"other":   {func(m *Membership) { m.Batch(false, 4242, time.Second) }, map[string]float64{batches + " action add outcome refused": 1, seconds + " action add": 1, errs + " action add code other": 1}},
		"lost":    {func(m *Membership) { m.BatchLost(true, time.Second) }, map[string]float64{batches + " action remove outcome lost": 1, seconds + " action remove": 1, errs + " action remove code none": 1}},
		"value":   {func(m *Membership) { m.Value(true, "not_member") }, map[string]float64{values + " action remove outcome not_member": 1}},
		"no such": {func(m *Membership) { m.Value(true, "not a word") }, map[string]float64{}},
	} {
		m := New(Options{})
		if m.Membership("other") == m.Membership("addomain") {
			t.Fatal("two directories share a recorder")
		}
		tt.do(m.Membership("addomain"))
		got := make(map[string]float64)
		for family, f := range gather(t, register(t, m.Collector(&fakeLive{}))) {
			for _, s := range f.GetMetric() {
				if n := number(s); n != 0 {
					got[seriesKey(family, s)] = n
				}
			}
		}
		if !maps.Equal(got, tt.moves) {
			t.Errorf("%s: moved %v, want %v", name, got, tt.moves)
		}
	}
}

// seriesKey is the name and the labels other than connector, which must be the
// one that was recorded on.
func seriesKey(name string, m *dto.Metric) string {
	parts := []string{name}
	for _, l := range m.GetLabel() {
		if l.GetName() == "connector" && l.GetValue() == "addomain" {
			continue
		}
		parts = append(parts, l.GetName(), l.GetValue())
	}
	return strings.Join(parts, " ")
}

func TestAgentLinkSeries(t *testing.T) {
	m := New(Options{})
	a := m.Agent("premise-1")
	a.RTT(40 * time.Millisecond)
	a.Reconnected(wire.ReasonPingTimeout)
	a.Reconnected(wire.ReasonIdle) // ends sessions only
	got := gather(t, register(t, m.Collector(&fakeLive{})))
	if n := value(t, got, "nowconnect_tunnel_rtt_seconds"); n != 1 {
		t.Errorf("rtt observed %v times", n)
	}
	for _, reason := range []string{"ping_timeout", "unknown"} {
		if n := value(t, got, "nowconnect_tunnel_reconnects_total", "reason", reason); n != 1 {
			t.Errorf("reconnects for %s: %v", reason, n)
		}
	}
}

func TestAgentProcessSeriesMove(t *testing.T) {
	m := NewAgentMetrics()
	c := m.Connector("addomain")
	if m.Connector("addomain") != c {
		t.Fatal("a second Connector call gave another recorder")
	}
	r := register(t, m)
	c.Opened()
	c.Opened()
	c.DialTime(time.Millisecond)
	c.FrameReceived(7)
	c.Written(7)
	c.FrameSent(9)
	c.WriteTime(time.Millisecond)
	c.DrainTime(time.Millisecond)
	c.Closed(wire.ReasonFin)
	m.LinkUp(0, true)
	m.LinkUp(1, true)
	m.LinkUp(1, false)
	m.RTT(time.Millisecond)
	m.Reconnected(wire.ReasonLinkLost)
	got := gather(t, r)
	for _, w := range []struct {
		n    float64
		name string
		kv   []string
	}{
		{2, "nowconnect_agent_sessions_total", nil},
		{1, "nowconnect_agent_sessions_active", nil},
		{1, "nowconnect_agent_sessions_closed_total", []string{"reason", "fin"}},
		{7, "nowconnect_agent_bytes_total", []string{"direction", "c2a"}},
		{9, "nowconnect_agent_bytes_total", []string{"direction", "a2c"}},
		{1, "nowconnect_agent_write_drain_seconds", []string{"phase", "write"}},
		{1, "nowconnect_agent_write_drain_seconds", []string{"phase", "drain"}},
		{1, "nowconnect_agent_dial_seconds", nil},
		{1, "nowconnect_agent_link_up", []string{"link", "0"}},
		{0, "nowconnect_agent_link_up", []string{"link", "1"}},
		{1, "nowconnect_agent_link_rtt_seconds", nil},
		{1, "nowconnect_agent_reconnects_total", []string{"reason", "link_lost"}},
	} {
		if n := value(t, got, w.name, w.kv...); n != w.n {
			t.Errorf("%s%v = %v, want %v", w.name, w.kv, n, w.n)
		}
	}
}

// A reload registers a second collector while the first config still runs, and
// a failed load drops its registry again. Both must show the same counts.
func TestRegistriesShareCountsAndNothingResets(t *testing.T) {
	m := New(Options{})
	live := idleLive()
	first := register(t, m.Collector(live))
	m.Connector("addomain").Accepted()
	second := register(t, m.Collector(live))
	m.Connector("addomain").Accepted()
	for i, r := range []*prometheus.Registry{first, second} {
		if n := value(t, gather(t, r), "nowconnect_tcp_connections_total"); n != 2 {
			t.Errorf("registry %d shows %v connections, want 2", i, n)
		}
	}
}

// A connector that the next config adds must appear in a registry that was
// filled before: Describe may not depend on what exists.
func TestConnectorAddedAfterRegistration(t *testing.T) {
	m := New(Options{})
	r := register(t, m.Collector(&fakeLive{}))
	if n := len(gather(t, r)); n != 0 {
		t.Fatalf("%d families without a connector", n)
	}
	m.Connector("late").FrameSent(1)
	if n := value(t, gather(t, r), "nowconnect_tcp_bytes_total", "connector", "late", "direction", "c2a"); n != 1 {
		t.Errorf("c2a = %v, want 1", n)
	}
}

func TestGaugesReadLiveState(t *testing.T) {
	m := New(Options{})
	live := &fakeLive{}
	r := register(t, m.Collector(live))
	live.set(LiveState{
		Connectors: []ConnectorState{{Name: "addomain", ActiveSessions: 3, QueueFrames: 17, QueueBound: 256, AgentsConnected: 2}},
		Agents: []AgentState{
			{ID: "up", Links: 2, Since: time.Now().Add(-time.Hour)},
			{ID: "down", Since: time.Now().Add(-time.Hour)},
			{ID: "ahead", Links: 1, Since: time.Now().Add(time.Hour)},
		},
	})
	got := gather(t, r)
	for _, w := range []struct {
		n    float64
		name string
		kv   []string
	}{
		{3, "nowconnect_tcp_active_connections", nil},
		{17, "nowconnect_inbound_queue_size", nil},
		{256, "nowconnect_queue_depth_per_cid", nil},
		{2, "nowconnect_agents_connected", nil},
		{2, "nowconnect_tunnel_links", []string{"agent", "up"}},
		{0, "nowconnect_tunnel_links", []string{"agent", "down"}},
		{0, "nowconnect_tunnel_uptime_seconds", []string{"agent", "down"}},
		{0, "nowconnect_tunnel_uptime_seconds", []string{"agent", "ahead"}},
	} {
		if n := value(t, got, w.name, w.kv...); n != w.n {
			t.Errorf("%s%v = %v, want %v", w.name, w.kv, n, w.n)
		}
	}
	if up := value(t, got, "nowconnect_tunnel_uptime_seconds", "agent", "up"); up < 3600 || up > 3700 {
		t.Errorf("uptime = %v, want an hour", up)
	}
	live.set(LiveState{})
	if f := gather(t, r)["nowconnect_tcp_active_connections"]; f != nil {
		t.Errorf("an unconfigured connector still shows %v", f)
	}
}

// Scrapes, loads and recording meet in a running hub; the race detector judges.
func TestConcurrentUse(t *testing.T) {
	m := New(Options{})
	live := idleLive()
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "a", "b"} {
		wg.Go(func() {
			for range 200 {
				m.Connector(name).FrameSent(10)
				m.Agent(name).RTT(time.Millisecond)
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for range 20 {
				r := prometheus.NewPedanticRegistry()
				if err := r.Register(m.Collector(live)); err != nil {
					t.Error(err)
					return
				}
				if _, err := r.Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := gather(t, register(t, m.Collector(live)))
	if n := value(t, got, "nowconnect_tcp_bytes_total", "connector", "a", "direction", "c2a"); n != 4000 {
		t.Errorf("c2a = %v, want 4000", n)
	}
}
