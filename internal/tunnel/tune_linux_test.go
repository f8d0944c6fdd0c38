package tunnel

import (
	"os"
	"slices"
	"strings"
	"testing"
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
	for name, want := range map[string]string{
		"": have("bbr"), CongestionAuto: have("bbr"), CongestionSystem: system, "reno": have("reno"), "no-such-thing": system,
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

func TestCheckCongestionControl(t *testing.T) {
	for name, good := range map[string]bool{
		"auto": true, "system": true, "bbr": true, "dctcp-reno": true, "": false, "BBR": false, "a b": false, "sixteen-letters-": false,
	} {
		if err := CheckCongestionControl(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}
