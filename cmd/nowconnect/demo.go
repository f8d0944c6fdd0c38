package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/nowconnect/nowconnect/internal/demodir"
)

// The demo's names. They appear in its output and in the documentation.
const (
	demoConnector = "directory"
	demoAgent     = "demo-agent"
)

// Bounds of the demo's steps.
const (
	demoReadyTimeout = 20 * time.Second // from starting hub and agent until /readyz says 200
	demoStepTimeout  = 10 * time.Second // one LDAP or HTTP exchange
	demoDrainTimeout = 5 * time.Second  // what live sessions get on Ctrl-C
)

// demoOptions is what the command line says.
type demoOptions struct {
	once        bool
	printConfig bool
	ldapPort    int
	httpPort    int
	directory   string // host:port; empty starts the embedded one
}

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "demo",
		Usage: "[--once] [--ldap-port <port>] [--http-port <port>] [--directory <host:port>] [--print-config]",
		Short: "Starts a hub, an agent and a small directory, and checks that LDAP gets through",
		Long: `
Starts everything that NowConnect is made of on this machine, on loopback
addresses only: a directory with people and groups, an agent that knows where
the directory is, and a hub that does not. The agent dials the hub over TLS;
LDAP clients connect to the hub. Then it binds and searches through the tunnel,
makes somebody a member of a group through the hub's HTTP API and looks whether
LDAP shows it, prints what it did and what to try next, and stays up until
Ctrl-C.

The hub is this program running the configuration that --print-config shows.
The agent is nowconnect-agent if that lies beside this program, else the same
code inside this process.

With --once it stops after the check: exit status 0 means that every step
succeeded; otherwise the output says which one did not, and why.
`,
		CobraFunc: func(cmd *cobra.Command) {
			var o demoOptions
			f := cmd.Flags()
			f.BoolVar(&o.once, "once", false, "stop after the check; exit 0 if it succeeded")
			f.BoolVar(&o.printConfig, "print-config", false, "print the hub's Caddyfile and the agent's configuration, and exit")
			f.IntVar(&o.ldapPort, "ldap-port", 1389, "port for LDAP clients; 0 picks a free one")
			f.IntVar(&o.httpPort, "http-port", 8765, "port for agents, health and metrics (HTTPS); 0 picks a free one")
			f.StringVar(&o.directory, "directory", "", "use the directory at this `host:port` instead of the embedded one")
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error {
				// What goes wrong is told below in full; usage would bury it.
				cmd.SilenceUsage, cmd.SilenceErrors = true, true
				ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
				defer stop()
				err := runDemo(ctx, stop, o, cmd.OutOrStdout())
				if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "\ndemo failed: %v\n", err)
				}
				return err
			}
		},
	})
}

// errInterrupted ends a demo that was told to stop before its check was done.
var errInterrupted = errors.New("interrupted before the check was done")

// runDemo starts everything, checks it, and with o.once or at the end of ctx
// stops it again. restoreSignals lets a second Ctrl-C end the process at once.
func runDemo(ctx context.Context, restoreSignals func(), o demoOptions, out io.Writer) error {
	runtime.LockOSThread() // see dieWithParent; all processes are started from here
	defer runtime.UnlockOSThread()
	d, err := newDemo(o, out)
	if err != nil {
		return err
	}
	defer d.remove()
	if o.printConfig {
		return d.printConfig()
	}
	err = d.serve(ctx, o.once)
	restoreSignals()
	d.stop()
	if err != nil {
		d.showLogs()
	}
	return err
}

// serve starts the parts, checks the whole, and waits for the end of ctx or
// of a part.
func (d *demo) serve(ctx context.Context, once bool) error {
	d.say("NowConnect demo, all on this machine:\n")
	for _, step := range []func(context.Context) error{d.startDirectory, d.startHub, d.startAgent, d.awaitReady, d.check, d.checkMembership} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return errInterrupted
			}
			return err
		}
	}
	if once {
		d.say("\nAll of it works.\n")
		return nil
	}
	d.showNext()
	d.say("\nRunning. Ctrl-C stops it.\n")
	select {
	case <-ctx.Done():
		return nil
	case <-d.hub.ended():
		return d.hub.died()
	case <-d.agent.ended():
		return d.agent.died()
	}
}

// startDirectory starts the embedded directory, or looks whether the given one
// answers.
func (d *demo) startDirectory(ctx context.Context) error {
	if d.external {
		if err := dialable(ctx, d.target); err != nil {
			return fmt.Errorf("the directory given with --directory cannot be reached: %w", err)
		}
		d.say("  directory  %s, as given\n", d.target)
		return nil
	}
	s, err := demodir.Start(loopback(0), demodir.Example())
	if err != nil {
		return err
	}
	d.directory, d.target = s, s.Addr()
	d.say("  directory  %s: %d people and 3 groups, in memory\n", d.target, demodir.NumPeople())
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }
