// Package run owns the benchmark's plan: which rows there are, in which order
// systems take their turns, and how the figures become a table.
//
// Invariants: the systems of a row take turns round by round, in rotating
// order, so that a slow minute of the machine hits all of them; every row
// starts its systems afresh; a cell that failed says so and is never filled
// from elsewhere; what was not measured is absent, not zero.
package run

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/systems"
	"github.com/nowconnect/nowconnect/bench/wan"
)

// Row is one benchmark.
type Row struct {
	Name  string
	Group string // loopback, ends, wan, loss or scale
	Title string
	Spec  load.Spec
	WAN   *wan.Params
	// Metrics are the figures for the table, the most important first.
	Metrics []Metric
	// SkipDirect is set where there is no hub and agent to look at.
	SkipDirect bool
	// Measure takes the place of one run of Spec where a cell needs more.
	Measure func(ctx context.Context, o *Options, site *systems.Site, y *systems.System, s load.Spec) (load.Result, error)
	// Grows marks the row that has sizes of ours in the place of systems.
	Grows bool
	// After, if set, is measured once more after all rounds with the target gone.
	After string
}

// Metric is one figure of a row.
type Metric struct {
	Name string
	More bool // more is better
	// First metrics are shown as of the first round: what a process keeps of one
	// round is there for the next.
	First bool
	// Quiet metrics are shown only when one is not zero.
	Quiet bool
}

var (
	bulkMetrics     = []Metric{{Name: "MB/s", More: true}, {Name: "CPU s/GB"}, {Name: "errors", Quiet: true}}
	closedMetrics   = []Metric{{Name: "ops/s", More: true}, {Name: "p50 us"}, {Name: "p99 us"}, {Name: "CPU us/op"}, {Name: "errors", Quiet: true}}
	churnMetrics    = []Metric{{Name: "conns/s", More: true}, {Name: "p50 us"}, {Name: "p99 us"}, {Name: "CPU us/conn"}, {Name: "errors", Quiet: true}}
	openMetrics     = []Metric{{Name: "p50 us"}, {Name: "p99 us"}, {Name: "errors", Quiet: true}}
	pacedMetrics    = []Metric{{Name: "p50 us"}, {Name: "p99 us"}, {Name: "bulk MB/s", More: true}, {Name: "unanswered", Quiet: true}}
	stallMetrics    = []Metric{{Name: "RSS KB each", First: true}, {Name: "p50 us"}, {Name: "p99 us"}, {Name: "bulk MB/s", More: true}, {Name: "stuck conns", Quiet: true}, {Name: "unanswered", Quiet: true}}
	idleMetrics     = []Metric{{Name: "RSS KB/conn", First: true}, {Name: "opened/s", More: true}, {Name: "fds/conn"}, {Name: "idle CPU %", Quiet: true}, {Name: "failed", Quiet: true}, {Name: "dead of 200", Quiet: true}}
	fidelityMetrics = []Metric{{Name: "half-close passed %", More: true}, {Name: "target's RST passed %", More: true}, {Name: "client's RST passed %", More: true}, {Name: "refusal passed %", More: true}}
	recoverMetrics  = []Metric{{Name: "after agent kill, ms"}, {Name: "after hub kill, ms"}}
)

func wanLink(loss float64, control string) *wan.Params {
	return &wan.Params{RTT: 40 * time.Millisecond, Rate: 500, Queue: 40 * time.Millisecond, Loss: loss, Control: control}
}

