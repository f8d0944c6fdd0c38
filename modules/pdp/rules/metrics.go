package rules

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// The collectors live as long as the process, so that a reload resets nothing;
// each configuration's registry gets the same ones.
var (
	fileValid = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "nowconnect_pdp_rules_file_valid",
		Help: "Whether the rules file, as it stands, is in force (1), or has a mistake or is gone (0).",
	}, []string{"file"})
	fileReloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nowconnect_pdp_rules_file_reloads_total",
		Help: "Changes of the rules file that were put in force (ok) or refused (error).",
	}, []string{"file", "result"})
)

// users counts, for each file, the configurations that watch it: its series go
// with the last one, lest a file that nobody uses any more keeps an alert alive.
var users = struct {
	sync.Mutex
	of map[string]int
}{of: make(map[string]int)}

func registerMetrics(reg *prometheus.Registry) error {
	if reg == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{fileValid, fileReloads} {
		if err := reg.Register(c); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return err
		}
	}
	return nil
}

// fileMetrics are the series of one file, on behalf of one watcher.
type fileMetrics struct {
	path             string
	valid            prometheus.Gauge
	reloaded, failed prometheus.Counter
}

func watch(path string) *fileMetrics {
	users.Lock()
	defer users.Unlock()
	users.of[path]++
	return &fileMetrics{
		path: path, valid: fileValid.WithLabelValues(path),
		reloaded: fileReloads.WithLabelValues(path, "ok"), failed: fileReloads.WithLabelValues(path, "error"),
	}
}

func (m *fileMetrics) accepted() { m.valid.Set(1) }

func (m *fileMetrics) rejected() {
	m.valid.Set(0)
	m.failed.Inc()
}

func (m *fileMetrics) release() {
	users.Lock()
	defer users.Unlock()
	if users.of[m.path]--; users.of[m.path] > 0 {
		return
	}
	delete(users.of, m.path)
	fileValid.DeleteLabelValues(m.path)
	fileReloads.DeletePartialMatch(prometheus.Labels{"file": m.path})
}
