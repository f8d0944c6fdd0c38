// Package systems owns the processes under test: how each system is
// configured, started and stopped. A system is a way from a client address to
// the target; hub and agent are processes of their own, so that their CPU and
// memory can be told apart from traffic and target.
//
// Invariants: everything listens on loopback or inside the run's own network
// namespaces; nothing survives Stop; a system that does not come up says why
// with the end of its log.
package systems

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a child of the benchmark.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it was waited for
	once sync.Once

	again func() (*Process, error) // starts the same program once more
}

// start runs argv in network namespace ns (empty: ours), with its output in
// the file name.log below dir.
func start(dir, ns, name string, env []string, argv ...string) (*Process, error) {
	if ns != "" {
		argv = append([]string{"ip", "netns", "exec", ns}, argv...) // execs, so the process id is the program's
	}
	return spawn(filepath.Join(dir, name+".log"), name, env, argv)
}

func spawn(log, name string, env, argv []string) (*Process, error) {
	p := &Process{log: log, done: make(chan struct{})}
	p.again = func() (*Process, error) { return spawn(log, name, env, argv) }
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // killed by us, or its log tells
		close(p.done)
	}()
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop kills the process and waits for it. There is nothing to save in it, and
// a drain would only eat into the next measurement.
func (p *Process) Stop() {
	p.once.Do(func() { _ = p.cmd.Process.Kill() })
	<-p.done
}

// Again starts the same program once more, after Stop.
func (p *Process) Again() (*Process, error) { return p.again() }

// Terminate asks the process to end, and kills it after a second.
func (p *Process) Terminate() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(time.Second):
		p.Stop()
	}
}

// Tail returns the last lines of its output, for error messages.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// awaitLine waits until the output holds text.
func (p *Process) awaitLine(text string, limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if b, _ := os.ReadFile(p.log); bytes.Contains(b, []byte(text)) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended early:\n%s", p.Tail())
		default:
		}
	}
	return fmt.Errorf("no %q within %v:\n%s", text, limit, p.Tail())
}

// freePort returns a TCP port that was free a moment ago.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}

// StartProcess runs argv for rows that have processes of their own, with its
// output in the file name.log below dir.
func StartProcess(dir, name string, env []string, argv ...string) (*Process, error) {
	return start(dir, "", name, env, argv...)
}
