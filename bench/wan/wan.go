// Package wan owns an emulated WAN link between two network namespaces, for
// kernels without netem: delay, random loss, a rate limit and a bottleneck
// queue. The kernel's own TCP runs end to end; this package only carries
// packets between two TUN devices.
//
// Invariants: needs root and /dev/net/tun and says so before it changes
// anything; names its namespaces after its process, so that two runs do not
// meet; removes them when Run returns.
package wan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses inside the namespaces; nothing outside them can see these.
const (
	HubIP   = "10.213.0.1"
	AgentIP = "10.213.0.2"
)

// Params describe the link.
type Params struct {
	RTT     time.Duration `json:"rtt"`
	Loss    float64       `json:"loss"`  // percent of packets, each way
	Rate    float64       `json:"rate"`  // Mbit/s, each way
	Queue   time.Duration `json:"queue"` // what the bottleneck holds before it drops
	Control string        `json:"control"`
}

// Link is a link that Run carries.
type Link struct {
	Params
	HubNS, AgentNS string
	blackhole      atomic.Bool
}

// Available reports why a WAN cannot be emulated here; nil if it can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return errors.New("needs /dev/net/tun")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("needs the ip command")
	}
	return nil
}

// Blackhole makes the link swallow every packet, without FIN or RST, until it is healed.
func (l *Link) Blackhole(on bool) { l.blackhole.Store(on) }

// Run sets up both namespaces, calls ready, and carries packets until ctx ends.
func (l *Link) Run(ctx context.Context, ready func()) error {
	defer l.remove()
	l.remove() // leftovers of a run that was killed
	a, err := openEnd(l.HubNS, HubIP, AgentIP, l.Control)
	if err != nil {
		return err
	}
	b, err := openEnd(l.AgentNS, AgentIP, HubIP, l.Control)
	if err != nil {
		return err
	}
	go l.carry(a, b)
	go l.carry(b, a)
	ready()
	// The carriers sit in blocking reads; they end with the process, which has
	// nothing else to do.
	<-ctx.Done()
	return nil
}

func (l *Link) remove() {
	_ = exec.Command("ip", "netns", "del", l.HubNS).Run()   // usually there is none
	_ = exec.Command("ip", "netns", "del", l.AgentNS).Run() // usually there is none
}

// openEnd creates namespace ns with one TUN device and a route to peer.
func openEnd(ns, ip, peer, control string) (fd int, err error) {
	if err := ipCommand("netns", "add", ns); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The device belongs to the namespace of the thread that opens it. The
		// thread stays locked, so the runtime ends it with this goroutine.
		runtime.LockOSThread()
		fd, err = openTUN(ns)
	}()
	<-done
	if err != nil {
		return 0, fmt.Errorf("wan: open TUN device in %s: %w", ns, err)
	}
	for _, args := range [][]string{
		{"-n", ns, "link", "set", "lo", "up"},
		{"-n", ns, "addr", "add", ip, "peer", peer, "dev", tunName},
		{"-n", ns, "link", "set", tunName, "up", "mtu", "1500", "txqueuelen", "20000"},
		{"-n", ns, "route", "replace", peer, "dev", tunName, "src", ip, "congctl", control},
	} {
		if err := ipCommand(args...); err != nil {
			return 0, err
		}
	}
	return fd, nil
}

const tunName = "tun0"

func openTUN(ns string) (int, error) {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	ifr, err := unix.NewIfreq(tunName)
	if err != nil {
		return 0, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

func ipCommand(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("wan: ip %v: %s", args, out)
	}
	return nil
}
