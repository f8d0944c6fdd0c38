package obs

import "github.com/prometheus/client_golang/prometheus"

// Buckets in seconds, or in bytes for frames.
var (
	// ioBuckets run from one microsecond, a write that the kernel took at
	// once, to ten seconds, a client that all but stopped reading.
	ioBuckets = []float64{
		1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
		.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10,
	}
	// openBuckets and rttBuckets hold network round trips; nothing of the
	// kind takes less than 0.1 ms through a tunnel worth measuring.
	openBuckets = []float64{1e-4, 2.5e-4, 5e-4, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	rttBuckets  = openBuckets
	// durationBuckets run from a single query to pooled connections that live
	// for days.
	durationBuckets = []float64{.001, .01, .1, 1, 10, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600}
	// frameBuckets end at 16 KiB, above the largest payload of a DATA frame.
	frameBuckets = []float64{16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384}
)

// factory makes the agent process's metric families and remembers them in order.
type factory struct {
	made []prometheus.Collector
}

func (f *factory) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	f.made = append(f.made, v)
	return v
}

func (f *factory) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	f.made = append(f.made, v)
	return v
}

func (f *factory) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	f.made = append(f.made, v)
	return v
}
