package l4nowconnect_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
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
		// Between two networks a reload may reset what waits in the old socket's queue.
		hubtest.Eventually(t, "new clients are served", func() bool {
			return oneExchange(h.LDAP) == nil
		})
	}
}

// A reload resets none of those who connect meanwhile: the socket stays.
func TestReloadsResetNobody(t *testing.T) {
	h := hubtest.New(t)
	load := func(limit int) {
		t.Helper()
		h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "pdp allow_all", fmt.Sprintf("max_sessions %d\n\t\tpdp allow_all", limit), 1),
			strings.Replace(hubtest.Layer4, "$LDAP", "nowconnect/$LDAP", 1), hubtest.Site))
	}
	load(1000)
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "hello")
	stop := make(chan struct{})
	var served atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := oneExchange(h.LDAP); err != nil {
					t.Errorf("client %d: %v", served.Load(), err)
				}
				served.Add(1)
			}
		})
	}
	for i := range 20 {
		load(1001 + i)
		before := served.Load()
		hubtest.Eventually(t, "clients are served", func() bool { return served.Load() > before+4 })
	}
	close(stop)
	wg.Wait()
}

func oneExchange(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
