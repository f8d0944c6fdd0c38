package run

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Machine is where a run took place.
type Machine struct {
	CPUs    int     `json:"cpus"`
	Model   string  `json:"model,omitempty"`
	Kernel  string  `json:"kernel,omitempty"`
	Go      string  `json:"go"`
	Control string  `json:"congestion_control,omitempty"`
	Load    float64 `json:"load_average"` // over a minute, before the run
}

// Here describes this machine.
func Here() Machine {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	m.Kernel = line("/proc/sys/kernel/osrelease")
	m.Control = line("/proc/sys/net/ipv4/tcp_congestion_control")
	load, _, _ := strings.Cut(line("/proc/loadavg"), " ")
	m.Load, _ = strconv.ParseFloat(load, 64)
	info, _ := os.ReadFile("/proc/cpuinfo") // absent elsewhere than on Linux: no model then
	for l := range bytes.Lines(info) {
		if k, v, ok := strings.Cut(string(l), ":"); ok && strings.TrimSpace(k) == "model name" {
			m.Model = strings.TrimSpace(v)
			break
		}
	}
	return m
}

func (m Machine) String() string {
	return fmt.Sprintf("%d CPUs (%s), kernel %s, congestion control %s on loopback, %s, load average %.2f before", m.CPUs, m.Model, m.Kernel, m.Control, m.Go, m.Load)
}

// Quiet is the load average above which figures are worthless.
const Quiet = 0.5

func line(path string) string {
	b, _ := os.ReadFile(path) // absent: nothing to tell
	return strings.TrimSpace(string(b))
}
