package metrics_test

import (
	"compress/gzip"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// both has our handler and Caddy's.
const both = `http://$HTTP {
	bind 127.0.0.1
	nowconnect_agent /tunnel
	nowconnect_health
	nowconnect_metrics /metrics
	metrics /caddy
}`

// scrape asks with the headers given and returns the answer as it was sent.
func scrape(t *testing.T, h *hubtest.Hub, path string, header http.Header) (*http.Response, io.Reader) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+h.HTTP+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	resp, err := (&http.Transport{DisableKeepAlives: true, DisableCompression: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s", path, resp.Status)
	}
	return resp, resp.Body
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names lists the hub's series in a text, with their labels. What Caddy counts
// about the scrapes themselves comes and goes with them.
func names(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if series, _, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && strings.HasPrefix(line, "nowconnect_") {
			name, labels, _ := strings.Cut(series, "{")
			parts := strings.Split(labels, ",")
			slices.Sort(parts)
			out = append(out, name+"{"+strings.Join(parts, ",")+"}")
		}
	}
	slices.Sort(out)
	return out
}

func TestHandlerShowsWhatCaddysShows(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4+"\n\tmetrics", both))
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "hello")
	for name, accept := range map[string]string{
		"none": "", "any": "*/*", "text": "text/plain;version=0.0.4",
		"OpenMetrics": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.5",
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{"Accept": {accept}}
			ours, body := scrape(t, h, "/metrics", header)
			got := readAll(t, body)
			caddys, body := scrape(t, h, "/caddy", header)
			want := readAll(t, body)
			if g, w := ours.Header.Get("Content-Type"), caddys.Header.Get("Content-Type"); g != w {
				t.Errorf("type %q, want %q", g, w)
			}
			if strings.HasSuffix(got, "# EOF\n") != strings.HasSuffix(want, "# EOF\n") {
				t.Errorf("ends with %q", got[len(got)-50:])
			}
			g, w := names(got), names(want)
			if !slices.Equal(g, w) {
				t.Errorf("series that only one of both has:\n%s", strings.Join(difference(g, w), "\n"))
			}
			if len(g) < 190 || !strings.Contains(got, "\ncaddy_http_requests_in_flight{") || !strings.Contains(got, "\ngo_goroutines ") {
				t.Errorf("%d of the hub's series, or nothing of Caddy's own:\n%s", len(g), got)
			}
			if n := strings.Count(got, "\nnowconnect_tcp_connections_total{connector=\"echo\"} 1\n"); n != 1 {
				t.Errorf("connections are there %d times", n)
			}
		})
	}
}

func difference(a, b []string) (out []string) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, "ours: "+s)
		}
	}
	for _, s := range b {
		if !slices.Contains(a, s) {
			out = append(out, "Caddy's: "+s)
		}
	}
	return out
}

func TestHandlerPacks(t *testing.T) {
	h := hubtest.Start(t)
	for accept, want := range map[string]string{"": "", "gzip": "gzip", "br, gzip;q=0.5": "gzip", "zstd": "", "gzip;q=0": ""} {
		resp, body := scrape(t, h, "/metrics", http.Header{"Accept-Encoding": {accept}})
		if got := resp.Header.Get("Content-Encoding"); got != want {
			t.Errorf("%q gets %q, want %q", accept, got, want)
			continue
		}
		if want == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		if text := readAll(t, body); !strings.Contains(text, "\nnowconnect_tcp_connections_total{connector=\"echo\"} 0\n") {
			t.Errorf("%q gets\n%s", accept, text)
		}
	}
}

// What the fast way does not know is answered all the same.
func TestHandlerAnswersOtherRequests(t *testing.T) {
	h := hubtest.Start(t)
	resp, body := scrape(t, h, "/metrics", http.Header{"Accept": {string(expfmt.NewFormat(expfmt.TypeProtoDelim))}})
	found := false
	for dec := expfmt.NewDecoder(body, expfmt.ResponseFormat(resp.Header)); ; {
		var f dto.MetricFamily
		if dec.Decode(&f) != nil {
			break
		}
		found = found || f.GetName() == "nowconnect_open_seconds" && f.GetType() == dto.MetricType_HISTOGRAM
	}
	if !found {
		t.Error("no nowconnect_open_seconds in protobuf")
	}
	_, body = scrape(t, h, "/metrics?name[]=nowconnect_tunnel_links", nil)
	if text := readAll(t, body); strings.Count(text, "# TYPE") != 1 || !strings.Contains(text, "nowconnect_tunnel_links{") {
		t.Errorf("one name asked for, got\n%s", text)
	}
}

func TestHandlerNeedsTheApp(t *testing.T) {
	h := hubtest.New(t)
	err := h.TryLoad(h.Expand("{\n\tadmin unix/$ADMIN\n}\nhttp://$HTTP {\n\tnowconnect_metrics /metrics\n}"))
	if err == nil || !strings.Contains(err.Error(), "the nowconnect app is not configured") {
		t.Errorf("loads with %v", err)
	}
}
