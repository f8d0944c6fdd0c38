package tunnel

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
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
