package tunnel

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// notSentLowat is how many bytes the kernel holds for a link beyond what the
// congestion window takes: enough to keep the wire busy, few enough for a
// small frame to overtake bulk before it reaches the kernel.
const notSentLowat = 256 << 10

func tuneSocket(fd uintptr, userTimeout time.Duration) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat)
	if userTimeout > 0 {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	}
}

// TuneLink prepares the TCP socket below conn for carrying a link: keepalive,
// no delay, a short queue in front of the wire, and an end to unacknowledged
// data after userTimeout (0 leaves that to the kernel). It looks through TLS
// and other wrappers that have NetConn. All of it is best effort: a socket
// that cannot be tuned still works.
func TuneLink(conn net.Conn, userTimeout time.Duration) {
	t := below(conn)
	if t == nil {
		return
	}
	tuneGo(t)
	if raw, err := t.SyscallConn(); err == nil {
		control(raw, userTimeout)
	}
}

func control(raw syscall.RawConn, userTimeout time.Duration) {
	_ = raw.Control(func(fd uintptr) { tuneSocket(fd, userTimeout) })
}
