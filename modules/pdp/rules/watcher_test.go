package rules

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// A file that is written in two steps is a whole one in between, with the rule
// that denies still missing. It must not be taken for the new policy.
func TestFileBeingWritten(t *testing.T) {
	const before, half, whole = "deny before {\n}\n", "allow all {\n\tsource ::/0\n}\n", "allow all {\n\tsource ::/0\n}\ndeny after {\n}\n"
	path := filepath.Join(t.TempDir(), "rules")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(before)
	p := &Rules{File: path, PollInterval: caddy.Duration(time.Hour)}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	if err := p.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Cleanup(); err != nil {
			t.Error(err)
		}
	}()
	w := &watcher{rules: p, inForce: digestOf([]byte(before)), metrics: watch(path)}
	defer w.metrics.release()
	old := p.set.Load()
	for range 2 { // the second time around, half was seen before
		w.look()
		write(half)
		w.look()
		if p.set.Load() != old {
			t.Fatal("half a file is in force")
		}
		write(before)
	}
	write(whole)
	w.look()
	if p.set.Load() != old {
		t.Fatal("one reading is enough")
	}
	w.look()
	now := p.set.Load()
	if now == old || now.Len() != 2 {
		t.Fatal("what stays is not put in force")
	}
	for range 3 {
		w.look()
	}
	if p.set.Load() != now {
		t.Error("what is in force is put in force again")
	}
}
