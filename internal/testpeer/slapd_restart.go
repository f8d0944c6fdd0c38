package testpeer

import (
	"syscall"
	"testing"
	"time"
)

// Restart stops the directory in order and starts it again with its data and
// addresses.
func (d *Directory) Restart(tb testing.TB) {
	tb.Helper()
	cmd := d.Process.cmd
	d.Process.Signal(syscall.SIGTERM)
	d.Process.Wait(20 * time.Second)
	d.Process = Start(tb, nil, cmd.Path, cmd.Args[1:]...)
	if !eventually(20*time.Second, d.Process.Done(), func() bool { return accepts(d.Addr) }) {
		tb.Fatalf("slapd does not come up again: %s", d.Process.Output())
	}
}
