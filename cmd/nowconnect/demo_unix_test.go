//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/demodir"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// TestDemo runs the binaries as a user does.
func TestDemo(t *testing.T) {
	withAgent := testpeer.BuildBinary(t, "./cmd/nowconnect", false)
	testpeer.BuildBinary(t, "./cmd/nowconnect-agent", false) // lies beside it
	withoutAgent := filepath.Join(t.TempDir(), "nowconnect")
	copyFile(t, withoutAgent, withAgent)

	t.Run("once", func(t *testing.T) {
		t.Parallel()
		r := runDemoCommand(t, withAgent, "--once", "--ldap-port", "0", "--http-port", "0")
		r.expect(t, 0, "agent      process", "12 people\n", "5 members", "1 connection, ",
			"PUT of zoe to vpn-users at https://", ": added\n", ": already_member\n", "shows the new member: 5 members", "All of it works.")
	})
	t.Run("once with the agent inside", func(t *testing.T) {
		t.Parallel()
		r := runDemoCommand(t, withoutAgent, "--once", "--ldap-port", "0", "--http-port", "0")
		r.expect(t, 0, "agent      inside this process", "12 people\n", "All of it works.")
	})
	t.Run("given directory", func(t *testing.T) {
		t.Parallel()
		s, err := demodir.Start("127.0.0.1:0", demodir.Example())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r := runDemoCommand(t, withAgent, "--once", "--ldap-port", "0", "--http-port", "0", "--directory", s.Addr())
		r.expect(t, 0, "directory  "+s.Addr()+", as given", "namingContexts "+demodir.BaseDN, "All of it works.")
	})
	t.Run("given directory is down", func(t *testing.T) {
		t.Parallel()
		addr := testpeer.Refuse(t)
		r := runDemoCommand(t, withAgent, "--once", "--ldap-port", "0", "--http-port", "0", "--directory", addr)
		r.expect(t, 1, "demo failed: the directory given with --directory cannot be reached", addr)
	})
	t.Run("given directory speaks no LDAP", func(t *testing.T) {
		t.Parallel()
		mute := testpeer.Resetter(t, 1).Addr
		r := runDemoCommand(t, withAgent, "--once", "--ldap-port", "0", "--http-port", "0", "--directory", mute)
		r.expect(t, 1, "demo failed: read the root DSE of "+mute+" through the tunnel")
	})
	for _, flag := range []string{"--ldap-port", "--http-port"} {
		t.Run("busy port of "+flag, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
			other := map[string]string{"--ldap-port": "--http-port", "--http-port": "--ldap-port"}[flag]
			r := runDemoCommand(t, withAgent, "--once", flag, port, other, "0")
			r.expect(t, 1, "demo failed: port "+port+" on 127.0.0.1 is in use", flag)
		})
	}
	t.Run("wrong words", func(t *testing.T) {
		t.Parallel()
		runDemoCommand(t, withAgent, "--ldap-port", "70000").expect(t, 1, "--ldap-port 70000 is not a port")
		runDemoCommand(t, withAgent, "--directory", "localhost", "--ldap-port", "0", "--http-port", "0").
			expect(t, 1, `--directory "localhost" is not host:port`)
		runDemoCommand(t, withAgent, "--twice").expect(t, 1, "unknown flag: --twice")
	})
	t.Run("stays up and drains", func(t *testing.T) { t.Parallel(); testDemoStaysUp(t, withAgent) })
	t.Run("agent dies", func(t *testing.T) { t.Parallel(); testDemoAgentDies(t, withAgent) })
	t.Run("demo is killed", func(t *testing.T) { t.Parallel(); testDemoKilled(t, withAgent) })
	t.Run("printed configuration adapts", func(t *testing.T) {
		t.Parallel()
		r := runDemoCommand(t, withAgent, "--print-config", "--ldap-port", "0", "--http-port", "0")
		r.expect(t, 0, "nowconnect_agent /tunnel", "agent_id: demo-agent")
		caddyfile, _, _ := strings.Cut(r.out, "# agent:")
		if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil); err != nil {
			t.Error(err)
		}
	})
}

