// Package proc owns what the benchmark learns from /proc about the processes
// under test: CPU time, resident memory, system calls, context switches,
// descriptors. It reads, and changes nothing but this process's own
// descriptor limit.
package proc

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is the state of one process, or the difference between two.
type Usage struct {
	CPU           time.Duration // user and system
	Reads, Writes int64         // system calls of the read and write families
	Switches      int64         // voluntary context switches of the threads alive now
}

// Sub returns what happened from old to u.
func (u Usage) Sub(old Usage) Usage {
	return Usage{u.CPU - old.CPU, u.Reads - old.Reads, u.Writes - old.Writes, u.Switches - old.Switches}
}

// clockTick is USER_HZ, 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// Read samples pid.
func Read(pid int) (Usage, error) {
	var u Usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, fmt.Errorf("sample process %d: %w", pid, err)
	}
	// The command name may hold spaces, so count fields behind its bracket:
	// utime and stime are fields 14 and 15 of the whole line.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return u, fmt.Errorf("sample process %d: short stat line", pid)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	sys, err2 := strconv.ParseInt(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		return u, fmt.Errorf("sample process %d: CPU times %q %q", pid, f[11], f[12])
	}
	u.CPU = time.Duration(user+sys) * clockTick
	u.Reads = field(fmt.Sprintf("/proc/%d/io", pid), "syscr:")
	u.Writes = field(fmt.Sprintf("/proc/%d/io", pid), "syscw:")
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range tasks {
		u.Switches += field(t, "voluntary_ctxt_switches:")
	}
	return u, nil
}

// RSS returns the resident set of pid in bytes.
func RSS(pid int) int64 { return field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:") << 10 }

// Descriptors returns how many file descriptors pid holds.
func Descriptors(pid int) int {
	e, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(e)
}

// field returns the number behind name in a file of "name value" lines; 0 when
// the file or the line is missing (io accounting may be switched off).
func field(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), name); ok {
			if w := strings.Fields(rest); len(w) > 0 {
				n, _ := strconv.ParseInt(w[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// maxDescriptors keeps runs on different machines comparable.
const maxDescriptors = 20000

// RaiseDescriptors lifts the descriptor limit, inherited by every process
// started later, to 20 000 where allowed, and returns what it is now.
func RaiseDescriptors() (uint64, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read descriptor limit: %w", err)
	}
	// Set even when the soft limit is high enough: the Go runtime lowers it
	// again for children unless somebody called Setrlimit.
	want := unix.Rlimit{Cur: maxDescriptors, Max: max(l.Max, maxDescriptors)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) != nil {
		want = unix.Rlimit{Cur: min(l.Max, maxDescriptors), Max: l.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
			return l.Cur, fmt.Errorf("raise descriptor limit: %w", err)
		}
	}
	return want.Cur, nil
}
