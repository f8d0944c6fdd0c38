// Package scale owns the row that grows: one hub with many connectors, agents
// and idle sessions, at a part of its size and then at more, and how each
// figure follows.
//
// Invariants: hub and agents are the real programs, one process per agent,
// because what an agent costs is what its process costs; clients and target are
// processes of their own, so that no process needs more than 20 000 descriptors;
// each step starts everything afresh; sessions have each done one exchange and
// are idle while anything is measured.
package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/proc"
	"github.com/nowconnect/nowconnect/bench/systems"
)

// Size is how large one step is.
type Size struct {
	Percent    int `json:"percent"`
	Sessions   int `json:"sessions"`
	Agents     int `json:"agents"`
	Links      int `json:"links"` // of each agent
	Connectors int `json:"connectors"`
}

// At returns a part of the full size.
func At(percent, links int) Size {
	return Size{
		Percent: percent, Links: links,
		Sessions: 18000 * percent / 100, Agents: max(1, 200*percent/100), Connectors: max(1, 1000*percent/100),
	}
}

// Step is one measured size. The names of Figures are those of the metrics of
// the row.
type Step struct {
	Size    Size        `json:"size"`
	Figures load.Result `json:"figures,omitempty"`
	Failed  string      `json:"failed,omitempty"`
}

// Figures, in the order of the table.
const (
	HubMB         = "hub RSS MB"
	HubBareMB     = "hub RSS MB without sessions"
	HubKB         = "hub RSS KB/session"
	AgentsMB      = "agents RSS MB"
	AgentMB       = "RSS MB/agent"
	AgentKB       = "agents RSS KB/session"
	Goroutines    = "goroutines of the hub"
	PerSession    = "goroutines/session, hub + agent"
	FirstP50      = "first byte p50 us"
	FirstP99      = "first byte p99 us"
	ScrapeMS      = "scrape ms"
	ScrapePlainMS = "scrape, not packed, ms"
	ScrapeMB      = "scrape MB"
	ScrapeWireKB  = "scrape, packed, KB"
	CaddyScrapeMS = "scrape by Caddy's handler ms"
	ReloadMS      = "reload ms"
	ReloadWorstMS = "slowest reload ms"
	ReloadFileMS  = "reload of a Caddyfile ms"
	ReloadCaddyMS = "reload of caddy-l4's echo alone ms"
	IdleCPU       = "idle CPU %, hub + agents"
	Failed        = "sessions failed"
	FirstFailed   = "new sessions failed, of 1000"
	Dead          = "dead of 200"
	OpenedPerS    = "x opened/s"
	HubFDs        = "x hub descriptors"
)

// Names lists the figures of the table.
var Names = []string{
	HubMB, HubKB, AgentsMB, AgentMB, AgentKB, Goroutines, PerSession, FirstP50, FirstP99,
	ScrapeMS, ScrapePlainMS, ScrapeMB, ScrapeWireKB, CaddyScrapeMS, ReloadMS, ReloadWorstMS, ReloadFileMS, ReloadCaddyMS, IdleCPU, Failed, FirstFailed, Dead,
}

// Measure runs one step.
func Measure(ctx context.Context, s *systems.Site, size Size) (load.Result, error) {
	dir := filepath.Join(s.Dir, strconv.Itoa(size.Percent))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare a step: %w", err)
	}
	w := &world{site: s, dir: dir, size: size, figures: load.Result{}}
	defer w.stop()
	for _, f := range []func(context.Context) error{
		w.startHub, w.startAgents, w.bare, w.openSessions, w.memory, w.firstBytes, w.scrapes, w.reloads, w.alive, w.caddyAlone, w.idle,
	} {
		if err := errors.Join(ctx.Err(), f(ctx)); err != nil {
			return w.figures, err
		}
	}
	return w.figures, nil
}

// world is one step's processes.
type world struct {
	site    *systems.Site
	dir     string
	size    Size
	web     string   // the hub's address for agents and scrapes
	conf    []string // two Caddyfiles that differ in a limit of each connector
	hub     *systems.Process
	agents  []*systems.Process
	health  []string // addresses of the agents' metrics
	clients *Clients
	figures load.Result

	hub0, agents0 int64   // memory before the sessions
	routines0     float64 // goroutines before the sessions
}

func (w *world) stop() {
	if w.clients != nil {
		w.clients.Stop()
	}
	for _, a := range w.agents {
		a.Stop()
	}
	if w.hub != nil {
		w.hub.Stop()
	}
}

// settle is how long memory and links have to come to rest.
const settle = 2 * time.Second

func (w *world) startHub(ctx context.Context) error {
	var err error
	if w.web, err = freeAddr(); err != nil {
		return err
	}
	if err := w.writeConfig(); err != nil {
		return err
	}
	if w.hub, err = w.process("hub", w.site.Hub, "run", "--config", w.conf[0], "--adapter", "caddyfile"); err != nil {
		return err
	}
	return await(ctx, 20*time.Second, func() error {
		_, err := w.figure(ctx, w.web, "go_goroutines")
		return err
	})
}

