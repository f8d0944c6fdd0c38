package run

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/systems"
)

// profile samples hub and agent with perf while the cell of spec runs, and
// sends the hottest functions of each. perf, because it sees kernel and
// program alike and needs nothing built into the programs. Symbols need an
// unstripped binary.
func profile(dir string, y *systems.System, s load.Spec) <-chan string {
	out := make(chan string, 1)
	go func() {
		time.Sleep(s.Warm + 200*time.Millisecond) // the load process starts, dials and warms up
		var wg sync.WaitGroup
		var text [2]string
		for i, p := range []*systems.Process{y.Hub, y.Agent} {
			wg.Go(func() {
				text[i] = perf(filepath.Join(dir, "perf-"+strconv.Itoa(p.PID())), p.PID(), s.Window)
			})
		}
		wg.Wait()
		out <- "### hub\n" + text[0] + "### agent\n" + text[1]
	}()
	return out
}

const profileLines = 32

func perf(file string, pid int, d time.Duration) string {
	rec := exec.Command("perf", "record", "-q", "-F", "997", "-g", "-o", file, "-p", strconv.Itoa(pid), "--", "sleep", fmt.Sprint(d.Seconds()))
	if b, err := rec.CombinedOutput(); err != nil {
		return fmt.Sprintf("perf record: %v: %s\n", err, b)
	}
	var text strings.Builder
	for _, view := range []struct {
		title string
		args  []string
	}{
		{"by itself", []string{"--no-children"}},
		{"with what it calls", []string{"--children"}},
	} {
		args := append([]string{"report", "-i", file, "--stdio", "-g", "none", "--percent-limit", "0.7", "--sort", "sym"}, view.args...)
		b, err := exec.Command("perf", args...).Output()
		if err != nil {
			return fmt.Sprintf("perf report: %v\n", err)
		}
		fmt.Fprintf(&text, "%s:\n", view.title)
		n := 0
		for l := range strings.Lines(string(b)) {
			if l = strings.TrimRight(l, " \n"); l != "" && l[0] != '#' && n < profileLines {
				n++
				fmt.Fprintln(&text, l)
			}
		}
	}
	return text.String()
}
