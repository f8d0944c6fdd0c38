package tunnel

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel has decides; what it has not leaves the socket as it was.
func TestCongestionControl(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	system := read("tcp_congestion_control")
	available := strings.Fields(read("tcp_allowed_congestion_control"))
	if os.Geteuid() == 0 {
		available = strings.Fields(read("tcp_available_congestion_control"))
	}
	have := func(name string) string {
		if slices.Contains(available, name) {
			return name
		}
		return system
	}
	near := congestionFor(time.Microsecond, system) // loopback
	for name, want := range map[string]string{
		"": have(near), CongestionAuto: have(near), CongestionSystem: system, "reno": have("reno"), "no-such-thing": system,
	} {
		a, _ := tcpPair(t)
		TuneLink(a, 0, name)
		if got := CongestionControl(NewWebSocket(a, nil, nil, true)); got != want {
			t.Errorf("%q: %s in force, want %s", name, got, want)
		}
		if got := CongestionControl(NewNative(a, nil, nil)); got != want {
			t.Errorf("%q: %s in force, want %s", name, got, want)
		}
	}
	if got := CongestionControl(&native{}); got != "" {
		t.Errorf("no socket: %q", got)
	}
}

// How far the peer is decides what auto means.
func TestCongestionFor(t *testing.T) {
	for _, c := range []struct {
		rtt    time.Duration
		system string
		want   string
	}{
		{0, "cubic", "bbr"}, // unknown
		{40 * time.Millisecond, "cubic", "bbr"},
		{time.Millisecond, "cubic", "bbr"},
		{time.Millisecond, "bbr", "bbr"},
		{999 * time.Microsecond, "cubic", "cubic"},
		{50 * time.Microsecond, "dctcp", "dctcp"},
		{50 * time.Microsecond, "bbr", "cubic"},
	} {
		if got := congestionFor(c.rtt, c.system); got != c.want {
			t.Errorf("%v away, system %s: %s, want %s", c.rtt, c.system, got, c.want)
		}
	}
	a, _ := tcpPair(t)
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if d := rtt(fd); d <= 0 || d > time.Second {
			t.Errorf("loopback is %v away", d)
		}
	})
}

func TestCheckCongestionControl(t *testing.T) {
	for name, good := range map[string]bool{
		"auto": true, "system": true, "bbr": true, "dctcp-reno": true, "": false, "BBR": false, "a b": false, "sixteen-letters-": false,
	} {
		if err := CheckCongestionControl(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// While small frames arrive among bulk, a near link's receive buffer is short;
// of bulk alone it may be long.
func TestBacklogIsShortAmongSmallFrames(t *testing.T) {
	if rmemMax() < longQueue {
		t.Skipf("net.core.rmem_max is %d", rmemMax())
	}
	a, _ := tcpPair(t)
	in := newInput(NewNative(a, nil, nil))
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	size := func() (n int) {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) })
		return n
	}
	own := size()
	now := time.Now()
	look := func(small int, after time.Duration) int {
		now = now.Add(after)
		in.arrived, in.small = now, small
		in.boundBacklog()
		return size()
	}
	if n := look(100, time.Second); n != own {
		t.Errorf("%d bytes without bulk, not the kernel's %d", n, own)
	}
	in.burst = new([burstSize]byte)
	if n := look(mixedFrames-1, time.Second); n != own {
		t.Errorf("%d bytes with bulk alone, not the kernel's %d", n, own)
	}
	for range 3 { // the kernel doubles it, for what it needs besides
		if n := look(mixedFrames, time.Second); n != 2*shortQueue {
			t.Errorf("%d bytes with small frames", n)
		}
	}
	if n := look(0, mixedHold/2); n != 2*shortQueue {
		t.Errorf("%d bytes soon after the last small frames", n)
	}
	if n := look(0, mixedHold); n != 2*longQueue {
		t.Errorf("%d bytes with bulk alone again", n)
	}
	// A small frame counts when the one before it was small, too.
	interactive, transfer := new(Session), new(Session)
	in.small = 0
	for _, n := range []int{300, 300, 300} {
		in.noteSize(interactive, n)
		in.noteSize(transfer, n)
		in.noteSize(transfer, 16000)
	}
	if in.small != 2 {
		t.Errorf("%d small frames counted, want 2", in.small)
	}
	if b := newBacklog(bareCarrier{a}); b != nil {
		t.Error("a carrier without a socket has one")
	}
}
