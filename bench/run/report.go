package run

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/bench/systems"
)

// Report is a whole run, as written to the JSON file.
type Report struct {
	Started time.Time `json:"started"`
	Machine Machine   `json:"machine"`
	Pace    Pace      `json:"pace"`
	Links   int       `json:"links"`
	// Congestion is the congestion_control of ours; empty is its default, auto.
	Congestion string      `json:"congestion,omitempty"`
	Systems    []string    `json:"systems"`
	Rows       []RowResult `json:"rows"`
}

// WriteJSON writes the report to path.
func (r *Report) WriteJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

// Failures counts the cells that failed. A row that cannot run here is none.
func (r *Report) Failures() (n int) {
	for _, row := range r.Rows {
		for _, c := range row.Cells {
			if c.Failed != "" {
				n++
			}
		}
		for _, s := range row.Steps {
			if s.Failed != "" {
				n++
			}
		}
	}
	return n
}

// spread is a metric over the rounds of a cell.
type spread struct{ median, low, high float64 }

// over returns the metric's spread; ok is false when nothing was measured. In
// the place of the median stands the first round's figure where that is what
// the metric wants.
func (c *Cell) over(metric Metric) (s spread, ok bool) {
	var v []float64
	if c != nil {
		for _, r := range c.Rounds {
			if x, ok := r[metric.Name]; ok && !math.IsNaN(x) {
				v = append(v, x)
			}
		}
	}
	if len(v) == 0 {
		return spread{}, false
	}
	first := v[0]
	slices.Sort(v)
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	if metric.First {
		m = first
	}
	return spread{m, v[0], v[len(v)-1]}, true
}

func (s spread) String() string {
	if s.low == s.high {
		return figure(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", figure(s.median), figure(s.low), figure(s.high))
}

// figure prints three significant digits, and no more than was measured.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// brief is one line for the progress output.
func (r *RowResult) brief(names []string) string {
	if r.NotRun != "" {
		return "not run: " + r.NotRun
	}
	if len(r.metrics) == 0 {
		return fmt.Sprintf("%d steps", len(r.Steps))
	}
	parts := []string{r.metrics[0].Name}
	for _, n := range names {
		c, there := r.Cells[n]
		s, ok := c.over(r.metrics[0])
		switch {
		case ok:
			parts = append(parts, n+" "+s.String())
		case there:
			line, _, _ := strings.Cut(c.Failed, "\n")
			parts = append(parts, n+" failed: "+line)
		}
	}
	return strings.Join(parts, ", ")
}

func linksText(n int) string {
	if n == 0 {
		return fmt.Sprintf("ours chooses its number of links, yamux and smux have %d", systems.MuxLinks)
	}
	return fmt.Sprintf("%d links per multiplexing agent", n)
}

// WriteMarkdown writes both tables, figures and ratios.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %s. %d rounds of %v (WAN %v), medians (min–max); %s; congestion control of ours: %s.\n\n",
		r.Started.Format("2006-01-02"), r.Machine, r.Pace.Rounds, r.Pace.Window, r.Pace.WANRun, linksText(r.Links), cmp.Or(r.Congestion, "auto"))
	compared := slices.ContainsFunc(r.Rows, func(row RowResult) bool { return len(row.metrics) > 0 })
	if compared {
		r.figures(&b)
	}
	for i := range r.Rows {
		if len(r.Rows[i].Steps) > 0 {
			r.Rows[i].growth(&b)
		}
	}
	if compared && (slices.Contains(r.Systems, systems.L1) || slices.Contains(r.Systems, systems.Yamux)) {
		b.WriteString("\nRatios of medians, × L1 / × yamux. Bold: not worse than yamux.\n\n")
		r.ratios(&b)
	}
	r.remarks(&b)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func head(b *strings.Builder, first string, names []string) {
	fmt.Fprintf(b, "| %s | %s |\n|---|%s\n", first, strings.Join(names, " | "), strings.Repeat("---:|", len(names)))
}

// lines calls each for every row and metric that has something to show.
func (r *Report) lines(each func(row *RowResult, m Metric)) {
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.NotRun != "" {
			continue
		}
		for _, m := range row.metrics {
			quiet := m.Quiet && !slices.ContainsFunc(r.Systems, func(n string) bool {
				s, _ := row.Cells[n].over(m)
				return s.high != 0
			})
			if !quiet {
				each(row, m)
			}
		}
	}
}

func (r *Report) figures(b *strings.Builder) {
	head(b, "row", r.Systems)
	r.lines(func(row *RowResult, m Metric) {
		fmt.Fprintf(b, "| %s: %s |", row.Title, m.Name)
		for _, n := range r.Systems {
			c, there := row.Cells[n]
			s, ok := c.over(m)
			switch {
			case ok && !(n == systems.Direct && strings.Contains(m.Name, "CPU")):
				fmt.Fprintf(b, " %s |", s)
			case there && !ok:
				b.WriteString(" failed |")
			default:
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	})
}

func (r *Report) ratios(b *strings.Builder) {
	names := slices.DeleteFunc(slices.Clone(r.Systems), func(n string) bool { return n == systems.L1 })
	head(b, "row", names)
	r.lines(func(row *RowResult, m Metric) {
		l1, okL1 := row.Cells[systems.L1].over(m)
		ya, okYa := row.Cells[systems.Yamux].over(m)
		if m.Quiet || !okL1 && !okYa {
			return
		}
		fmt.Fprintf(b, "| %s: %s |", row.Title, m.Name)
		for _, n := range names {
			s, ok := row.Cells[n].over(m)
			if !ok || n == systems.Direct && strings.Contains(m.Name, "CPU") {
				b.WriteString(" |")
				continue
			}
			y := ratio(s, ya, okYa)
			if v := s.median / ya.median; okYa && ya.median != 0 && n != systems.Yamux && (m.More && v >= 1 || !m.More && v <= 1) {
				y = "**" + y + "**"
			}
			fmt.Fprintf(b, " %s / %s |", ratio(s, l1, okL1), y)
		}
		b.WriteString("\n")
	})
}

func ratio(s, base spread, ok bool) string {
	if !ok || base.median == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", s.median/base.median)
}

// remarks tells what is missing and why.
func (r *Report) remarks(b *strings.Builder) {
	b.WriteString("\n")
	for _, row := range r.Rows {
		if row.NotRun != "" {
			fmt.Fprintf(b, "- %s: not run: %s\n", row.Name, row.NotRun)
		}
		for _, n := range r.Systems {
			if c := row.Cells[n]; c != nil && c.Failed != "" {
				fmt.Fprintf(b, "- %s, %s, after %d good rounds: %s\n", row.Name, n, len(c.Rounds), strings.ReplaceAll(c.Failed, "\n", "\n  "))
			}
		}
	}
}
