package testpeer

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// FreeAddr returns a 127.0.0.1 address nobody listens on now, for a process
// that must be told its port. It returns each address once only: the kernel
// would give a port again that nobody has come to listen on yet. Another
// process can take it in between, so starters try again with a new one.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	for range 1000 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		ln.Close()
		if _, again := given.LoadOrStore(ln.Addr().String(), nil); !again {
			return ln.Addr().String()
		}
	}
	tb.Fatal("no port is free that was not given before")
	return ""
}

// given holds what FreeAddr has returned.
var given sync.Map

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
