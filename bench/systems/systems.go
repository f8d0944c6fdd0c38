package systems

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/nowconnect/nowconnect/bench/pki"
	"github.com/nowconnect/nowconnect/bench/wan"
)

// Names of the systems in the order of the table.
const (
	Direct = "direct"
	L1     = "l1"
	Ours   = "ours"
	OursWS = "ours-ws"
	Yamux  = "yamux"
	Smux   = "smux"
	Frp    = "frp"
	Chisel = "chisel"
)

// All lists what `make bench` runs; Peers what `make bench-peers` adds.
var (
	All   = []string{Direct, L1, Ours, OursWS, Yamux, Smux}
	Peers = []string{Frp, Chisel}
)

// Binaries are the programs of a run.
type Binaries struct {
	Self   string // ncbench
	MuxHub string // ncbench-hub
	Hub    string // nowconnect
	Agent  string // nowconnect-agent
}

// Site is where systems run: on loopback, or with hub and agent at the two
// ends of an emulated WAN. It owns the target.
type Site struct {
	Binaries
	Dir   string // for configuration, logs and certificates
	Links int    // connections that each multiplexing agent opens to its hub; 0 is auto for ours and 2 for the others
	// Congestion is congestion_control of our hub and agent; the rest has what
	// the system has. Empty is their default, BBR where the kernel has it.
	Congestion string

	Files pki.Files
	Keep  bool // Close leaves Dir

	hubNS, agentNS string // empty on loopback
	hubIP          string // where agents reach the hub
	targetPort     string
	target, link   *Process
}

const token = "ncbench-token-of-no-value-0123456789"

// NewSite starts the target and, unless w is nil, the WAN.
func NewSite(b Binaries, dir string, links int, w *wan.Params) (*Site, error) {
	dir, err := os.MkdirTemp(dir, "site-")
	if err != nil {
		return nil, fmt.Errorf("prepare a run: %w", err)
	}
	s := &Site{Binaries: b, Dir: dir, Links: links, hubIP: "127.0.0.1"}
	if s.Files, err = pki.Create(dir, []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(wan.HubIP)}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token), 0o600); err != nil {
		return nil, fmt.Errorf("prepare a run: %w", err)
	}
	if s.targetPort, err = freePort(); err != nil {
		return nil, err
	}
	if w != nil {
		if err := s.startWAN(w); err != nil {
			s.Close()
			return nil, err
		}
	}
	args := []string{s.Self, "target"}
	for i := range targetAddrs {
		args = append(args, s.targetAddr(i))
	}
	if w != nil {
		args = append(args, net.JoinHostPort(wan.AgentIP, s.targetPort))
	}
	if s.target, err = start(dir, s.agentNS, "target", nil, args...); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.target.awaitLine("ready", 5*time.Second); err != nil {
		s.Close()
		return nil, fmt.Errorf("target: %w", err)
	}
	return s, nil
}

func (s *Site) startWAN(w *wan.Params) error {
	id := strconv.Itoa(os.Getpid())
	s.hubNS, s.agentNS, s.hubIP = "ncbh"+id, "ncba"+id, wan.HubIP
	var err error
	s.link, err = start(s.Dir, "", "wan", nil, s.Self, "wan", "-hub-ns", s.hubNS, "-agent-ns", s.agentNS,
		"-rtt", w.RTT.String(), "-loss", fmt.Sprint(w.Loss), "-rate", fmt.Sprint(w.Rate), "-queue", w.Queue.String(), "-control", w.Control)
	if err != nil {
		return err
	}
	if err := s.link.awaitLine("ready", 10*time.Second); err != nil {
		return fmt.Errorf("wan: %w", err)
	}
	return nil
}

// Close stops target and WAN and, unless Keep is set, removes the directory.
func (s *Site) Close() {
	if s.target != nil {
		s.target.Stop()
	}
	if s.link != nil {
		s.link.Terminate() // it removes its namespaces
	}
	if !s.Keep {
		_ = os.RemoveAll(s.Dir)
	}
}

