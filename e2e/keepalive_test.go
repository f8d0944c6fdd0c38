package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// Every socket of hub and agent has keepalives, so that the kernel finds a peer
// that is gone also where nobody speaks: clients', both ends of links with TLS
// and without, and targets'. The kernel tells which timer it runs for a socket.
func TestKeepalives(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the kernel's timers are read from Linux's /proc/net/tcp")
	}
	for _, network := range []string{"", "nowconnect/"} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%q,plain=%v", network, plain), func(t *testing.T) {
				echo := testpeer.Echo(t)
				s := startSite(t, siteOptions{plain: plain, network: network, connectors: []connector{{name: "echo", target: echo.Addr}}})
				roundTrip(t, s.dial("echo"), "hello")
				hub := s.https
				if plain {
					hub = s.http
				}
				for what, side := range map[string]string{
					"a client's, at the hub": "local " + port(s.addr("echo")),
					"a link's, at the hub":   "local " + port(hub),
					"a link's, at the agent": "remote " + port(hub),
					"a target's":             "remote " + port(echo.Addr),
				} {
					// What has data on its way runs another timer for a moment.
					s.eventually("keepalives on "+what, func() bool {
						with, without := timers(t, side)
						return with > 0 && without == 0
					})
				}
			})
		}
	}
}

// timers counts the established connections of a port, such as "local 389", with
// a keepalive timer and without.
func timers(t *testing.T, side string) (with, without int) {
	t.Helper()
	const established, keepalive = "01", "02"
	which, number, _ := strings.Cut(side, " ")
	column := map[string]int{"local": 1, "remote": 2}[which]
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(filepath.Join("/proc/net", name))
		if err != nil {
			continue // no IPv6
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) < 6 || f[3] != established {
				continue
			}
			p, err := strconv.ParseUint(f[column][strings.LastIndexByte(f[column], ':')+1:], 16, 16)
			if err != nil {
				t.Fatalf("%s: %v in %q", name, err, line)
			}
			if strconv.FormatUint(p, 10) != number {
				continue
			}
			if strings.HasPrefix(f[5], keepalive+":") {
				with++
			} else {
				without++
			}
		}
	}
	return with, without
}
