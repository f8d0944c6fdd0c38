package testpeer

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a child process of the test.
type Process struct {
	tb   testing.TB
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{} // closed when the process has been waited for
	err  error         // of Wait; read after done
}

// Start runs path with args until the test ends. env adds to the environment.
// The process is killed when the test ends or the test binary dies, however
// either happens. Its output is logged if the test failed.
func Start(tb testing.TB, env []string, path string, args ...string) *Process {
	tb.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = procAttr()
	return startCmd(tb, cmd)
}

// startCmd is Start for a command that has its environment and attributes.
func startCmd(tb testing.TB, cmd *exec.Cmd) *Process {
	tb.Helper()
	path := cmd.Path
	// Grandchildren that keep our pipes must not hold up Wait.
	cmd.WaitDelay = 5 * time.Second
	p := &Process{tb: tb, cmd: cmd, out: new(lockedBuffer), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if err := p.start(); err != nil {
		tb.Fatalf("start %s: %v", path, err)
	}
	tb.Cleanup(func() {
		p.Kill()
		if tb.Failed() {
			tb.Logf("output of %s:\n%s", filepath.Base(path), p.out.String())
		}
	})
	return p
}

// start runs the child from a goroutine that keeps its thread until the child
// is gone: the kernel's parent-death signal is about the thread, not the
// process.
func (p *Process) start() error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
		close(p.done)
	}()
	return <-started
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig. A process that has gone already is no error.
func (p *Process) Signal(sig os.Signal) {
	p.tb.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !p.exited() {
		p.tb.Errorf("signal %v to %s: %v", sig, p.cmd.Path, err)
	}
}

// Kill ends the process as kill -9 does and waits until it is gone.
func (p *Process) Kill() {
	p.tb.Helper()
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Done is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end by itself and returns its exit status, -1
// if a signal ended it. It fails the test if that takes longer than d.
func (p *Process) Wait(d time.Duration) int {
	p.tb.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(d):
		p.tb.Fatalf("%s still runs after %v", p.cmd.Path, d)
		return 0
	}
}

// Output is everything written to standard output and error so far.
func (p *Process) Output() string { return p.out.String() }

func (p *Process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// lockedBuffer collects output while the test reads it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// lookPath finds a program of the peers, also in the directories that ordinary
// users do not search, or fails the test.
func lookPath(tb testing.TB, name string) string {
	tb.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	tb.Fatalf("%s is not installed: run scripts/deps.sh", name)
	return ""
}

// eventually polls ok until it holds, the process is gone, or d has passed.
func eventually(d time.Duration, gone <-chan struct{}, ok func() bool) bool {
	deadline := time.After(d)
	for {
		if ok() {
			return true
		}
		select {
		case <-gone:
			return false
		case <-deadline:
			return ok()
		case <-time.After(5 * time.Millisecond):
		}
	}
}