// Rows returns every row in the order of the table.
func Rows() []Row {
	bulk := func(name, title, kind string, n int) Row {
		return Row{Name: name, Group: "loopback", Title: title, Spec: load.Spec{Kind: kind, Conns: n}, Metrics: bulkMetrics}
	}
	rr := func(n int) Row {
		return Row{
			Name: fmt.Sprintf("rr%d", n), Group: "loopback", Title: fmt.Sprintf("request/reply 100 B → 300 B, %d conns", n),
			Spec: load.Spec{Kind: load.Closed, Conns: n}, Metrics: closedMetrics,
		}
	}
	over := func(w *wan.Params, group, name, title string, metrics []Metric, s load.Spec) Row {
		return Row{Name: name, Group: group, Title: title, Spec: s, WAN: w, Metrics: metrics}
	}
	clean, lossy, bbr := wanLink(0, "cubic"), wanLink(0.5, "cubic"), wanLink(0.5, "bbr")
	return []Row{
		bulk("down1", "bulk down, 1 conn", load.Down, 1),
		bulk("down16", "bulk down, 16 conns", load.Down, 16),
		bulk("up1", "bulk up, 1 conn", load.Up, 1),
		bulk("up16", "bulk up, 16 conns", load.Up, 16),
		rr(1), rr(64), rr(512),
		{
			Name: "churn", Group: "loopback", Title: "connect, one exchange, close; 32 at once",
			Spec: load.Spec{Kind: load.Churn, Conns: 32}, Metrics: churnMetrics,
		},
		{
			Name: "paced8", Group: "loopback", Title: "16 × 50 requests/s beside 8 bulk streams",
			Spec: load.Spec{Kind: load.Paced, Conns: 16, Rate: 50, Bulk: 8}, Metrics: pacedMetrics,
		},
		{
			Name: "stalled8", Group: "loopback", Title: "8 clients never read; 16 × 50 requests/s, then 1 bulk stream",
			Spec: load.Spec{Kind: load.Stalled, Stalled: 8, Conns: 16, Rate: 50}, Metrics: stallMetrics,
		},
		{
			Name: "idle", Group: "loopback", Title: "idle connections", SkipDirect: true,
			Spec: load.Spec{Kind: load.Idle, Conns: 5000}, Metrics: idleMetrics,
		},
		{
			Name: "fidelity", Group: "ends", Title: "ends of a connection",
			Spec: load.Spec{Kind: load.Fidelity, Conns: 16}, Metrics: fidelityMetrics, After: load.Refused,
		},
		{
			Name: "recover", Group: "ends", Title: "restart to first answer", SkipDirect: true,
			Spec: load.Spec{Kind: load.Recover}, Metrics: recoverMetrics, Measure: recoverBoth,
		},
		over(clean, "wan", "wan-down1", "40 ms: bulk down, 1 conn", bulkMetrics, load.Spec{Kind: load.Down, Conns: 1}),
		over(clean, "wan", "wan-up1", "40 ms: bulk up, 1 conn", bulkMetrics, load.Spec{Kind: load.Up, Conns: 1}),
		over(clean, "wan", "wan-open1", "40 ms: connect + first reply, 1 at a time", openMetrics, load.Spec{Kind: load.Churn, Conns: 1}),
		over(clean, "wan", "wan-open16", "40 ms: connect + first reply, 16 at a time", openMetrics, load.Spec{Kind: load.Churn, Conns: 16}),
		over(lossy, "loss", "loss-down8", "40 ms, 0.5 % loss, cubic: bulk down, 8 conns", bulkMetrics, load.Spec{Kind: load.Down, Conns: 8}),
		over(lossy, "loss", "loss-paced1", "40 ms, 0.5 % loss, cubic: 16 × 10 requests/s beside 1 bulk stream", pacedMetrics,
			load.Spec{Kind: load.Paced, Conns: 16, Rate: 10, Bulk: 1}),
		over(bbr, "loss", "bbr-down1", "40 ms, 0.5 % loss, BBR: bulk down, 1 conn", bulkMetrics, load.Spec{Kind: load.Down, Conns: 1}),
		{Name: "scale", Group: "scale", Title: "idle sessions, agents and connectors", Grows: true},
	}
}

// Select returns the rows that words name: row names, groups, or "all".
func Select(words []string) ([]Row, error) {
	rows := Rows()
	for _, w := range words {
		if w != "all" && !slices.ContainsFunc(rows, func(r Row) bool { return w == r.Name || w == r.Group }) {
			return nil, fmt.Errorf("no row or group %q; rows: %s", w, rowNames(rows))
		}
	}
	return slices.DeleteFunc(rows, func(r Row) bool {
		return !slices.Contains(words, "all") && !slices.Contains(words, r.Name) && !slices.Contains(words, r.Group)
	}), nil
}

func rowNames(rows []Row) (names []string) {
	for _, r := range rows {
		names = append(names, r.Name)
	}
	return names
}

// Pace is how long things take.
type Pace struct {
	Rounds          int
	Warm, Window    time.Duration // on loopback
	WANWarm, WANRun time.Duration // slow start takes a second at 40 ms
	Idle            int           // connections of the idle row
	Scale           []int         // percent of the full size, for the scale row
}

// The two paces. Short is for finding out whether something broke: one round
// shows no spread, so its figures are not for publishing.
var (
	Full  = Pace{Rounds: 3, Warm: 500 * time.Millisecond, Window: 2 * time.Second, WANWarm: 1500 * time.Millisecond, WANRun: 4 * time.Second, Idle: 5000, Scale: []int{10, 50, 100}}
	Short = Pace{Rounds: 1, Warm: 300 * time.Millisecond, Window: time.Second, WANWarm: time.Second, WANRun: 1500 * time.Millisecond, Idle: 1000, Scale: []int{10}}
)

// spec returns the row's spec at this pace.
func (p Pace) spec(r Row) load.Spec {
	s := r.Spec
	s.Warm, s.Window = p.Warm, p.Window
	if r.WAN != nil && s.Kind != load.Churn { // no single connection there gets past its first window
		s.Warm, s.Window = p.WANWarm, p.WANRun
	}
	switch s.Kind {
	case load.Idle:
		s.Conns, s.Warm = p.Idle, time.Second
	case load.Recover:
		s.Window = 20 * time.Second
	}
	return s
}
