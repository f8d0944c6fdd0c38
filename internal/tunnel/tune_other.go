//go:build !linux

package tunnel

import (
	"net"
	"time"
)

// TuneLink prepares the TCP socket below conn for carrying a link, as far as
// the platform allows: keepalive and no delay.
func TuneLink(conn net.Conn, _ time.Duration, _ string) {
	if t := below(conn); t != nil {
		tuneGo(t)
	}
}

// CongestionControl returns nothing: this platform does not tell.
func CongestionControl(Carrier) string { return "" }

// Near reports nothing: this platform does not tell.
func Near(Carrier) bool { return false }

type backlog struct{}

func newBacklog(Carrier) *backlog { return nil }

func (*backlog) resize(bool) {}
