package health_test

import (
	"net/http"
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

const twoConnectors = `agent_auth token {
			agent premise-1 {file.$DIR/token}
		}
		pdp allow_all
		connector echo {
			agents premise-1
		}
		connector idle {
			agents premise-1
		}`

func TestHealth(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(twoConnectors, hubtest.Layer4, hubtest.Site+"\n"))
	check := func(path string, status int, body string) {
		t.Helper()
		gotStatus, got, header := h.Get(path)
		if gotStatus != status || got != body+"\n" {
			t.Errorf("%s: %d %s want %d %s", path, gotStatus, got, status, body)
		}
		if header.Get("Cache-Control") != "no-store" || header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: header %v", path, header)
		}
	}
	check("/healthz", 200, `{"status":"ok"}`)
	none := `{"ready":false,"agents":0}`
	check("/readyz", 503, `{"status":"not_ready","connectors":{"echo":`+none+`,"idle":`+none+`}}`)
	check("/readyz?connector=echo", 503, `{"status":"not_ready","connectors":{"echo":`+none+`}}`)
	check("/readyz?connector=nowhere", 404, `{"status":"unknown_connector"}`)
	check("/readyz?connector=", 404, `{"status":"unknown_connector"}`)

	h.Agent(nil) // serves echo alone
	one := `{"ready":true,"agents":1}`
	check("/readyz?connector=echo", 200, `{"status":"ready","connectors":{"echo":`+one+`}}`)
	check("/readyz", 503, `{"status":"not_ready","connectors":{"echo":`+one+`,"idle":`+none+`}}`)

	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4, hubtest.Site))
	check("/readyz", 200, `{"status":"ready","connectors":{"echo":`+one+`}}`)
	check("/readyz?connector=idle", 404, `{"status":"unknown_connector"}`)

	if status, _ := h.AdminDo("POST", "/nowconnect/drain", "application/json", `{"timeout":"10ms"}`); status != 200 {
		t.Fatalf("drain: %d", status)
	}
	check("/readyz", 503, `{"status":"draining","connectors":{"echo":`+none+`}}`)
	check("/healthz", 200, `{"status":"ok"}`)
}

func TestMethodsAndOtherPaths(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, "", "http://$HTTP {\n\tbind 127.0.0.1\n\troute {\n\t\tnowconnect_health\n\t\trespond \"next\"\n\t}\n}"))
	for _, path := range []string{"/", "/healthz/", "/HEALTHZ", "/readyz/echo"} {
		if _, body, _ := h.Get(path); body != "next" {
			t.Errorf("%s: %q", path, body)
		}
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+h.HTTP+"/readyz", "text/plain", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %s %v", resp.Status, resp.Header)
	}
	head, err := client.Head("http://" + h.HTTP + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer head.Body.Close()
	if head.StatusCode != 200 {
		t.Errorf("HEAD: %s", head.Status)
	}
}
