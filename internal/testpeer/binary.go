//go:build unix

package testpeer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// binaries remembers what this test process has built.
var binaries struct {
	mu    sync.Mutex
	paths map[string]string // guarded by mu; by package and mode
}

// BuildBinary builds one of the module's commands, such as ./cmd/nowconnect,
// and returns its path. It builds once per test process, into the module's
// .cache directory; other test processes find the work done. Without race, it
// is built as make build does.
func BuildBinary(tb testing.TB, pkg string, race bool) string {
	tb.Helper()
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	key := fmt.Sprint(pkg, race)
	if path, ok := binaries.paths[key]; ok {
		return path
	}
	root := ModuleRoot(tb)
	dir := filepath.Join(root, ".cache", "testbin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	defer lockDir(tb, dir)()
	path := filepath.Join(dir, filepath.Base(pkg))
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-tags=nobadger,nomysql,nopgx"}
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		path += "-race"
		args, env = []string{"build", "-race"}, append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "-o", path, pkg)...)
	cmd.Dir, cmd.Env = root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	if binaries.paths == nil {
		binaries.paths = make(map[string]string)
	}
	binaries.paths[key] = path
	return path
}

// ModuleRoot is the directory of the go.mod that the test belongs to.
func ModuleRoot(tb testing.TB) string {
	tb.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		tb.Fatal(err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		tb.Fatal("the test runs outside of a module")
	}
	return filepath.Dir(mod)
}

// lockDir keeps other test processes from building into dir at the same time.
// The lock dies with the process, however it ends.
func lockDir(tb testing.TB, dir string) (unlock func()) {
	tb.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		tb.Fatal(err)
	}
	return func() { f.Close() }
}
