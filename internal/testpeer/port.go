package testpeer

import (
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// FreeAddr returns a 127.0.0.1 address on whose port nobody listens now, on
// any address of this machine, for a process that must be told its port. It
// returns each address once only. Another process can take it in between, so
// starters try again with a new one. But no connection that somebody dials
// can: the port is below those that systems give to them (RFC 6335 §6 and
// Linux's ip_local_port_range), where one that leads to another host would
// make a listener of all addresses fail, and be gone a moment later.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	for range portCount {
		port := strconv.FormatUint(uint64(firstPort+nextPort.Add(1)%portCount), 10)
		ln, err := net.Listen("tcp", ":"+port)
		if err != nil {
			continue
		}
		ln.Close()
		return net.JoinHostPort("127.0.0.1", port)
	}
	tb.Fatalf("no port from %d to %d is free", firstPort, firstPort+portCount-1)
	return ""
}

const firstPort, portCount = 12000, 20000

// nextPort is where FreeAddr goes on. Test binaries run beside each other, so
// each begins where chance puts it.
var nextPort atomic.Uint32

func init() { nextPort.Store(rand.Uint32N(portCount)) }

// accepts reports whether somebody listens on addr, host:port or unix:path.
func accepts(addr string) bool {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	c, err := net.DialTimeout(network, addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