func (w *world) startAgents(ctx context.Context) error {
	for i := range w.size.Agents {
		conf, health, err := w.agentConfig(i)
		if err != nil {
			return err
		}
		a, err := w.process("agent-"+strconv.Itoa(i), w.site.Agent, "-config", conf)
		if err != nil {
			return err
		}
		w.agents, w.health = append(w.agents, a), append(w.health, health)
	}
	want := float64(w.size.Agents * w.size.Links)
	return await(ctx, 90*time.Second, func() error {
		n, err := w.figure(ctx, w.web, "nowconnect_tunnel_links")
		if err == nil && n != want {
			err = fmt.Errorf("%v links of %v are up", n, want)
		}
		return err
	})
}

// bare measures what there is without sessions. One session through each agent
// first, so that memory for the first use is not charged to the sessions.
func (w *world) bare(ctx context.Context) error {
	var err error
	if w.clients, err = StartClients(w.site.Self); err != nil {
		return err
	}
	if _, err := w.clients.Do(Order{Do: First, Addrs: w.addrs()[:w.size.Agents], N: w.size.Agents}); err != nil {
		return err
	}
	time.Sleep(settle)
	w.hub0, w.agents0 = proc.RSS(w.hub.PID()), w.agentsRSS()
	w.routines0, err = w.routines(ctx)
	w.figures[HubBareMB] = float64(w.hub0) / 1e6
	return err
}

func (w *world) openSessions(context.Context) error {
	began := time.Now()
	r, err := w.clients.Do(Order{Do: Open, Addrs: w.addrs(), N: w.size.Sessions})
	if err != nil {
		return err
	}
	w.figures[Failed] = float64(r.Failed)
	w.figures[OpenedPerS] = float64(r.Done) / time.Since(began).Seconds()
	if r.Done == 0 {
		return fmt.Errorf("no session could be opened: %s", r.Error)
	}
	time.Sleep(settle)
	return nil
}

func (w *world) memory(ctx context.Context) error {
	n := float64(w.size.Sessions) - w.figures[Failed]
	hub, agents := proc.RSS(w.hub.PID()), w.agentsRSS()
	w.figures[HubMB] = float64(hub) / 1e6
	w.figures[HubKB] = float64(hub-w.hub0) / 1e3 / n
	w.figures[AgentsMB] = float64(agents) / 1e6
	w.figures[AgentMB] = float64(agents) / 1e6 / float64(w.size.Agents)
	w.figures[AgentKB] = float64(agents-w.agents0) / 1e3 / n
	w.figures[HubFDs] = float64(proc.Descriptors(w.hub.PID()))
	routines, err := w.routines(ctx)
	if err != nil {
		return err
	}
	w.figures[PerSession] = (routines - w.routines0) / n
	w.figures[Goroutines], err = w.figure(ctx, w.web, "go_goroutines")
	return err
}

// idle measures what nothing costs: pings and timers. It comes last, when the
// runtimes have given back what opening sessions took.
func (w *world) idle(context.Context) error {
	time.Sleep(settle)
	before := w.cpu()
	began := time.Now()
	time.Sleep(3 * settle)
	w.figures[IdleCPU] = 100 * (w.cpu() - before).Seconds() / time.Since(began).Seconds()
	return nil
}

func (w *world) firstBytes(context.Context) error {
	r, err := w.clients.Do(Order{Do: First, Addrs: w.addrs(), N: 1000})
	if err != nil {
		return err
	}
	if w.figures[FirstFailed] = float64(r.Failed); r.Done == 0 {
		return fmt.Errorf("no new session could be opened: %s", r.Error)
	}
	w.figures[FirstP50], w.figures[FirstP99] = r.P50, r.P99
	return nil
}

// alive looks whether the sessions are still there, after all that.
func (w *world) alive(context.Context) error {
	r, err := w.clients.Do(Order{Do: Check, N: 200})
	w.figures[Dead] = float64(r.Failed)
	return err
}

func (w *world) agentsRSS() (n int64) {
	for _, a := range w.agents {
		n += proc.RSS(a.PID())
	}
	return n
}

func (w *world) cpu() (d time.Duration) {
	for _, p := range append([]*systems.Process{w.hub}, w.agents...) {
		u, _ := proc.Read(p.PID()) // a dead process shows elsewhere
		d += u.CPU
	}
	return d
}

// routines counts the goroutines of hub and agents.
func (w *world) routines(ctx context.Context) (n float64, err error) {
	for _, addr := range append([]string{w.web}, w.health...) {
		v, err := w.figure(ctx, addr, "go_goroutines")
		if err != nil {
			return 0, err
		}
		n += v
	}
	return n, nil
}

func (w *world) process(name string, argv ...string) (*systems.Process, error) {
	env := []string{"XDG_DATA_HOME=" + w.dir, "XDG_CONFIG_HOME=" + w.dir, "HOME=" + w.dir}
	return systems.StartProcess(w.dir, name, env, argv...)
}

// await asks again until there is no error, or returns the last.
func await(ctx context.Context, limit time.Duration, f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
