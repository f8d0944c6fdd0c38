package obs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Agent records what happens on the links of one agent, seen from the hub. Its
// methods may be called concurrently.
type Agent struct {
	rtt        prometheus.Observer
	reconnects map[wire.Reason]prometheus.Counter // fixed keys: wire.LinkReasons
	reauths    map[ReauthResult]prometheus.Counter
}

// ReauthResult tells what became of a credential that came over a live link.
type ReauthResult string

// The results, the values of the label.
const (
	ReauthAccepted ReauthResult = "accepted"
	ReauthRefused  ReauthResult = "refused"
	ReauthError    ReauthResult = "error"   // the hub could not tell
	ReauthLimited  ReauthResult = "limited" // too many: not looked at
)

func reauthCounters(child func(ReauthResult) prometheus.Counter) map[ReauthResult]prometheus.Counter {
	m := make(map[ReauthResult]prometheus.Counter)
	for _, r := range []ReauthResult{ReauthAccepted, ReauthRefused, ReauthError, ReauthLimited} {
		m[r] = child(r)
	}
	return m
}

func newAgent(f *hubFamilies, id string) *Agent {
	a := &Agent{rtt: f.tunnelRTT.WithLabelValues(id)}
	a.reconnects = linkReasonCounters(func(r wire.Reason) prometheus.Counter {
		return f.tunnelReconns.WithLabelValues(id, r.String())
	})
	a.reauths = reauthCounters(func(r ReauthResult) prometheus.Counter {
		return f.tunnelReauths.WithLabelValues(id, string(r))
	})
	return a
}

// Reauth counts a credential that came over a live link.
func (a *Agent) Reauth(r ReauthResult) { a.reauths[r].Inc() }

// Reconnected counts a link that came back, by the reason its predecessor
// ended for. A reason that ends sessions only counts as unknown.
func (a *Agent) Reconnected(r wire.Reason) { countLink(a.reconnects, r) }

// RTT records the round trip of one ping.
func (a *Agent) RTT(d time.Duration) { a.rtt.Observe(d.Seconds()) }

func linkReasonCounters(child func(wire.Reason) prometheus.Counter) map[wire.Reason]prometheus.Counter {
	m := make(map[wire.Reason]prometheus.Counter)
	for _, r := range wire.LinkReasons() {
		m[r] = child(r)
	}
	return m
}

func countLink(m map[wire.Reason]prometheus.Counter, r wire.Reason) {
	n, ok := m[r]
	if !ok {
		n = m[wire.ReasonUnknown]
	}
	n.Inc()
}
