//go:build unix

package testpeer

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Freeze stops the process until Thaw and returns when it has stopped: the
// signal alone leaves its threads time to answer what comes next.
func (p *Process) Freeze() {
	p.tb.Helper()
	p.Signal(syscall.SIGSTOP)
	for end := time.Now().Add(10 * time.Second); !p.frozen(); time.Sleep(time.Millisecond) {
		if p.exited() || time.Now().After(end) {
			p.tb.Errorf("%s does not stop", p.cmd.Path)
			return
		}
	}
}

// Thaw lets the process go on.
func (p *Process) Thaw() {
	p.tb.Helper()
	p.Signal(syscall.SIGCONT)
}

// frozen reports whether all threads have stopped, as far as the system tells.
func (p *Process) frozen() bool {
	stats, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(p.PID()), "task", "*", "stat"))
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread is gone
		}
		// proc_pid_stat(5): the state follows the name in parentheses.
		if _, state, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte(" ")); ok && state[0] != 'T' {
			return false
		}
	}
	return true
}
