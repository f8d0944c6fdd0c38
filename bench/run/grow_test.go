package run

import (
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/scale"
)

func TestGrowthTable(t *testing.T) {
	r := Report{Rows: []RowResult{{Name: "scale", Title: "many", Steps: []scale.Step{
		{Size: scale.At(10, 2), Figures: load.Result{scale.HubMB: 40, scale.ReloadMS: 10, scale.Dead: 0}},
		{Size: scale.At(100, 2), Figures: load.Result{scale.HubMB: 300, scale.Dead: 0}, Failed: "no reload"},
	}}}}
	var b strings.Builder
	if err := r.WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"10 %: 1800 sessions, 20 agents × 2 links, 100 connectors.",
		"| figure | 10 % | 100 % | × size 10: × cost |",
		"| hub RSS MB | 40 | 300 | 7.50 |",
		"| reload ms | 10 | – | |",
		"| dead of 200 | 0 | 0 | |",
		"- 100 %: failed: no reload",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if n := r.Failures(); n != 1 {
		t.Errorf("%d failures, want 1", n)
	}
}
