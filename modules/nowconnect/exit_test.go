//go:build unix

package nowconnect_test

import (
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// run starts the real program with the usual configuration and a drain timeout.
func run(t *testing.T, drain string) (*hubtest.Hub, *testpeer.Process) {
	t.Helper()
	h := hubtest.New(t)
	file := h.Write("Caddyfile", h.Caddyfile(h.Expand(hubtest.Basic)+"\n\t\tdrain_timeout "+drain, hubtest.Layer4, hubtest.Site))
	p := testpeer.Start(t, []string{"XDG_DATA_HOME=" + h.Dir, "XDG_CONFIG_HOME=" + h.Dir},
		testpeer.BuildBinary(t, "./cmd/nowconnect", false), "run", "--config", file, "--adapter", "caddyfile")
	hubtest.Eventually(t, "the hub listens", func() bool {
		c, err := net.Dial("tcp", h.HTTP)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	h.Agent(nil)
	return h, p
}

func TestSIGTERMLetsSessionsFinish(t *testing.T) {
	h, p := run(t, "30s")
	c := session(t, h)
	p.Signal(syscall.SIGTERM)
	hubtest.Eventually(t, "the hub drains", func() bool { return strings.Contains(h.Logged(), `"msg":"draining"`) })
	hubtest.RoundTrip(t, c, "still here while draining")
	if late, err := net.Dial("tcp", h.LDAP); err == nil {
		defer late.Close()
		_ = late.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(late, "hello")
		if n, err := io.ReadFull(late, make([]byte, 1)); n != 0 || os.IsTimeout(err) {
			t.Errorf("a draining hub serves a new client: %d bytes, %v", n, err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	ended(t, c)
	if code := p.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if !strings.Contains(h.Logged(), `"msg":"hub drained","finished":1,"cut":0`) {
		t.Errorf("no report in the log:\n%s", h.Logged())
	}
}

func TestSIGTERMCutsWhatDoesNotFinish(t *testing.T) {
	h, p := run(t, "200ms")
	c := session(t, h)
	p.Signal(syscall.SIGTERM)
	ended(t, c)
	if code := p.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if !strings.Contains(h.Logged(), `"msg":"hub drained","finished":0,"cut":1`) {
		t.Errorf("no report in the log:\n%s", h.Logged())
	}
}
