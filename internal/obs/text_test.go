package obs

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// busy has something in every kind of series, numbers that are hard to write
// among them.
func busy(o Options) (*Metrics, *fakeLive) {
	m := New(o)
	for _, name := range []string{"addomain", "other"} {
		c := m.Connector(name)
		c.Accepted()
		for i := range 3000 {
			frame(c, i)
			c.PDP(authz.Allow, i%2 == 0, time.Duration(i*i))
			c.OpenTime(time.Duration(i*i*i) * time.Nanosecond)
		}
		c.Duration(1e6 * time.Second)
		c.FrameSent(math.MaxInt32)
	}
	m.Agent("premise-1").RTT(40 * time.Millisecond)
	m.Membership(`ldaps://"odd"\host`+"\n").Batch(true, 16, time.Second)
	return m, &fakeLive{state: LiveState{
		Connectors: []ConnectorState{
			{Name: "other", QueueBound: 256},
			{Name: "addomain", ActiveSessions: 1e7, QueueFrames: 17, QueueBound: 256, AgentsConnected: 2},
		},
		Agents: []AgentState{{ID: "premise-2"}, {ID: "premise-1"}},
	}}
}

// The text is what the encoders make of Gather's answer, as far as a reader can
// tell: the order of families, of series and of labels means nothing.
func TestTextSaysWhatGatherSays(t *testing.T) {
	for _, o := range []Options{{}, {NativeHistograms: true}} {
		m, live := busy(o)
		for _, om := range []bool{false, true} {
			var got, want bytes.Buffer
			if err := m.WriteText(&got, live, om); err != nil {
				t.Fatal(err)
			}
			format := expfmt.NewFormat(expfmt.TypeTextPlain)
			if om {
				format = expfmt.NewFormat(expfmt.TypeOpenMetrics)
			}
			enc := expfmt.NewEncoder(&want, format)
			fs, err := register(t, m.Collector(live)).Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fs {
				if err := enc.Encode(f); err != nil {
					t.Fatal(err)
				}
			}
			g, w := families(t, got.String()), families(t, want.String())
			if len(w) == 0 {
				t.Fatal("the encoder wrote no family")
			}
			for name, lines := range w {
				if !slices.Equal(g[name], lines) {
					t.Errorf("native %v, OpenMetrics %v: %s is\n%s\nwant\n%s", o.NativeHistograms, om, name,
						strings.Join(g[name], "\n"), strings.Join(lines, "\n"))
				}
				delete(g, name)
			}
			for name := range g {
				t.Errorf("%s is in the text alone", name)
			}
		}
	}
}

// families sorts a text's lines under the names of their families, each line
// with its labels in order and its number in one way of many.
func families(t *testing.T, s string) map[string][]string {
	t.Helper()
	out := make(map[string][]string)
	var name string
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if help, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, _, _ = strings.Cut(help, " ")
			if out[name] != nil {
				t.Errorf("%s is there in two parts", name)
			}
		}
		if !strings.HasPrefix(line, "#") {
			head, rest, _ := strings.Cut(line, "{")
			if !strings.HasPrefix(head, name) {
				t.Errorf("%s is among the lines of %s", head, name)
			}
			i := strings.LastIndex(rest, "} ")
			labels := strings.Split(rest[:i], ",")
			slices.Sort(labels)
			line = head + "{" + strings.Join(labels, ",") + "} " + plain(t, rest[i+2:])
		}
		out[name] = append(out[name], line)
	}
	for _, lines := range out {
		slices.Sort(lines[2:]) // behind HELP and TYPE
	}
	return out
}

func plain(t *testing.T, number string) string {
	t.Helper()
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		t.Error(err)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func TestRestIsEverythingElse(t *testing.T) {
	m, live := busy(Options{})
	r := register(t, m.Collector(live))
	foreign := prometheus.NewCounter(prometheus.CounterOpts{Name: "foreign_total", Help: "Somebody else's."})
	if err := r.Register(foreign); err != nil {
		t.Fatal(err)
	}
	all := len(gather(t, r))
	rest := m.Rest(r)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Whoever gathers meanwhile gets all.
		for range 50 {
			if fs, err := r.Gather(); err != nil || len(fs) != all {
				t.Errorf("%d families, want %d (%v)", len(fs), all, err)
			}
		}
	}()
	for range 50 {
		fs, err := rest.Gather()
		if err != nil || len(fs) != 1 || fs[0].GetName() != "foreign_total" {
			t.Fatalf("the rest is %v (%v)", fs, err)
		}
	}
	<-done
}

// Each connector adds the same to a scrape's text and to its work: nothing is
// looked for in a list. Work is counted in allocations, which no other load on
// the machine changes.
func TestScrapeGrowsWithConnectorsAlone(t *testing.T) {
	cost := func(n int) (size int, allocs float64) {
		m, live := sized(n)
		allocs = testing.AllocsPerRun(5, func() {
			var w counting
			if err := m.WriteText(&w, live, false); err != nil {
				t.Fatal(err)
			}
			size = w.n
		})
		return size, allocs
	}
	s100, a100 := cost(100)
	s1000, a1000 := cost(1000)
	if s1000 > 10*s100 {
		t.Errorf("%d bytes for 100 connectors and %d for 1000", s100, s1000)
	}
	if perConnector := (a1000 - a100) / 900; perConnector > 1 {
		t.Errorf("%.0f allocations for 100 connectors, %.0f for 1000: %.1f for each", a100, a1000, perConnector)
	}
	if limit := 20_000; s1000/1000 > limit {
		t.Errorf("%d bytes per connector, more than %d", s1000/1000, limit)
	}
}

type counting struct{ n int }

func (c *counting) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// sized has n connectors and a fifth as many agents.
func sized(n int) (*Metrics, *fakeLive) {
	m, live := New(Options{}), new(fakeLive)
	for i := range n {
		name := fmt.Sprintf("connector-%04d", i)
		m.Connector(name)
		live.state.Connectors = append(live.state.Connectors, ConnectorState{Name: name, QueueBound: 256, AgentsConnected: 1})
		if i%5 == 0 {
			m.Agent(name)
			live.state.Agents = append(live.state.Agents, AgentState{ID: name, Links: 2, Since: time.Now()})
		}
	}
	return m, live
}

func BenchmarkScrape(b *testing.B) {
	m, live := sized(1000)
	b.ReportAllocs()
	for b.Loop() {
		var w counting
		if err := m.WriteText(&w, live, false); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(w.n))
	}
}
