// ncbench measures tunnels: NowConnect on both carriers against a direct
// connection, the simplest two-hop TLS relay (l1), and the same Caddy hub with
// yamux and smux. Without a command it runs the benchmark; the commands are
// the processes that it starts.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nowconnect/nowconnect/bench/l1"
	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/mux"
	"github.com/nowconnect/nowconnect/bench/pki"
	"github.com/nowconnect/nowconnect/bench/proc"
	"github.com/nowconnect/nowconnect/bench/run"
	"github.com/nowconnect/nowconnect/bench/scale"
	"github.com/nowconnect/nowconnect/bench/systems"
	"github.com/nowconnect/nowconnect/bench/target"
	"github.com/nowconnect/nowconnect/bench/wan"
)

func main() {
	commands := map[string]func([]string) error{
		"target": runTarget, "load": runLoad, "wan": runWAN,
		"l1-hub": runL1Hub, "l1-agent": runL1Agent, "mux-agent": runMuxAgent,
		"scale-clients": func([]string) error { return scale.ServeOrders(os.Stdin, os.Stdout) },
	}
	f, args := benchmark, os.Args[1:]
	if len(args) > 0 && commands[args[0]] != nil {
		f, args = commands[args[0]], args[1:]
	}
	if err := f(args); err != nil {
		fmt.Fprintln(os.Stderr, "ncbench:", err)
		os.Exit(1)
	}
}

func benchmark(args []string) error {
	fs := flag.NewFlagSet("ncbench", flag.ExitOnError)
	rows := fs.String("rows", "", "rows or groups (loopback, ends, wan, loss, scale, all), comma-separated; default all, with -short loopback, wan and scale")
	names := fs.String("systems", "all", "comma-separated: all ("+strings.Join(systems.All, ", ")+"), peers ("+strings.Join(systems.Peers, ", ")+", where on PATH), or single ones")
	short := fs.Bool("short", false, "one round of 1 s windows, to see whether something broke")
	rounds := fs.Int("rounds", 0, "rounds; default 3, with -short 1")
	window := fs.Duration("window", 0, "measured time per cell on loopback; default 2s, with -short 1s")
	links := fs.Int("links", 0, "connections that each multiplexing agent opens to its hub; default what ours chooses (2 on loopback, 4 over the WAN, 8 there without BBR), and 2 for the others")
	sizes := fs.String("scale", "", "sizes of the scale row in percent, comma-separated; default 10,50,100, with -short 10")
	congestion := fs.String("congestion", "auto", "congestion_control of our hub and agent: auto (BBR where the kernel has it), system, or a name")
	out := fs.String("json", "", "write all figures to this file")
	doc := fs.String("markdown", "", "write the table to this file, too")
	bin := fs.String("bin", "", "directory of nowconnect, nowconnect-agent and ncbench-hub; default: that of ncbench")
	prof := fs.Bool("profile", false, "sample hub and agent with perf in every cell and print the hottest functions")
	keep := fs.Bool("keep", false, "keep logs and configuration of the last site, and say where")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", fs.Arg(0))
	}
	o := run.Options{Links: *links, Congestion: *congestion, Pace: run.Full, Profile: *prof, Progress: os.Stderr}
	wanted := "all"
	if *short {
		o.Pace, wanted = run.Short, "loopback,wan,scale"
	}
	wanted = cmp.Or(*rows, wanted)
	if *rounds > 0 {
		o.Pace.Rounds = *rounds
	}
	if *window > 0 {
		o.Pace.Window = *window
	}
	var err error
	if *sizes != "" {
		if o.Pace.Scale, err = percents(*sizes); err != nil {
			return err
		}
	}
	if o.Systems, err = selectSystems(strings.Split(*names, ",")); err != nil {
		return err
	}
	if o.Rows, err = run.Select(strings.Split(wanted, ",")); err != nil {
		return err
	}
	if o.Self, err = os.Executable(); err != nil {
		return err
	}
	if *bin == "" {
		*bin = filepath.Dir(o.Self)
	}
	if *bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	o.MuxHub, o.Hub, o.Agent = filepath.Join(*bin, "ncbench-hub"), filepath.Join(*bin, "nowconnect"), filepath.Join(*bin, "nowconnect-agent")
	if o.Dir, err = os.MkdirTemp("", "ncbench-"); err != nil {
		return err
	}
	o.Keep = *keep
	if *keep {
		fmt.Fprintln(os.Stderr, "ncbench: files stay in", o.Dir)
	} else {
		defer os.RemoveAll(o.Dir)
	}
	return measure(o, *out, *doc)
}

func percents(list string) (all []int, err error) {
	for w := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(w)
		if err != nil || n < 1 || n > 100 {
			return nil, fmt.Errorf("-scale: %q is not 1 to 100 percent", w)
		}
		all = append(all, n)
	}
	return all, nil
}

// selectSystems spells out groups and leaves out, with a remark, peers that are not installed.
func selectSystems(words []string) ([]string, error) {
	var names []string
	for _, w := range words {
		switch {
		case w == "all":
			names = append(names, systems.All...)
		case w == "peers":
			names = append(names, systems.Peers...)
		case slices.Contains(slices.Concat(systems.All, systems.Peers), w):
			names = append(names, w)
		default:
			return nil, fmt.Errorf("no system %q; systems: %v, peers: %v", w, systems.All, systems.Peers)
		}
	}
	return slices.DeleteFunc(names, func(n string) bool {
		err := systems.Installed(n)
		if err != nil {
			fmt.Fprintf(os.Stderr, "ncbench: %s not run: %v\n", n, err)
		}
		return err != nil
	}), nil
}

