package testpeer

import (
	"net"
	"testing"
	"time"
)

// FreeAddr returns a 127.0.0.1 address nobody listens on now, for a process
// that must be told its port. Another process can take it in between, so
// starters try again with a new one.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// accepts reports whether somebody listens on addr.
func accepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
