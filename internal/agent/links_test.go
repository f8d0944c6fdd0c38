package agent

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func TestLinksForTheWay(t *testing.T) {
	for _, c := range []struct {
		near       bool
		congestion string
		want       int
	}{
		{true, "cubic", nearLinks},
		{true, "bbr", nearLinks},
		{false, "bbr", farLinks},
		{false, "cubic", lossyLinks},
		{false, "", lossyLinks},
	} {
		if got := linksFor(c.near, c.congestion); got != c.want {
			t.Errorf("near %v, congestion control %q: %d links, want %d", c.near, c.congestion, got, c.want)
		}
	}
}

// The way to a hub behind a proxy counts as far: who knows where it is.
func TestAutoLinks(t *testing.T) {
	for name, c := range map[string]struct {
		configured, hubMax int
		proxy              bool
		want               int
	}{
		"near":                       {0, 16, false, nearLinks},
		"far":                        {0, 16, true, lossyLinks},
		"far, the hub allows fewer":  {0, 5, true, 5},
		"far, the hub does not tell": {0, 0, true, nearLinks},
		"far, configured":            {3, 16, true, 3},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "near" && runtime.GOOS != "linux" {
				t.Skip("this platform does not tell how far the hub is")
			}
			hub, ca := tlsHub(t, "hub.internal", "127.0.0.1")
			hub.set(func() { hub.max = c.hubMax })
			cfg := testConfig(t, hub)
			cfg.Links, cfg.CABundle, cfg.HealthAddr = c.configured, ca.File, testpeer.FreeAddr(t)
			if c.proxy {
				p := newConnectProxy(t, &connectProxy{hosts: map[string]string{"hub.internal:443": hub.addr}}, nil)
				cfg.URL, cfg.Proxy.HTTPS = "https://hub.internal", "http://"+p.addr
			}
			a := startAgent(t, cfg)
			eventually(t, "all links", func() bool { return hub.countLinks() == c.want })
			time.Sleep(100 * time.Millisecond) // would another one come?
			if n := len(hub.allLogins()); n != c.want {
				t.Errorf("%d logins, want %d", n, c.want)
			}
			if _, body := a.get(t, "/readyz"); strings.Count(body, `"up":true`) != c.want || strings.Contains(body, `"up":false`) {
				t.Errorf("/readyz tells of other links than the %d: %s", c.want, body)
			}
			if _, body := a.get(t, "/metrics"); strings.Count(body, "nowconnect_agent_link_up{") != c.want {
				t.Errorf("/metrics tells of other links than the %d: %s", c.want, body)
			}
		})
	}
}
