package metrics_test

import (
	"net/http"
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func TestSeriesAtZeroFromTheStartAndOverReloads(t *testing.T) {
	h := hubtest.Start(t)
	const connections = `nowconnect_tcp_connections_total{connector="echo"}`
	for _, series := range []string{
		connections, `nowconnect_agents_connected{connector="echo"}`, `nowconnect_tunnel_links{agent="premise-1"}`,
		`nowconnect_tcp_bytes_total{connector="echo",direction="a2c"}`, `nowconnect_sessions_closed_total{connector="echo",reason="denied"}`,
	} {
		if v := h.Metric(series); v != 0 {
			t.Errorf("%s is %v before anything happened", series, v)
		}
	}
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "hello")
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "pdp", "metrics\n\t\tpdp", 1), hubtest.Layer4, hubtest.Site))
	if v := h.Metric(connections); v != 1 {
		t.Errorf("%s is %v after a reload", connections, v)
	}
	if v := h.Metric(`nowconnect_agents_connected{connector="echo"}`); v != 1 {
		t.Errorf("%v agents connected", v)
	}
	// The admin endpoint has the same figures, and neither has them twice.
	_, admin := h.AdminDo("GET", "/metrics", "", "")
	if strings.Count(admin, "\n"+connections+" 1\n") != 1 {
		t.Errorf("admin metrics do not have %s once", connections)
	}
}

// nativeBuckets reports whether a scrape in protobuf has native histograms.
func nativeBuckets(t *testing.T, h *hubtest.Hub) bool {
	t.Helper()
	req, _ := http.NewRequest("GET", "http://"+h.HTTP+"/metrics", nil)
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	for {
		var f dto.MetricFamily
		if err := dec.Decode(&f); err != nil {
			t.Fatalf("no family nowconnect_open_seconds: %v", err)
		}
		if f.GetName() == "nowconnect_open_seconds" {
			return f.GetMetric()[0].GetHistogram().Schema != nil
		}
	}
}

func TestNativeHistograms(t *testing.T) {
	with := strings.Replace(hubtest.Basic, "pdp", "metrics {\n\t\t\tnative_histograms\n\t\t}\n\t\tpdp", 1)
	t.Run("from the start", func(t *testing.T) {
		h := hubtest.New(t)
		h.Load(h.Caddyfile(with, hubtest.Layer4, hubtest.Site))
		if !nativeBuckets(t, h) {
			t.Error("none")
		}
	})
	t.Run("not on a reload", func(t *testing.T) {
		h := hubtest.Start(t)
		if nativeBuckets(t, h) {
			t.Error("there without having been asked for")
		}
		h.Load(h.Caddyfile(with, hubtest.Layer4, hubtest.Site))
		if nativeBuckets(t, h) {
			t.Error("a reload made the metrics anew")
		}
		if !strings.Contains(h.Logged(), "changed metrics options take effect when Caddy starts anew") {
			t.Error("no warning that a reload does not change it")
		}
	})
}
