// Command nowconnect-agent is the on-premise end of NowConnect: it dials out
// to a hub and serves the targets that its configuration maps. docs/agent.md
// is its manual.
//
// It owns the process: flags, logging, signals and the exit code. All else is
// internal/agent's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/agent"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// Exit codes; docs/agent.md has them.
const (
	exitOK     = 0 // stopped by a signal, or -check or -version had no complaint
	exitFailed = 1 // cannot run: the health port is taken
	exitConfig = 2 // configuration or command line is wrong
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr, signals))
}

// run is main without the process around it.
func run(args, env []string, stdout, stderr io.Writer, signals <-chan os.Signal) int {
	fs := flag.NewFlagSet("nowconnect-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	flags := agent.RegisterFlags(fs)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil {
		return exitConfig // flag has said why
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "nowconnect-agent: unexpected argument %q; everything is said by flags\n", fs.Arg(0))
		return exitConfig
	}
	if flags.Version {
		fmt.Fprintln(stdout, software())
		return exitOK
	}
	cfg, err := agent.Load(flags.Config, env, flags)
	if err != nil {
		return complain(stderr, err)
	}
	cfg.Software = software()
	log, err := newLogger(cfg.LogLevel, cfg.LogFormat, stderr)
	if err != nil {
		return complain(stderr, err)
	}
	defer func() { _ = log.Sync() }() // stderr cannot always be synced
	a, err := agent.New(*cfg, log)
	if err != nil {
		return complain(stderr, err)
	}
	if flags.Check {
		for _, w := range cfg.Warnings {
			fmt.Fprintln(stderr, "warning:", w)
		}
		if err := cfg.CheckCredential(); err != nil {
			fmt.Fprintln(stderr, "warning:", err)
		}
		fmt.Fprintln(stdout, "configuration is valid")
		return exitOK
	}
	return serve(a, log, signals)
}

// serve runs the agent until the first signal and lets it drain; a second one
// ends the drain.
func serve(a *agent.Agent, log *zap.Logger, signals <-chan os.Signal) int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				log.Error("agent cannot run", zap.Error(err))
				return exitFailed
			}
			log.Info("agent stopped")
			return exitOK
		case sig := <-signals:
			if ctx.Err() != nil {
				log.Warn("second signal: not waiting any longer", zap.Stringer("signal", sig))
				a.Cut()
				continue
			}
			log.Info("stopping", zap.Stringer("signal", sig))
			stop()
		}
	}
}

// complain prints each fault on a line of its own: at this point there is no
// logger, and the reader is most often a person.
func complain(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "nowconnect-agent: %v\n", err)
	return exitConfig
}

func newLogger(level, format string, w io.Writer) (*zap.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	ec := zap.NewProductionEncoderConfig()
	ec.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	ec.EncodeDuration = zapcore.StringDurationEncoder
	enc := zapcore.NewJSONEncoder(ec)
	if format == "console" {
		ec.EncodeTime = zapcore.ISO8601TimeEncoder
		ec.EncodeLevel = zapcore.CapitalLevelEncoder
		enc = zapcore.NewConsoleEncoder(ec)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), l)), nil
}

// software names this build, for -version and the hub's log.
func software() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	return "nowconnect-agent/" + v
}
