package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"time"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/scale"
	"github.com/nowconnect/nowconnect/bench/systems"
	"github.com/nowconnect/nowconnect/bench/wan"
)

// Options say what to run.
type Options struct {
	systems.Binaries
	Dir   string // for logs and configuration; must exist
	Links int
	// Congestion as systems.Site has it.
	Congestion string
	Rows       []Row
	Systems    []string
	Pace       Pace
	Profile    bool // take CPU profiles of hub and agent in every cell
	Keep       bool // leave logs and configuration in Dir
	Progress   io.Writer
}

// Cell is one system in one row.
type Cell struct {
	Rounds []load.Result `json:"rounds,omitempty"`
	Failed string        `json:"failed,omitempty"` // why there are no or fewer figures
}

// RowResult is one measured row.
type RowResult struct {
	Name    string           `json:"name"`
	Title   string           `json:"title"`
	Spec    load.Spec        `json:"spec"`
	WAN     *wan.Params      `json:"wan,omitempty"`
	NotRun  string           `json:"not_run,omitempty"` // why the whole row has no figures
	Cells   map[string]*Cell `json:"cells,omitempty"`
	Steps   []scale.Step     `json:"steps,omitempty"` // of a row that grows
	metrics []Metric
}

// Run measures all rows, or those before ctx ends.
func Run(ctx context.Context, o Options) []RowResult {
	var all []RowResult
	for _, row := range o.Rows {
		if ctx.Err() != nil {
			break
		}
		began := time.Now()
		res := RowResult{Name: row.Name, Title: row.Title, Spec: o.Pace.spec(row), WAN: row.WAN, Cells: map[string]*Cell{}, metrics: row.Metrics}
		measure := o.row
		if row.Grows {
			measure = o.grow
		}
		if err := measure(ctx, row, &res); err != nil {
			res.NotRun = err.Error()
		}
		all = append(all, res)
		fmt.Fprintf(o.Progress, "%-12s %5.1f s  %s\n", row.Name, time.Since(began).Seconds(), res.brief(o.Systems))
	}
	return all
}

func (o *Options) row(ctx context.Context, row Row, res *RowResult) error {
	if row.WAN != nil {
		if err := wan.Available(); err != nil {
			return err
		}
	}
	site, err := systems.NewSite(o.Binaries, o.Dir, o.Links, row.WAN)
	if err != nil {
		return err
	}
	site.Keep, site.Congestion = o.Keep, o.Congestion
	defer site.Close()
	var up []*systems.System
	defer func() {
		for _, y := range up {
			y.Stop()
		}
	}()
	for _, name := range o.Systems {
		if name == systems.Direct && row.SkipDirect {
			continue
		}
		res.Cells[name] = new(Cell)
		y, err := site.Start(name)
		if err != nil {
			res.Cells[name].Failed = err.Error()
			continue
		}
		up = append(up, y)
	}
	up = o.awaitAll(ctx, site, up, res)
	for round := range o.Pace.Rounds {
		for i := range up {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			y := up[(i+round)%len(up)]
			o.cell(ctx, site, y, row, res)
		}
	}
	if row.After != "" {
		o.after(ctx, site, up, row, res)
	}
	return nil
}

// settle lets L1 fill its pool and the others their links before the first window.
const settle = 500 * time.Millisecond

// awaitAll returns the systems that carry traffic and stops the others.
func (o *Options) awaitAll(ctx context.Context, site *systems.Site, up []*systems.System, res *RowResult) []*systems.System {
	var ready []*systems.System
	for _, y := range up {
		s := load.Spec{Kind: load.Ready, Addr: y.Client, Conns: 4, Window: 15 * time.Second}
		if _, err := o.load(ctx, site, s); err != nil {
			res.Cells[y.Name].Failed = fmt.Sprintf("did not come up: %v\n%s", err, y.Tail())
			y.Stop()
			continue
		}
		ready = append(ready, y)
	}
	time.Sleep(settle)
	return ready
}

// after measures row.After with the target gone, into the figures of the last round.
func (o *Options) after(ctx context.Context, site *systems.Site, up []*systems.System, row Row, res *RowResult) {
	site.StopTarget()
	for _, y := range up {
		c := res.Cells[y.Name]
		r, err := o.load(ctx, site, load.Spec{Kind: row.After, Addr: y.Client, Conns: res.Spec.Conns})
		if err != nil || len(c.Rounds) == 0 {
			c.Failed = fmt.Sprintf("%s: %v", row.After, err)
			continue
		}
		maps.Copy(c.Rounds[len(c.Rounds)-1], r)
	}
}

func (o *Options) cell(ctx context.Context, site *systems.Site, y *systems.System, row Row, res *RowResult) {
	s := res.Spec
	s.Addr, s.Count = y.Client, site.TargetFromClient()
	if y.Hub != nil {
		s.Hub, s.Agent = y.Hub.PID(), y.Agent.PID()
	}
	var profiled <-chan string
	if o.Profile && y.Hub != nil {
		profiled = profile(o.Dir, y, s)
	}
	measure := row.Measure
	if measure == nil {
		measure = func(ctx context.Context, o *Options, site *systems.Site, _ *systems.System, s load.Spec) (load.Result, error) {
			return o.load(ctx, site, s)
		}
	}
	r, err := measure(ctx, o, site, y, s)
	if profiled != nil {
		fmt.Fprintf(o.Progress, "\n## %s, %s\n%s", res.Name, y.Name, <-profiled)
	}
	c := res.Cells[y.Name]
	if err != nil {
		c.Failed = err.Error()
		return
	}
	c.Rounds = append(c.Rounds, r)
	if site.ClientNS() != "" {
		time.Sleep(500 * time.Millisecond) // what is left on the WAN drains before the next system's turn
	}
}

// load takes one measurement in a process of its own.
func (o *Options) load(ctx context.Context, site *systems.Site, s load.Spec) (load.Result, error) {
	spec, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("describe the traffic: %w", err)
	}
	argv := []string{o.Self, "load", string(spec)}
	if ns := site.ClientNS(); ns != "" {
		argv = append([]string{"ip", "netns", "exec", ns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && errs.Len() > 0 {
			return nil, errors.New(string(bytes.TrimSpace(errs.Bytes())))
		}
		return nil, fmt.Errorf("run the traffic: %w", err)
	}
	var r load.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("read the figures: %w", err)
	}
	return r, nil
}
