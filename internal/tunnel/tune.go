package tunnel

import (
	"fmt"
	"net"
	"regexp"
	"time"
)

// What TCP's congestion control on links can be set to, besides the name of an
// algorithm that the kernel has.
const (
	// CongestionAuto is BBR where the kernel has it and lets us, when the peer is a
	// millisecond or more away. Loss-based algorithms take every lost packet for
	// congestion: at 40 ms and 0.5 % of loss cubic moves 0.6 MB/s, BBR 30. Nearer
	// peers have what the system has, or cubic if that is BBR: they lose little by a
	// lost packet, and the timers by which BBR paces cost 12 % of the CPU in bulk.
	CongestionAuto = "auto"
	// CongestionSystem leaves it as the system has it.
	CongestionSystem = "system"
)

// nearRTT is below what CongestionAuto takes a peer for near.
const nearRTT = time.Millisecond

var congestionName = regexp.MustCompile(`^[a-z0-9_-]{1,15}$`) // TCP_CA_NAME_MAX is 16 with the 0

// CheckCongestionControl reports why name can be none: it is [CongestionAuto],
// [CongestionSystem], or the name of an algorithm. Whether the kernel has that
// shows only on a socket.
func CheckCongestionControl(name string) error {
	if !congestionName.MatchString(name) {
		return fmt.Errorf("%q is not auto, system, or the name of an algorithm such as cubic", name)
	}
	return nil
}

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
