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
	reconnects map[wire.Reason]incrementer // fixed keys: wire.LinkReasons
	reauths    map[ReauthResult]incrementer
}

// incrementer is a counter of the hub's, or of the agent process, which has few
// series and leaves them to Prometheus' library.
type incrementer interface{ Inc() }

// ReauthResult tells what became of a credential that came over a live link.
type ReauthResult string

// The results, the values of the label.
const (
	ReauthAccepted ReauthResult = "accepted"
	ReauthRefused  ReauthResult = "refused"
	ReauthError    ReauthResult = "error"   // the hub could not tell
	ReauthLimited  ReauthResult = "limited" // too many: not looked at
)

func reauthCounters(child func(ReauthResult) incrementer) map[ReauthResult]incrementer {
	m := make(map[ReauthResult]incrementer)
	for _, r := range []ReauthResult{ReauthAccepted, ReauthRefused, ReauthError, ReauthLimited} {
		m[r] = child(r)
	}
	return m
}

func newAgent(f *hubFamilies, id string) *Agent {
	a := &Agent{rtt: f.tunnelRTT.observer(id)}
	a.reconnects = linkReasonCounters(func(r wire.Reason) incrementer {
		return f.tunnelReconns.counter(id, r.String())
	})
	a.reauths = reauthCounters(func(r ReauthResult) incrementer {
		return f.tunnelReauths.counter(id, string(r))
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

func linkReasonCounters(child func(wire.Reason) incrementer) map[wire.Reason]incrementer {
	m := make(map[wire.Reason]incrementer)
	for _, r := range wire.LinkReasons() {
		m[r] = child(r)
	}
	return m
}

func countLink(m map[wire.Reason]incrementer, r wire.Reason) {
	n, ok := m[r]
	if !ok {
		n = m[wire.ReasonUnknown]
	}
	n.Inc()
}
