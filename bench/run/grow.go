package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/nowconnect/nowconnect/bench/scale"
	"github.com/nowconnect/nowconnect/bench/systems"
)

// grow measures a row that has sizes in the place of systems.
func (o *Options) grow(ctx context.Context, _ Row, res *RowResult) error {
	site, err := systems.NewSite(o.Binaries, o.Dir, o.Links, nil)
	if err != nil {
		return err
	}
	site.Keep = o.Keep
	defer site.Close()
	for _, percent := range o.Pace.Scale {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		step := scale.Step{Size: scale.At(percent, cmp.Or(o.Links, systems.MuxLinks))}
		figures, err := scale.Measure(ctx, site, step.Size)
		step.Figures = figures
		if err != nil {
			step.Failed = err.Error()
		}
		res.Steps = append(res.Steps, step)
	}
	return nil
}

// growth writes the table of a row that grows: a column per step, and how the
// last is to the first.
func (r *RowResult) growth(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s:", r.Title)
	var names []string
	for _, s := range r.Steps {
		names = append(names, fmt.Sprintf("%d %%", s.Size.Percent))
		fmt.Fprintf(b, " %d %%: %d sessions, %d agents × %d links, %d connectors.", s.Size.Percent, s.Size.Sessions, s.Size.Agents, s.Size.Links, s.Size.Connectors)
	}
	first, last := r.Steps[0], r.Steps[len(r.Steps)-1]
	b.WriteString("\n\n")
	head(b, "figure", append(names, fmt.Sprintf("× size %.3g: × cost", float64(last.Size.Percent)/float64(first.Size.Percent))))
	for _, name := range scale.Names {
		fmt.Fprintf(b, "| %s |", name)
		for _, s := range r.Steps {
			v, ok := s.Figures[name]
			if !ok || math.IsNaN(v) {
				b.WriteString(" – |")
				continue
			}
			fmt.Fprintf(b, " %s |", figure(v))
		}
		from, to := first.Figures[name], last.Figures[name]
		if _, ok := last.Figures[name]; !ok || len(r.Steps) == 1 || from == 0 {
			b.WriteString(" |\n")
			continue
		}
		fmt.Fprintf(b, " %s |\n", figure(to/from))
	}
	for _, s := range r.Steps {
		if s.Failed != "" {
			fmt.Fprintf(b, "\n- %d %%: failed: %s\n", s.Size.Percent, s.Failed)
		}
	}
}
