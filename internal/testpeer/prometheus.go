package testpeer

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Prom is a running Prometheus server that scrapes its targets five times a
// second.
type Prom struct {
	URL     string
	Process *Process

	tb      testing.TB
	targets int
	client  *http.Client
}

// Sample is one element of an instant vector.
type Sample struct {
	Labels map[string]string // without __name__
	Name   string
	Value  float64
}

// Prometheus starts a Prometheus that scrapes the given URLs, such as
// http://127.0.0.1:8765/metrics.
func Prometheus(tb testing.TB, targets ...string) *Prom {
	tb.Helper()
	path := lookPath(tb, "prometheus")
	dir := tb.TempDir()
	conf := writeFile(tb, filepath.Join(dir, "prometheus.yml"), []byte(promConfig(tb, targets)))
	var last string
	for range 5 { // its port may be gone by the time it binds it
		addr := FreeAddr(tb)
		p := Start(tb, nil, path, "--config.file="+conf, "--web.listen-address="+addr,
			"--storage.tsdb.path="+filepath.Join(dir, "data"), "--log.level=warn")
		prom := &Prom{URL: "http://" + addr, Process: p, tb: tb, targets: len(targets)}
		prom.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}}
		if eventually(30*time.Second, p.Done(), prom.ready) {
			return prom
		}
		p.Kill()
		last = p.Output()
	}
	tb.Fatalf("prometheus does not come up: %s", last)
	return nil
}

func promConfig(tb testing.TB, targets []string) string {
	tb.Helper()
	var b strings.Builder
	b.WriteString("global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n")
	for i, t := range targets {
		u, err := url.Parse(t)
		if err != nil || u.Host == "" {
			tb.Fatalf("prometheus target %q is not a URL", t)
		}
		fmt.Fprintf(&b, "- job_name: job%d\n  scheme: %s\n  metrics_path: %s\n  static_configs:\n  - targets: [%q]\n", i, u.Scheme, u.Path, u.Host)
	}
	return b.String()
}

func (p *Prom) ready() bool {
	resp, err := p.client.Get(p.URL + "/-/ready")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Query evaluates expr now. A series that vanished from its target answers
// no longer.
func (p *Prom) Query(expr string) []Sample {
	p.tb.Helper()
	var data struct {
		ResultType string `json:"resultType"`
		Result     []struct {
			Metric map[string]string `json:"metric"`
			Value  [2]any            `json:"value"`
		} `json:"result"`
	}
	p.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	if data.ResultType != "vector" {
		p.tb.Fatalf("query %s gives a %s, not a vector", expr, data.ResultType)
	}
	var out []Sample
	for _, r := range data.Result {
		s, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			p.tb.Fatalf("query %s: value %v: %v", expr, r.Value[1], err)
		}
		name := r.Metric["__name__"]
		delete(r.Metric, "__name__")
		out = append(out, Sample{Labels: r.Metric, Name: name, Value: v})
	}
	return out
}

// Value evaluates expr, which must give exactly one sample.
func (p *Prom) Value(expr string) float64 {
	p.tb.Helper()
	s := p.Query(expr)
	if len(s) != 1 {
		p.tb.Fatalf("query %s gives %d samples, want one: %v", expr, len(s), s)
	}
	return s[0].Value
}

// Types tells the type of every metric that the targets offer now: counter,
// gauge, histogram and so on.
func (p *Prom) Types() map[string]string {
	p.tb.Helper()
	var data map[string][]struct {
		Type string `json:"type"`
	}
	p.get("/api/v1/metadata", &data)
	out := make(map[string]string)
	for name, m := range data {
		out[name] = m[0].Type
	}
	return out
}

// Scrape waits until every target has been scraped by a scrape that began
// after the call, and fails the test with Prometheus's own words if one cannot
// be.
func (p *Prom) Scrape() {
	p.tb.Helper()
	called := time.Now()
	var trouble string
	ok := eventually(15*time.Second, p.Process.Done(), func() bool {
		trouble = p.stale(called)
		return trouble == ""
	})
	if !ok {
		p.tb.Fatalf("prometheus cannot scrape: %s", trouble)
	}
	// A scrape is stamped when it begins and shows in queries once stored.
	if !eventually(5*time.Second, p.Process.Done(), func() bool {
		fresh := p.Query(fmt.Sprintf("timestamp(up) > %.3f", float64(called.UnixMilli())/1000))
		return len(fresh) == p.targets
	}) {
		p.tb.Fatal("prometheus does not show its last scrape")
	}
}

// stale says which target has not been scraped well since t.
func (p *Prom) stale(t time.Time) string {
	p.tb.Helper()
	var data struct {
		ActiveTargets []struct {
			ScrapeURL  string    `json:"scrapeUrl"`
			LastError  string    `json:"lastError"`
			LastScrape time.Time `json:"lastScrape"`
			Health     string    `json:"health"`
		} `json:"activeTargets"`
	}
	p.get("/api/v1/targets?state=active", &data)
	if len(data.ActiveTargets) != p.targets {
		return fmt.Sprintf("%d of %d targets known", len(data.ActiveTargets), p.targets)
	}
	for _, a := range data.ActiveTargets {
		if a.Health != "up" || a.LastScrape.Before(t) {
			return fmt.Sprintf("%s is %s: %s", a.ScrapeURL, a.Health, a.LastError)
		}
	}
	return ""
}

func (p *Prom) get(path string, data any) {
	p.tb.Helper()
	resp, err := p.client.Get(p.URL + path)
	if err != nil {
		p.tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.tb.Fatal(err)
	}
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		p.tb.Fatalf("prometheus answers %s: %v", body, err)
	}
	if answer.Status != "success" {
		p.tb.Fatalf("prometheus: %s", answer.Error)
	}
}