// testDemoStaysUp uses a running demo as its last lines say, and stops it with
// a client still connected.
func testDemoStaysUp(t *testing.T, bin string) {
	d := startDemo(t, bin)
	out := d.until("Running. Ctrl-C stops it.")
	ldapAddr := mustMatch(t, out, `clients on (127\.0\.0\.1:\d+);`)
	for _, command := range regexp.MustCompile(`(?m)^  (ldapsearch .*|printf .*|curl .*)$`).FindAllStringSubmatch(out, -1) {
		if _, err := exec.LookPath(strings.Fields(command[1])[0]); err != nil {
			t.Logf("not tried, not installed: %s", command[1])
			continue
		}
		got, err := exec.Command("sh", "-c", command[1]).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", command[1], err, got)
		}
		if strings.HasPrefix(command[1], "ldapsearch") && bytes.Count(got, []byte("\nmail: ")) != 4 {
			t.Errorf("%s:\n%s", command[1], got)
		}
	}
	tryGroupCommands(t, bin, out)
	c, err := net.Dial("tcp", ldapAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	bound := ldap.NewConn(c, false)
	bound.Start()
	bound.SetTimeout(10 * time.Second)
	if err := bound.Bind(demodir.AdminDN, demodir.AdminPassword); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	d.cmd.Process.Signal(os.Interrupt)
	if err := d.wait(); err != nil {
		t.Errorf("exit after SIGINT: %v\n%s", err, d.out.String())
	}
	if took := time.Since(stopped); took < demoDrainTimeout-time.Second {
		t.Errorf("stopped after %v, although a client was still connected", took)
	}
	d.until("Stopped.")
	if entries, err := os.ReadDir(d.tmp); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if conn, err := net.Dial("tcp", ldapAddr); err == nil {
		conn.Close()
		t.Error("the LDAP port still listens")
	}
}

// testDemoAgentDies sees that the demo does not go on with a part missing.
func testDemoAgentDies(t *testing.T, bin string) {
	d := startDemo(t, bin)
	out := d.until("Running. Ctrl-C stops it.")
	pid, _ := strconv.Atoi(mustMatch(t, out, `agent      process (\d+)`))
	syscall.Kill(pid, syscall.SIGKILL)
	var exit *exec.ExitError
	if err := d.wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit after the agent was killed: %v", err)
	}
	d.until("Last lines of the agent's log:")
	d.until("demo failed: the agent ended by itself: signal: killed")
}

// testDemoKilled sees that hub and agent do not outlive a demo that can no
// longer stop them.
func testDemoKilled(t *testing.T, bin string) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends children with their parent")
	}
	d := startDemo(t, bin)
	out := d.until("Running. Ctrl-C stops it.")
	d.cmd.Process.Kill()
	d.wait()
	for _, what := range []string{"hub ", "agent "} {
		pid := mustMatch(t, out, what+` +process (\d+)`)
		for deadline := time.Now().Add(demoDrainTimeout + 10*time.Second); ; time.Sleep(50 * time.Millisecond) {
			// A process that nobody has waited for yet has no command line any more.
			if b, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || len(b) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the %s outlives the demo", what)
			}
		}
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func mustMatch(t *testing.T, s, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(s)
	if m == nil {
		t.Fatalf("no %s in\n%s", pattern, s)
	}
	return m[1]
}

// demoRun is what a demo that ended has said.
type demoRun struct {
	out  string // stdout and stderr
	exit int
}

func (r demoRun) expect(t *testing.T, exit int, texts ...string) {
	t.Helper()
	if r.exit != exit {
		t.Errorf("exit status %d, want %d\n%s", r.exit, exit, r.out)
	}
	for _, text := range texts {
		if !strings.Contains(r.out, text) {
			t.Errorf("no %q in\n%s", text, r.out)
		}
	}
}

// runDemoCommand runs a demo that ends by itself, and checks that it cleaned
// up.
func runDemoCommand(t *testing.T, bin string, args ...string) demoRun {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"demo"}, args...)...)
	tmp := t.TempDir()
	// A variable for another agent on this machine must not matter.
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "NC_LINKS=nonsense")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v\n%s", err, out)
	}
	if entries, err := os.ReadDir(tmp); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	return demoRun{string(out), cmd.ProcessState.ExitCode()}
}

// liveDemo is a demo that runs until it is told to stop.
type liveDemo struct {
	t     *testing.T
	cmd   *exec.Cmd
	tmp   string
	lines chan string
	out   strings.Builder
}

func startDemo(t *testing.T, bin string) *liveDemo {
	t.Helper()
	d := &liveDemo{t: t, tmp: t.TempDir(), lines: make(chan string, 1000)}
	d.cmd = exec.Command(bin, "demo", "--ldap-port", "0", "--http-port", "0")
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.tmp)
	r, w := io.Pipe()
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			d.cmd.Process.Signal(os.Interrupt)
			d.cmd.Wait()
		}
		w.Close()
	})
	return d
}

// until returns all output up to a line with this text.
func (d *liveDemo) until(text string) string {
	d.t.Helper()
	for deadline := time.After(time.Minute); ; {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("ended without %q:\n%s", text, d.out.String())
			}
			d.out.WriteString(line + "\n")
			if strings.Contains(line, text) {
				return d.out.String()
			}
		case <-deadline:
			d.t.Fatalf("no %q within a minute:\n%s", text, d.out.String())
		}
	}
}

func (d *liveDemo) wait() error {
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		d.t.Fatal("does not end")
		return nil
	}
}
