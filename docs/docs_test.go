// Package docs holds no code, only the tests that keep these pages true.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nowconnect/nowconnect/internal/obs"
)

func readPage(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// table returns the rows of the table marked with this name: name, type,
// labels, meaning.
func table(t *testing.T, page, name string) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "<!-- checked: "+name+" -->\n")
	body, _, ok2 := strings.Cut(rest, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatalf("no table %q", name)
	}
	var rows [][]string
	for line := range strings.Lines(body) {
		var cells []string
		for _, c := range strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		rows = append(rows, cells)
	}
	return rows[2:]
}

// idle is a hub with one connector and one agent on which nothing happens.
type idle struct{}

func (idle) LiveState() obs.LiveState {
	return obs.LiveState{
		Connectors: []obs.ConnectorState{{Name: "addomain"}},
		Agents:     []obs.AgentState{{ID: "premise-1", Since: time.Now()}},
	}
}

func TestMetricsPage(t *testing.T) {
	page := readPage(t, "reference/metrics.md")
	hub := obs.New(obs.Options{})
	hub.Connector("addomain")
	hub.Agent("premise-1")
	hub.Membership("addomain")
	agent := obs.NewAgentMetrics()
	agent.Connector("addomain")
	agent.LinkUp(0, false)
	compareMetrics(t, page, "hub", hub.Collector(idle{}))
	compareMetrics(t, page, "agent", agent)
}

// The metrics of modules that have collectors of their own, with all of the
// repository's code to find them in.
func TestOtherMetricsOnThePage(t *testing.T) {
	onPage := map[string]bool{}
	for _, row := range table(t, readPage(t, "reference/metrics.md"), "others") {
		onPage[strings.Trim(row[0], "`")] = true
	}
	name := regexp.MustCompile(`\bName:\s+"(nowconnect_[a-z_]+)"`)
	for _, dir := range []string{"../internal", "../modules"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range name.FindAllStringSubmatch(string(b), -1) {
				if !onPage[m[1]] {
					t.Errorf("%s has %s, the page does not", path, m[1])
				}
				delete(onPage, m[1])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range onPage {
		t.Errorf("%s is on the page and nowhere else", n)
	}
}

func compareMetrics(t *testing.T, page, name string, c prometheus.Collector) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	// What is described but has no series would escape the comparison.
	if got, want := len(families), described(c); got != want {
		t.Errorf("%s: %d families have series, %d are described", name, got, want)
	}
	rows := map[string][]string{}
	for _, r := range table(t, page, name) {
		rows[strings.Trim(r[0], "`")] = r
	}
	_, reasons, _ := strings.Cut(page, "## Reasons")
	for _, f := range families {
		row := rows[f.GetName()]
		delete(rows, f.GetName())
		if row == nil {
			t.Errorf("%s is not on the page", f.GetName())
			continue
		}
		if want := strings.ToLower(f.GetType().String()); row[1] != want {
			t.Errorf("%s: the page says %s, it is a %s", f.GetName(), row[1], want)
		}
		labels, values := labelsOf(f)
		if got := strings.Join(labels, ", "); row[2] != got {
			t.Errorf("%s: the page has labels %s, it has %s", f.GetName(), row[2], got)
		}
		for v := range values {
			if !strings.Contains(row[3], "`"+v+"`") && !(strings.Contains(row[3], "below") || strings.Contains(row[2], "reason")) {
				t.Errorf("%s: the page does not tell label value %q", f.GetName(), v)
			} else if strings.Contains(row[2], "reason") && !strings.Contains(reasons, "`"+v+"`") {
				t.Errorf("%s: the page does not tell reason %q", f.GetName(), v)
			}
		}
	}
	for n := range rows {
		t.Errorf("%s is on the page and nowhere else", n)
	}
}

func described(c prometheus.Collector) int {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		c.Describe(ch)
	}()
	n := 0
	for range ch {
		n++
	}
	return n
}

// labelsOf returns a family's label names as the page writes them, and the
// values of those labels that are closed sets.
func labelsOf(f *dto.MetricFamily) (names []string, values map[string]bool) {
	values = map[string]bool{}
	for _, m := range f.GetMetric() {
		names = names[:0]
		for _, l := range m.GetLabel() {
			names = append(names, "`"+l.GetName()+"`")
			if !slices.Contains([]string{"connector", "agent", "link"}, l.GetName()) {
				values[l.GetValue()] = true
			}
		}
	}
	return names, values
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinks checks that the pages and the README link to files that exist.
func TestLinks(t *testing.T) {
	for _, p := range allPages(t) {
		for _, m := range link.FindAllStringSubmatch(readPage(t, p), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), target)); err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
			}
		}
	}
}
