package tunnel

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notSentLowat is how many bytes the kernel holds for a link beyond what the
// congestion window takes: enough to keep the wire busy, few enough for a
// small frame to overtake bulk before it reaches the kernel.
const notSentLowat = 256 << 10

// Receive buffers of a link to a peer near by, in bytes. By itself the kernel
// lets one grow to 32 MiB (tcp_rmem, Linux 6.16 and later) when a link carries
// more than this process can take. Bulk alone likes that: nobody has to wait for
// anybody. But whatever small arrives waits behind all of it, 20 ms and more.
const (
	shortQueue = 1 << 20
	longQueue  = 4 << 20
)

// backlog is the receive buffer of a link, which can be made short while small
// frames arrive among bulk. Owned by the link's reader.
type backlog struct {
	raw   syscall.RawConn
	bytes int // as asked for last; 0 leaves it to the kernel
}

// newBacklog returns nil when the peer is not near: then the network is what
// frames wait for, and only the kernel knows how much it takes to fill it. Nor
// is there anything to gain where the kernel would grant less than asked for.
func newBacklog(c Carrier) *backlog {
	raw := rawOf(c)
	if raw == nil || rmemMax() < longQueue || !Near(c) {
		return nil
	}
	return &backlog{raw: raw}
}

// resize makes the buffer short, or long again.
func (b *backlog) resize(short bool) {
	n := longQueue
	if short {
		n = shortQueue
	}
	if n == b.bytes || !short && b.bytes == 0 {
		return
	}
	b.bytes = n
	_ = b.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n) })
}

// rmemMax is the largest receive buffer that a process may ask for; 0 when that
// is not known.
var rmemMax = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
})

func tuneSocket(fd uintptr, userTimeout time.Duration) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	if userTimeout > 0 {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	}
}

// TuneLink prepares the TCP socket below conn for carrying a link: keepalive,
// no delay, a short queue in front of the wire, an end to unacknowledged
// data after userTimeout (0 leaves that to the kernel), and congestion control
// as [CheckCongestionControl] describes it. It looks through TLS and other
// wrappers that have NetConn. All of it is best effort: a socket that cannot be
// tuned still works, and [CongestionControl] tells what is in force.
func TuneLink(conn net.Conn, userTimeout time.Duration, congestion string) {
	t := below(conn)
	if t == nil {
		return
	}
	tuneGo(t)
	if raw, err := t.SyscallConn(); err == nil {
		control(raw, userTimeout)
		setCongestion(raw, congestion)
	}
}

func control(raw syscall.RawConn, userTimeout time.Duration) {
	_ = raw.Control(func(fd uintptr) { tuneSocket(fd, userTimeout) })
}

// setCongestion is best effort: a kernel has an algorithm or not, and may keep
// it from processes without CAP_NET_ADMIN (net.ipv4.tcp_allowed_congestion_control).
func setCongestion(raw syscall.RawConn, name string) {
	if name == CongestionSystem {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if name == CongestionAuto || name == "" {
			system, _ := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			name = congestionFor(rtt(fd), system)
		}
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// congestionFor is what CongestionAuto means for a peer that is rtt away, 0 for
// unknown, when the system has the given algorithm.
func congestionFor(rtt time.Duration, system string) string {
	switch {
	case rtt == 0 || rtt >= nearRTT:
		return "bbr"
	case system == "bbr":
		return "cubic"
	}
	return system
}

// rtt returns the smallest round trip that the kernel has seen on the
// connection, the handshake's among them; 0 when it does not tell.
func rtt(fd uintptr) time.Duration {
	i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || i.Min_rtt == 1<<32-1 {
		return 0
	}
	return time.Duration(i.Min_rtt) * time.Microsecond
}

// Near reports whether the peer at the carrier's socket is known to be less
// than a millisecond away.
func Near(c Carrier) bool {
	raw := rawOf(c)
	if raw == nil {
		return false
	}
	var d time.Duration
	_ = raw.Control(func(fd uintptr) { d = rtt(fd) })
	return d > 0 && d < nearRTT
}

// CongestionControl returns the name of the algorithm that the kernel uses for
// the carrier's socket; empty when it cannot be told.
func CongestionControl(c Carrier) (name string) {
	raw := rawOf(c)
	if raw == nil {
		return ""
	}
	_ = raw.Control(func(fd uintptr) {
		name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return name
}

// rawOf returns the carrier's socket; nil when it has none.
func rawOf(c Carrier) syscall.RawConn {
	n, ok := c.(interface{ NetConn() net.Conn })
	if !ok {
		return nil
	}
	t := below(n.NetConn())
	if t == nil {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
