package agent

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestManualNamesEverySetting compares the table of docs/agent.md with the
// table of settings, both ways.
func TestManualNamesEverySetting(t *testing.T) {
	page, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "<!-- checked: settings -->")
	table, _, ok2 := strings.Cut(table, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatal("no table of settings")
	}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		cells := strings.Split(line, "|")
		if len(cells) != 7 || strings.TrimSpace(cells[5]) == "" {
			t.Fatalf("not a row: %s", line)
		}
		row := strings.NewReplacer("`", "", " ", "").Replace(strings.Join(cells[1:4], "|"))
		if !strings.HasPrefix(row, "targets.<") {
			got = append(got, row)
		}
	}
	var want []string
	for _, s := range settings {
		f := s.flag
		if f != "" {
			f = "-" + f
		}
		want = append(want, s.key+"|"+s.env+"|"+f)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the manual has\n%s\nand the agent\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	RegisterFlags(fs)
	fs.VisitAll(func(f *flag.Flag) {
		if !strings.Contains(string(page), "`-"+f.Name+"`") && !strings.Contains(string(page), "`-"+f.Name+" ") {
			t.Errorf("the manual lacks the flag -%s", f.Name)
		}
	})
}

// TestExampleFile: what people copy must load, without a warning.
func TestExampleFile(t *testing.T) {
	c, err := Load("../../examples/agent/agent.yaml", nil, nil)
	if err != nil || len(c.Warnings) > 0 {
		t.Errorf("%v, %q", err, c.Warnings)
	}
	// What is commented out claims to be a default: both must load the same.
	b, err := os.ReadFile("../../examples/agent/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "  # "); ok && strings.Contains(rest, ": ") && rest[0] >= 'a' && rest[0] <= 'z' {
			line = "  " + rest
		}
		all.WriteString(line)
	}
	path := t.TempDir() + "/agent.yaml"
	if err := os.WriteFile(path, []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	full, err := Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if full.Links != c.Links || full.PingTimeout != c.PingTimeout || full.Memory != c.Memory || full.LogLevel != c.LogLevel ||
		full.Carrier != c.Carrier || full.ConnectTimeout != c.ConnectTimeout || full.MaxSessions != c.MaxSessions || full.LogFormat != c.LogFormat {
		t.Errorf("commented values are not the defaults:\n%+v\n%+v", c, full)
	}
}
