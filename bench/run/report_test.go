package run

import (
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/bench/load"
)

func TestTableTellsWhatIsMissing(t *testing.T) {
	rounds := func(v ...float64) *Cell {
		c := new(Cell)
		for _, x := range v {
			c.Rounds = append(c.Rounds, load.Result{"MB/s": x})
		}
		return c
	}
	r := Report{Systems: []string{"l1", "ours", "yamux"}, Rows: []RowResult{
		{
			Name: "down1", Title: "bulk", metrics: []Metric{{Name: "MB/s", More: true}},
			Cells: map[string]*Cell{"l1": rounds(400, 200, 300), "ours": rounds(330), "yamux": {Failed: "no agent"}},
		},
		{Name: "wan", Title: "WAN", NotRun: "needs root", metrics: []Metric{{Name: "MB/s"}}},
	}}
	if n := r.Failures(); n != 1 {
		t.Errorf("%d cells failed, want 1", n)
	}
	var b strings.Builder
	if err := r.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| bulk: MB/s | 300 (200–400) | 330 | failed |",
		"| bulk: MB/s | 1.10 / – | |",
		"- down1, yamux, after 0 good rounds: no agent",
		"- wan: not run: needs root",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestMemoryIsThatOfTheFirstRound(t *testing.T) {
	c := &Cell{Rounds: []load.Result{{"RSS": 35}, {"RSS": 9}, {"RSS": 2}}}
	if s, ok := c.over(Metric{Name: "RSS", First: true}); !ok || s != (spread{35, 2, 35}) {
		t.Errorf("%v %v", s, ok)
	}
	if s, ok := c.over(Metric{Name: "RSS"}); !ok || s.median != 9 {
		t.Errorf("%v %v", s, ok)
	}
}

func TestSelectKnowsRowsAndGroups(t *testing.T) {
	if rows, err := Select([]string{"down1", "wan"}); err != nil || len(rows) != 5 {
		t.Errorf("down1 and the group wan are %d rows and %v, want 5", len(rows), err)
	}
	if _, err := Select([]string{"dwn1"}); err == nil {
		t.Error("an unknown row was taken")
	}
	seen := map[string]bool{}
	for _, r := range Rows() {
		if seen[r.Name] {
			t.Errorf("row %s is there twice", r.Name)
		}
		seen[r.Name] = true
	}
}