// StopTarget makes every later dial of an agent be refused.
func (s *Site) StopTarget() { s.target.Stop() }

// targetAddrs is how many addresses the target has. Every system gets one of
// its own, or the closed connections of one would take the ports of the next.
const targetAddrs = 8

func (s *Site) targetAddr(i int) string {
	return net.JoinHostPort(fmt.Sprintf("127.1.0.%d", 1+i), s.targetPort)
}

// Target is one of the target's addresses, for rows that have processes of their own.
func (s *Site) Target(i int) string { return s.targetAddr(i % targetAddrs) }

// TargetFromClient is where a client reaches the target without any system.
func (s *Site) TargetFromClient() string {
	if s.hubNS != "" {
		return net.JoinHostPort(wan.AgentIP, s.targetPort)
	}
	return s.targetAddr(0)
}

// ClientNS is the namespace in which clients run; empty on loopback.
func (s *Site) ClientNS() string { return s.hubNS }

// System is one running system.
type System struct {
	Name   string
	Client string // where clients connect
	Hub    *Process
	Agent  *Process
}

// Start brings a system up; it may need a moment until the agent is connected.
func (s *Site) Start(name string) (*System, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	agentPort, err := freePort()
	if err != nil {
		return nil, err
	}
	sys := &System{Name: name, Client: net.JoinHostPort("127.0.0.1", port)}
	p := plan{
		Site: s, name: name, client: sys.Client, clientPort: port,
		agents: net.JoinHostPort(s.hubIP, agentPort), agentPort: agentPort,
		target: s.targetAddr(slices.Index(slices.Concat(All, Peers), name)),
	}
	switch name {
	case Direct:
		sys.Client = s.TargetFromClient()
		return sys, nil
	case L1:
		err = p.startL1(sys)
	case Yamux, Smux:
		err = p.startMux(sys)
	case Ours:
		err = p.startOurs(sys, "native")
	case OursWS:
		err = p.startOurs(sys, "websocket")
	case Frp:
		err = p.startFrp(sys)
	case Chisel:
		err = p.startChisel(sys)
	default:
		err = fmt.Errorf("unknown system %q", name)
	}
	if err != nil {
		sys.Stop()
		return nil, err
	}
	return sys, nil
}

// Stop kills hub and agent.
func (y *System) Stop() {
	if y.Agent != nil {
		y.Agent.Stop()
	}
	if y.Hub != nil {
		y.Hub.Stop()
	}
}

// Tail returns the ends of both logs.
func (y *System) Tail() string {
	var t string
	if y.Hub != nil {
		t += "hub:\n" + y.Hub.Tail() + "\n"
	}
	if y.Agent != nil {
		t += "agent:\n" + y.Agent.Tail()
	}
	return t
}

// plan is what the start of one system has to go by.
type plan struct {
	*Site
	name               string
	client, clientPort string // clients connect here
	agents, agentPort  string // the agent connects here
	target             string // the agent dials this
}

// both starts hub and agent with the given command lines.
func (p plan) both(sys *System, hub, agent []string) error {
	// Caddy keeps state below these; runs must not share it with anybody.
	env := []string{"XDG_DATA_HOME=" + p.Dir, "XDG_CONFIG_HOME=" + p.Dir, "HOME=" + p.Dir}
	var err error
	if sys.Hub, err = start(p.Dir, p.hubNS, p.name+"-hub", env, hub...); err != nil {
		return err
	}
	sys.Agent, err = start(p.Dir, p.agentNS, p.name+"-agent", env, agent...)
	return err
}

func (p plan) write(suffix, text string) (string, error) {
	path := filepath.Join(p.Dir, p.name+suffix)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("configure %s: %w", p.name, err)
	}
	return path, nil
}

func need(path, hint string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("no %s: %s", filepath.Base(path), hint)
	}
	return nil
}
