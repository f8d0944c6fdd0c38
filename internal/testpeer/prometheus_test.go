package testpeer

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

func TestPrometheusScrapes(t *testing.T) {
	var n atomic.Int64
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE things_total counter\nthings_total{kind=\"a\"} %d\nthings_total{kind=\"b\"} 5\n", n.Load())
	}))
	defer target.Close()
	p := Prometheus(t, target.URL+"/metrics")
	p.Scrape()
	if v := p.Value(`things_total{kind="a"}`); v != 0 {
		t.Errorf("a = %v before anything happened", v)
	}
	if got := p.Query("things_total"); len(got) != 2 || got[0].Name != "things_total" || got[0].Labels["kind"] == "" {
		t.Errorf("samples %v", got)
	}
	n.Store(7)
	p.Scrape()
	if v := p.Value(`things_total{kind="a"}`); v != 7 {
		t.Errorf("a = %v after a scrape, want 7", v)
	}
	if typ := p.Types()["things_total"]; typ != "counter" {
		t.Errorf("type %q, want counter", typ)
	}
}
