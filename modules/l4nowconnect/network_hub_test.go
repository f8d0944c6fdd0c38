package l4nowconnect_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// The network nowconnect is TCP, over reloads too: with and without it, and
// between the two.
func TestNetworkSurvivesReloads(t *testing.T) {
	h := hubtest.New(t)
	load := func(network, option string) {
		t.Helper()
		h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "pdp allow_all", option+"\n\t\tpdp allow_all", 1),
			strings.Replace(hubtest.Layer4, "$LDAP", network+"$LDAP", 1), hubtest.Site))
	}
	load("nowconnect/", "max_sessions 100")
	h.Agent(nil)
	first := h.Dial()
	hubtest.RoundTrip(t, first, "hello")
	for i, network := range []string{"nowconnect/", "", "nowconnect/"} {
		load(network, "max_sessions "+strings.Repeat("1", i+2))
		hubtest.RoundTrip(t, first, "still here")
		// A reload may reset what waits in the old socket's queue at that moment.
		hubtest.Eventually(t, "new clients are served", func() bool {
			c, err := net.DialTimeout("tcp", h.LDAP, 10*time.Second)
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Write([]byte("x")); err != nil {
				return false
			}
			n, _ := c.Read(make([]byte, 1))
			return n == 1
		})
	}
}
