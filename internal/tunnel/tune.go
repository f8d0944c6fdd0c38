package tunnel

import (
	"net"
	"time"
)

// maxWrappers around a connection; more than that is a loop.
const maxWrappers = 8

// below finds the TCP connection under wrappers such as *tls.Conn; nil if
// there is none.
func below(conn net.Conn) *net.TCPConn {
	for range maxWrappers {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
	return nil
}

// tuneGo sets what package net offers on every platform. Keepalive is the
// kernel's own liveness, for the time before and between PINGs.
func tuneGo(t *net.TCPConn) {
	_ = t.SetNoDelay(true)
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
}
