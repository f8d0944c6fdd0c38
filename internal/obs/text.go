package obs

import (
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// textChunk is about how much text is handed to the writer at a time.
const textChunk = 64 << 10

// WriteText writes all of the hub's metrics in Prometheus' text format 0.0.4, or
// in that of OpenMetrics 1.0 without the `# EOF` that ends it. It does what
// Gather and an encoder do, at a twentieth of the cost, and holds no lock that
// recording waits for.
func (m *Metrics) WriteText(w io.Writer, live Live, openMetrics bool) error {
	t := &text{w: w, om: openMetrics, b: make([]byte, 0, textChunk+4096)}
	for _, f := range m.families.all {
		t.family(f)
	}
	t.live(live.LiveState())
	t.flush()
	return t.err
}

// text is text on its way.
type text struct {
	w    io.Writer
	om   bool
	b    []byte
	err  error    // the first of w
	head []byte   // of the lines of one series
	read []uint64 // buckets of one series
}

func (t *text) flush() {
	if t.err == nil {
		_, t.err = t.w.Write(t.b)
	}
	t.b = t.b[:0]
}

// line ends a line, and hands what there is to the writer if it is much.
func (t *text) line() {
	t.b = append(t.b, '\n')
	if len(t.b) >= textChunk {
		t.flush()
	}
}

func (t *text) family(f *vec) {
	all := f.all()
	if len(all) == 0 {
		return // as Gather does
	}
	if f.bounds == nil {
		t.header(f.name, f.help, "counter")
		for _, s := range all {
			t.sample(f.name, s.labels)
			t.b = strconv.AppendUint(t.b, s.count.n.Load(), 10)
			t.line()
		}
		return
	}
	t.header(f.name, f.help, "histogram")
	n := histogramNames{f.name + "_bucket", f.name + "_sum", f.name + "_count"}
	bounds := t.bounds(f.bounds)
	for _, s := range all {
		t.histogram(&n, bounds, s)
	}
}

// bounds are the ends of the heads of bucket lines.
func (t *text) bounds(upper []float64) []string {
	var ends []string
	for _, u := range append(slices.Clone(upper), math.Inf(1)) {
		ends = append(ends, string(append(t.float(nil, u), `"} `...)))
	}
	return ends
}

type histogramNames struct{ bucket, sum, count string }

func (t *text) histogram(n *histogramNames, bounds []string, s *series) {
	t.head = append(t.head[:0], n.bucket...)
	t.head = append(t.head, '{')
	t.head = append(t.head, s.labels...)
	t.head = append(t.head, `,le="`...)
	t.read = slices.Grow(t.read[:0], len(bounds))[:len(bounds)]
	sum := s.hist.read(t.read)
	for i, end := range bounds {
		t.b = append(t.b, t.head...)
		t.b = append(t.b, end...)
		t.b = strconv.AppendUint(t.b, t.read[i], 10)
		t.line()
	}
	t.sample(n.sum, s.labels)
	t.b = t.float(t.b, sum)
	t.line()
	t.sample(n.count, s.labels)
	t.b = strconv.AppendUint(t.b, t.read[len(bounds)-1], 10)
	t.line()
}

// sample begins a line.
func (t *text) sample(name, labels string) {
	t.b = append(t.b, name...)
	t.b = append(t.b, '{')
	t.b = append(t.b, labels...)
	t.b = append(t.b, "} "...)
}

// header begins a family. The families' help texts need no escaping, a test sees
// to that.
func (t *text) header(name, help, kind string) {
	if t.om {
		name = strings.TrimSuffix(name, "_total")
	}
	for _, part := range []string{"# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind} {
		t.b = append(t.b, part...)
	}
	t.line()
}

// float writes a number. Bounds must be written as the encoders of both formats
// do, because they are labels.
func (t *text) float(b []byte, v float64) []byte {
	if math.IsInf(v, 1) {
		return append(b, "+Inf"...)
	}
	from := len(b)
	b = strconv.AppendFloat(b, v, 'g', -1, 64)
	if t.om && !slices.ContainsFunc(b[from:], func(c byte) bool { return c == '.' || c == 'e' }) {
		b = append(b, ".0"...)
	}
	return b
}

// gauge is a family that is read and not recorded.
type gauge struct {
	name, help, label string
	desc              *prometheus.Desc
}

func newGauge(name, help, label string) gauge {
	return gauge{name, help, label, prometheus.NewDesc(name, help, []string{label}, nil)}
}

// live writes the gauges, in the order of names: a text that stays the same
// packs better.
func (t *text) live(s LiveState) {
	slices.SortFunc(s.Connectors, func(x, y ConnectorState) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(s.Agents, func(x, y AgentState) int { return strings.Compare(x.ID, y.ID) })
	for _, g := range connectorGauges {
		gauges(t, g.gauge, s.Connectors, func(k ConnectorState) (string, float64) { return k.Name, g.value(k) })
	}
	now := time.Now()
	for _, g := range agentGauges {
		gauges(t, g.gauge, s.Agents, func(a AgentState) (string, float64) { return a.ID, g.value(a, now) })
	}
}

func gauges[T any](t *text, g gauge, all []T, one func(T) (string, float64)) {
	for i, x := range all {
		if i == 0 {
			t.header(g.name, g.help, "gauge")
		}
		name, v := one(x)
		for _, part := range []string{g.name, "{", g.label, `="`, escape.Replace(name), `"} `} {
			t.b = append(t.b, part...)
		}
		t.b = t.float(t.b, v)
		t.line()
	}
}
