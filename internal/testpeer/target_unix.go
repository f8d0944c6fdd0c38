//go:build unix

package testpeer

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// Refuse returns an address that refuses connections. Its port is held by a
// socket that is bound and not listening, so nobody else can come to listen on
// it.
func Refuse(tb testing.TB) string {
	tb.Helper()
	_, addr := bound(tb)
	return addr
}

// Blackhole returns an address where connecting neither succeeds nor fails: its
// backlog is full, so the kernel drops further SYNs.
func Blackhole(tb testing.TB) string {
	tb.Helper()
	fd, addr := bound(tb)
	if err := syscall.Listen(fd, 0); err != nil {
		tb.Fatalf("listen: %v", err)
	}
	for range 64 {
		ctx, cancel := context.WithTimeout(context.Background(), 250*time.Millisecond)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		cancel()
		switch {
		case err == nil:
			tb.Cleanup(func() { c.Close() })
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
			return addr
		default:
			tb.Fatalf("fill the backlog of %s: %v", addr, err)
		}
	}
	tb.Fatalf("the backlog of %s does not fill", addr)
	return ""
}

// bound returns a socket bound to a port of its own until the test ends.
func bound(tb testing.TB) (fd int, addr string) {
	tb.Helper()
	syscall.ForkLock.RLock() // so that no child inherits it before it is marked
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		tb.Fatalf("socket: %v", err)
	}
	tb.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatalf("bind: %v", err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		tb.Fatalf("getsockname: %v", err)
	}
	return fd, (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*syscall.SockaddrInet4).Port}).String()
}
