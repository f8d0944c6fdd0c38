package testpeer

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestProcessReportsExitAndOutput(t *testing.T) {
	p := Start(t, []string{"WORD=hello"}, "/bin/sh", "-c", "echo $WORD; exit 3")
	if code := p.Wait(10 * time.Second); code != 3 {
		t.Errorf("exit status %d, want 3", code)
	}
	if p.Output() != "hello\n" {
		t.Errorf("output %q", p.Output())
	}
}

func TestProcessTakesSignals(t *testing.T) {
	p := Start(t, nil, "/bin/sh", "-c", `trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done`)
	if !eventually(10*time.Second, p.Done(), func() bool { return p.Output() == "up\n" }) {
		t.Fatal("the shell does not start")
	}
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(10 * time.Second); code != 7 {
		t.Errorf("exit status %d, want 7", code)
	}
	p.Signal(syscall.SIGTERM) // gone: no error
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestProcessEndsWithItsTest(t *testing.T) {
	var pid int
	t.Run("inner", func(t *testing.T) { pid = Start(t, nil, "/bin/sleep", "600").PID() })
	if alive(pid) {
		t.Errorf("process %d outlives its test", pid)
	}
}

// A test binary that is killed runs no cleanup; its children must go all the
// same.
func TestProcessEndsWithAKilledTestBinary(t *testing.T) {
	const role = "TESTPEER_PARENT"
	if os.Getenv(role) != "" {
		p := Start(t, nil, "/bin/sleep", "600")
		os.Stdout.WriteString("child " + strconv.Itoa(p.PID()) + "\n")
		<-p.Done()
		return
	}
	parent := Start(t, []string{role + "=1"}, os.Args[0], "-test.run=^TestProcessEndsWithAKilledTestBinary$")
	var pid int
	if !eventually(20*time.Second, parent.Done(), func() bool {
		_, after, _ := strings.Cut(parent.Output(), "child ")
		line, _, whole := strings.Cut(after, "\n")
		pid, _ = strconv.Atoi(line)
		return whole && pid != 0
	}) {
		t.Fatalf("no child: %s", parent.Output())
	}
	if !alive(pid) {
		t.Fatal("the child is gone before its parent")
	}
	parent.Kill()
	if !eventually(10*time.Second, nil, func() bool { return !alive(pid) }) {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Error("the child outlives its killed parent")
	}
}

func TestBuildBinaryBuildsWhatMakeBuilds(t *testing.T) {
	// This package's own doc-only sibling would not do: a command is needed,
	// and the smallest of ours is the agent.
	path := BuildBinary(t, "./cmd/nowconnect-agent", false)
	if again := BuildBinary(t, "./cmd/nowconnect-agent", false); again != path {
		t.Errorf("built twice: %s and %s", path, again)
	}
	info, err := exec.Command("go", "version", "-m", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CGO_ENABLED=0", "-trimpath=true", "github.com/nowconnect/nowconnect/cmd/nowconnect-agent"} {
		if !strings.Contains(string(info), want) {
			t.Errorf("%s is not in its build info:\n%s", want, info)
		}
	}
}
