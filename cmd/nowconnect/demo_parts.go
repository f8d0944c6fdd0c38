package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/agent"
)

// part is a process, or a goroutine in its place, that lives as long as the
// demo.
type part struct {
	name string
	log  string        // file
	what string        // for the reader: what runs
	quit func()        // asks it to leave in order
	kill func()        // ends it now
	done chan struct{} // closed when it is gone
	err  error         // valid once done is closed
}

// ended is closed when the part is gone. It is never closed for a nil part.
func (p *part) ended() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.done
}

// died describes an end that nobody asked for.
func (p *part) died() error {
	<-p.done
	if p.err == nil {
		return fmt.Errorf("the %s ended by itself", p.name)
	}
	return fmt.Errorf("the %s ended by itself: %w", p.name, p.err)
}

// stop asks the part to leave and waits; what does not leave is ended. It may
// be called twice and on a part that is gone.
func (p *part) stop() {
	if p == nil {
		return
	}
	p.quit()
	select {
	case <-p.done:
	case <-time.After(demoDrainTimeout + 5*time.Second):
		p.kill()
		<-p.done
	}
}

// startProcess runs a program with its output in a log file.
func (d *demo) startProcess(name string, argv ...string) (*part, error) {
	p := &part{name: name, log: d.file(name + ".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own copy
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, d.dir
	// The configuration is in files; variables meant for another agent on this
	// machine must not change it.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "NC_") })
	setProcessAttributes(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	p.what = fmt.Sprintf("process %d", cmd.Process.Pid)
	p.quit = func() {
		if cmd.Process.Signal(syscall.SIGTERM) != nil { // Windows has none
			cmd.Process.Kill()
		}
	}
	p.kill = func() { cmd.Process.Kill() }
	go func() { // waited for through done
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// startHub runs this very program with the demo's Caddyfile, so that the hub
// is exactly what a user would run.
func (d *demo) startHub(context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.hub, err = d.startProcess("hub", self, "run", "--config", d.file("Caddyfile"), "--adapter", "caddyfile")
	if err != nil {
		return err
	}
	d.say("  hub        %s: clients on %s; agents, health and metrics on https://%s; knows no directory\n", d.hub.what, d.ldapAddr, d.httpAddr)
	return nil
}

// startAgent runs nowconnect-agent from this program's folder, or the same
// code in this process.
func (d *demo) startAgent(context.Context) error {
	config, err := d.render(agentTemplate)
	if err != nil {
		return err
	}
	if err := d.write("agent.yaml", config); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(filepath.Dir(self), "nowconnect-agent")
	if runtime.GOOS == "windows" {
		bin += ".exe"
	}
	_, err = os.Stat(bin)
	switch {
	case err == nil:
		d.agent, err = d.startProcess("agent", bin, "-config", d.file("agent.yaml"))
	case errors.Is(err, fs.ErrNotExist):
		d.agent, err = d.runAgentHere()
	}
	if err != nil {
		return err
	}
	d.say("  agent      %s: dials the hub over TLS, and the directory; listens nowhere\n", d.agent.what)
	return nil
}

// runAgentHere runs the agent as a goroutine of this process.
func (d *demo) runAgentHere() (*part, error) {
	cfg, err := agent.Load(d.file("agent.yaml"), nil, nil)
	if err != nil {
		return nil, err
	}
	p := &part{name: "agent", log: d.file("agent.log"), done: make(chan struct{}),
		what: "inside this process (no nowconnect-agent lies beside this program)"}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	core := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(log), zap.InfoLevel)
	a, err := agent.New(*cfg, zap.New(core))
	if err != nil {
		log.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.quit, p.kill = cancel, cancel
	go func() { // waited for through done
		defer close(p.done)
		defer log.Close()
		p.err = a.Run(ctx)
	}()
	return p, nil
}

// stop ends what was started: the hub first, which tells clients and agents,
// then the agent, then the directory.
func (d *demo) stop() {
	if d.hub != nil || d.agent != nil {
		d.say("\nStopping: live sessions get up to %v.\n", demoDrainTimeout)
	}
	d.hub.stop()
	d.agent.stop()
	if d.directory != nil {
		d.directory.Close()
	}
	if d.hub != nil || d.agent != nil {
		d.say("Stopped.\n")
	}
}

// showLogs prints the ends of the logs, which are about to be removed.
func (d *demo) showLogs() {
	for _, p := range []*part{d.hub, d.agent} {
		if p == nil {
			continue
		}
		b, err := os.ReadFile(p.log)
		if err != nil || len(b) == 0 {
			continue
		}
		lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
		lines = lines[max(0, len(lines)-15):]
		d.say("\nLast lines of the %s's log:\n%s\n", p.name, bytes.Join(lines, []byte("\n")))
	}
}
