package obs

import (
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// vec is one name of the hub's metrics and all its series. It takes the place
// of prometheus.CounterVec and HistogramVec, whose series can be read only through
// the protobuf structures of Gather: 42 of these per connector cost more than
// everything else in a scrape together (docs/decisions/016).
type vec struct {
	name, help string
	labels     []string
	bounds     []float64                // upper bounds of a histogram's buckets; nil for a counter
	native     *prometheus.HistogramVec // keeps the values when native buckets are wanted, else nil
	desc       *prometheus.Desc
	born       *timestamppb.Timestamp

	mu     sync.Mutex
	series []*series // guarded by mu; only ever appended to
}

// series is one set of label values. It never changes but for its value.
type series struct {
	family *vec
	values []string // of family.labels
	labels string   // the same as text, name="value",…
	count  *counter
	hist   histogram
}

// counter counts up. It never wraps: 2^64 bytes are some.
type counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *counter) Inc() { c.n.Add(1) }

// Add adds n, which must not be negative.
func (c *counter) Add(n int) { c.n.Add(uint64(n)) }

// histogram is a histogram of either kind.
type histogram interface {
	prometheus.Observer
	// read fills in the buckets' counts, each with those below it, and returns
	// the sum. The last, the bucket without a bound, is the count of all.
	read(buckets []uint64) (sum float64)
	write(out *dto.Metric) error
}

// classic is a histogram with fixed buckets. A reader may see an observation in
// the buckets and not yet in the sum.
type classic struct {
	family *vec
	counts []atomic.Uint64 // per bucket; one more than bounds
	sum    atomic.Uint64   // bits of a float64
}

// Observe implements prometheus.Observer.
func (h *classic) Observe(v float64) {
	i := 0
	for i < len(h.family.bounds) && v > h.family.bounds[i] { // a search by halves costs more for two dozens
		i++
	}
	h.counts[i].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

func (h *classic) read(buckets []uint64) float64 {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
		buckets[i] = n
	}
	return math.Float64frombits(h.sum.Load())
}

func (h *classic) write(out *dto.Metric) error {
	buckets := make([]uint64, len(h.counts))
	sum := h.read(buckets)
	d := &dto.Histogram{SampleCount: &buckets[len(h.counts)-1], SampleSum: &sum, CreatedTimestamp: h.family.born}
	all := make([]dto.Bucket, len(h.family.bounds))
	d.Bucket = make([]*dto.Bucket, len(all))
	for i := range all {
		all[i].UpperBound, all[i].CumulativeCount = &h.family.bounds[i], &buckets[i]
		d.Bucket[i] = &all[i]
	}
	out.Histogram = d
	return nil
}

// native is a histogram with native buckets beside the fixed ones.
type native struct{ prometheus.Histogram }

func (h native) write(out *dto.Metric) error { return h.Write(out) }

func (h native) read(buckets []uint64) float64 {
	var m dto.Metric
	if h.Write(&m) != nil {
		return 0 // it has no way to fail
	}
	for i, b := range m.Histogram.Bucket {
		buckets[i] = b.GetCumulativeCount()
	}
	buckets[len(buckets)-1] = m.Histogram.GetSampleCount()
	return m.Histogram.GetSampleSum()
}

func (f *vec) add(s *series) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.series = append(f.series, s)
}

// all returns the series that there are. The slice must not be changed.
func (f *vec) all() []*series {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.series[:len(f.series):len(f.series)]
}

// counter makes the counter of a set of label values, which must be a new one.
func (f *vec) counter(values ...string) *counter {
	c := new(counter)
	f.add(&series{family: f, values: values, labels: labelText(f.labels, values), count: c})
	return c
}

// observer makes the histogram of a set of label values, which must be a new one.
func (f *vec) observer(values ...string) prometheus.Observer {
	var h histogram = &classic{family: f, counts: make([]atomic.Uint64, len(f.bounds)+1)}
	if f.native != nil {
		h = native{f.native.WithLabelValues(values...).(prometheus.Histogram)}
	}
	f.add(&series{family: f, values: values, labels: labelText(f.labels, values), hist: h})
	return h
}

// escape writes a label's value as both text formats want it.
var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// labelText writes labels in the order of their names, as the library does.
func labelText(names, values []string) string {
	pairs := make([]string, len(names))
	for i, name := range names {
		pairs[i] = name + `="` + escape.Replace(values[i]) + `"`
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// Describe implements prometheus.Collector.
func (f *vec) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }

// Collect implements prometheus.Collector.
func (f *vec) Collect(ch chan<- prometheus.Metric) {
	for _, s := range f.all() {
		ch <- s
	}
}

// Desc implements prometheus.Metric.
func (s *series) Desc() *prometheus.Desc { return s.family.desc }

// Write implements prometheus.Metric.
func (s *series) Write(out *dto.Metric) error {
	if s.count != nil {
		v := float64(s.count.n.Load())
		out.Counter = &dto.Counter{Value: &v, CreatedTimestamp: s.family.born}
	} else if err := s.hist.write(out); err != nil {
		return err
	}
	out.Label = prometheus.MakeLabelPairs(s.family.desc, s.values)
	return nil
}

// hubFactory makes the hub's families and remembers them in order.
type hubFactory struct {
	native bool
	born   *timestamppb.Timestamp
	made   []*vec
}

func newHubFactory(native bool) *hubFactory {
	return &hubFactory{native: native, born: timestamppb.New(time.Now())}
}

func (f *hubFactory) counter(name, help string, labels ...string) *vec {
	v := &vec{name: name, help: help, labels: labels, born: f.born, desc: prometheus.NewDesc(name, help, labels, nil)}
	f.made = append(f.made, v)
	return v
}

func (f *hubFactory) histogram(name, help string, buckets []float64, labels ...string) *vec {
	v := f.counter(name, help, labels...)
	v.bounds = buckets
	if f.native {
		// No NativeHistogramMinResetDuration: when the buckets run out, the
		// resolution is halved and the counts stay. Nothing resets.
		v.native = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160,
		}, labels)
	}
	return v
}

// Interface guards
var (
	_ prometheus.Collector = (*vec)(nil)
	_ prometheus.Metric    = (*series)(nil)
)