func measure(o run.Options, jsonFile, mdFile string) error {
	if n, err := proc.RaiseDescriptors(); err != nil || n < 2*uint64(o.Pace.Idle) {
		fmt.Fprintf(os.Stderr, "ncbench: descriptor limit %d is low for %d idle connections (%v)\n", n, o.Pace.Idle, err)
	}
	r := run.Report{Started: time.Now(), Machine: run.Here(), Pace: o.Pace, Links: o.Links, Congestion: o.Congestion, Systems: o.Systems}
	if r.Machine.Load > run.Quiet {
		fmt.Fprintf(os.Stderr, "ncbench: load average is %.2f: something else is running, do not publish these figures\n", r.Machine.Load)
	}
	// An interrupted run still stops its processes, and shows what it has.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r.Rows = run.Run(ctx, o)
	if jsonFile != "" {
		if err := r.WriteJSON(jsonFile); err != nil {
			return err
		}
	}
	if mdFile != "" {
		f, err := os.Create(mdFile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := r.WriteMarkdown(f); err != nil {
			return err
		}
	}
	if err := r.WriteMarkdown(os.Stdout); err != nil {
		return err
	}
	if n := r.Failures(); n > 0 {
		return fmt.Errorf("%d cells without all their figures, see below the table", n)
	}
	return nil
}

func runTarget(args []string) error {
	s := target.NewServer()
	errc := make(chan error, len(args))
	for _, a := range args {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		go func() { errc <- s.Serve(ln) }()
	}
	fmt.Println("ready")
	return <-errc
}

func runLoad(args []string) error {
	if len(args) != 1 {
		return errors.New("load: want one argument, the specification as JSON")
	}
	var s load.Spec
	if err := json.Unmarshal([]byte(args[0]), &s); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	r, err := load.Run(context.Background(), s)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func runWAN(args []string) error {
	fs := flag.NewFlagSet("wan", flag.ExitOnError)
	var l wan.Link
	fs.StringVar(&l.HubNS, "hub-ns", "ncbhub", "namespace of hub and clients, at "+wan.HubIP)
	fs.StringVar(&l.AgentNS, "agent-ns", "ncbagent", "namespace of agent and target, at "+wan.AgentIP)
	fs.DurationVar(&l.RTT, "rtt", 40*time.Millisecond, "round trip time")
	fs.Float64Var(&l.Loss, "loss", 0, "packet loss each way, percent")
	fs.Float64Var(&l.Rate, "rate", 500, "Mbit/s each way")
	fs.DurationVar(&l.Queue, "queue", 40*time.Millisecond, "bottleneck queue")
	fs.StringVar(&l.Control, "control", "cubic", "TCP congestion control in both namespaces")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := wan.Available(); err != nil {
		return fmt.Errorf("wan: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hole := make(chan os.Signal, 1)
	signal.Notify(hole, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range hole {
			l.Blackhole(s == syscall.SIGUSR1)
		}
	}()
	return l.Run(ctx, func() { fmt.Println("ready") })
}

func runL1Hub(args []string) error {
	fs := flag.NewFlagSet("l1-hub", flag.ExitOnError)
	dir, clients, agents := fs.String("dir", "", "certificates"), fs.String("clients", "", "address for clients"), fs.String("agents", "", "address for agents")
	if err := fs.Parse(args); err != nil {
		return err
	}
	mutual, err := pki.In(*dir).ServerMutual()
	if err != nil {
		return err
	}
	c, err := net.Listen("tcp", *clients)
	if err != nil {
		return fmt.Errorf("l1 hub: %w", err)
	}
	a, err := net.Listen("tcp", *agents)
	if err != nil {
		return fmt.Errorf("l1 hub: %w", err)
	}
	return l1.NewHub().Serve(c, a, mutual)
}

func runL1Agent(args []string) error {
	fs := flag.NewFlagSet("l1-agent", flag.ExitOnError)
	dir, hub, to := fs.String("dir", "", "certificates"), fs.String("hub", "", "the hub's address for agents"), fs.String("target", "", "what to dial")
	if err := fs.Parse(args); err != nil {
		return err
	}
	mutual, err := pki.In(*dir).ClientMutual()
	if err != nil {
		return err
	}
	(&l1.Agent{Hub: *hub, Target: *to, Mutual: mutual}).Run()
	return nil
}

func runMuxAgent(args []string) error {
	fs := flag.NewFlagSet("mux-agent", flag.ExitOnError)
	var a mux.Agent
	dir := fs.String("dir", "", "certificates")
	fs.StringVar(&a.Engine, "engine", "yamux", "yamux or smux")
	fs.StringVar(&a.Hub, "hub", "", "the hub's address for agents")
	fs.StringVar(&a.Target, "target", "", "what to dial")
	fs.StringVar(&a.Token, "token", "", "bearer token")
	fs.IntVar(&a.Links, "links", 2, "connections to the hub")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var err error
	if a.TLS, err = pki.In(*dir).Client(); err != nil {
		return err
	}
	a.Run()
	return nil
}
