//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/demodir"
	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// groupShell runs group commands as a user would.
type groupShell struct {
	t   *testing.T
	bin string
	env []string
}

// run returns what a command wrote, and checks its exit status.
func (g groupShell) run(status int, stdin string, args ...string) (stdout, stderr string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.bin, append([]string{"group"}, args...)...)
	cmd.Env = append(os.Environ(), g.env...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		g.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status {
		g.t.Errorf("group %q: exit status %d, want %d\n%s%s", args, got, status, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// tryGroupCommands uses the API of a running demo as its last lines say.
func tryGroupCommands(t *testing.T, bin, out string) {
	export := strings.Fields(mustMatch(t, out, `(?m)^  export (.*)$`))
	g := groupShell{t, bin, export}
	for _, m := range regexp.MustCompile(`(?m)^  nowconnect group (.*)$`).FindAllStringSubmatch(out, -1) {
		g.run(0, "", strings.Fields(m[1])...)
	}
	p, vpn := demodir.PersonDN, demodir.GroupDN("vpn-users")
	table := func(want string, status int, args ...string) {
		t.Helper()
		got, _ := g.run(status, "", args...)
		if got := strings.Join(strings.Fields(got), " "); got != want {
			t.Errorf("group %q:\n%s\nwant\n%s", args, got, want)
		}
	}
	table("would_add "+p("zoe")+" "+vpn+": 1 would_add (dry run: nothing was written)", 0, "add", vpn, p("zoe"), "--dry-run")
	table("added "+p("zoe")+" already_member "+p("ada")+" "+vpn+": 1 added, 1 already_member", 0, "add", vpn, p("zoe"), p("ada"))
	table("not_member "+p("alan")+" "+vpn+": 1 not_member", 0, "remove", vpn, p("alan"))
	table("removed "+p("zoe")+" failed uid=nobody,ou=x,ou=elsewhere forbidden "+vpn+": 1 removed, 1 failed", 5, "remove", vpn, p("zoe"), "uid=nobody,ou=x,ou=elsewhere")
	members, _ := g.run(0, "", "members", vpn)
	if want := demodir.Members("vpn-users"); strings.Count(members, "\n") != len(want) || !strings.Contains(members, p("hedy")+"\n") {
		t.Errorf("members: %s", members)
	}

	list, _ := g.run(0, "", "members", vpn, "--json")
	var page struct {
		groupapi.Page
		ETag string `json:"etag"`
	}
	if err := json.Unmarshal([]byte(list), &page); err != nil || page.Total != 4 || len(page.Members) != 4 || page.ETag == "" {
		t.Errorf("%v in %s", err, list)
	}
	// From a file, with remarks, and from standard input.
	file := filepath.Join(t.TempDir(), "members")
	if err := os.WriteFile(file, []byte("\ufeff# who\n\n  "+p("zoe")+"\r\n"+p("ada")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	table("added "+p("zoe")+" already_member "+p("ada")+" "+vpn+": 1 added, 1 already_member", 0, "add", vpn, "--file", file)
	got, _ := g.run(0, p("zoe")+"\n", "remove", vpn, "--file", "-", "--json")
	var a groupapi.Answer
	if err := json.Unmarshal([]byte(got), &a); err != nil || len(a.Results) != 1 || a.Results[0].Outcome != groupapi.Removed {
		t.Errorf("%v in %s", err, got)
	}
	trySync(t, g)
	tryFailures(t, g)
}

func trySync(t *testing.T, g groupShell) {
	p, analysts := demodir.PersonDN, demodir.GroupDN("analysts") // ada alan katherine
	want := p("ada") + "\n" + p("alan") + "\n" + p("katherine") + "\n" + p("zoe") + "\n"
	out, _ := g.run(0, want, "sync", analysts, "--file", "-", "--dry-run")
	if !strings.Contains(out, "would_add") || !strings.Contains(out, "nothing was written") {
		t.Errorf("%s", out)
	}
	out, _ = g.run(0, want, "sync", analysts, "--file", "-")
	if !strings.Contains(out, "1 added") {
		t.Errorf("%s", out)
	}
	if out, _ = g.run(0, want, "sync", analysts, "--file", "-"); !strings.Contains(out, "nothing to do") {
		t.Errorf("%s", out)
	}
	_, errs := g.run(3, p("ada")+"\n", "sync", analysts, "--file", "-")
	if !strings.Contains(errs, "removal_limit") {
		t.Errorf("%s", errs)
	}
	_, errs = g.run(3, "# nobody\n", "sync", analysts, "--file", "-")
	if !strings.Contains(errs, "empty_set") {
		t.Errorf("%s", errs)
	}
	out, _ = g.run(0, p("ada")+"\n", "sync", analysts, "--file", "-", "--force")
	if !strings.Contains(out, "3 removed") {
		t.Errorf("%s", out)
	}
	_, errs = g.run(3, p("ada")+"\n", "sync", demodir.GroupDN("engineers"), "--file", "-", "--force")
	if !strings.Contains(errs, "forbidden") {
		t.Errorf("%s", errs)
	}
}

func tryFailures(t *testing.T, g groupShell) {
	vpn := demodir.GroupDN("vpn-users")
	says := func(status int, want string, g groupShell, args ...string) {
		t.Helper()
		if _, errs := g.run(status, "", args...); !strings.Contains(errs, want) {
			t.Errorf("group %q: %q, want %q", args, errs, want)
		}
	}
	without := func(name string, more ...string) groupShell {
		env := slices.DeleteFunc(slices.Clone(g.env), func(s string) bool { return strings.HasPrefix(s, "NOWCONNECT_API_"+name+"=") })
		return groupShell{t, g.bin, append(env, more...)}
	}
	says(3, "group_not_found", g, "members", "cn=nobody,"+demodir.GroupsDN)
	says(3, "(400 invalid)", g, "members", "nonsense")
	says(1, "no API: give --url", without("URL"), "members", vpn)
	says(1, "accepts 1 arg(s)", g, "members")
	says(1, "--file is missing", g, "sync", vpn)
	says(1, "no members: name them", g, "add", vpn)
	says(1, "no such file", g, "add", vpn, "--file", "/nowhere")
	says(1, "a user without a password", without("PASSWORD_FILE"), "members", vpn)
	says(3, "401", without("PASSWORD_FILE", "NOWCONNECT_API_PASSWORD=wrong"), "members", vpn)
	says(1, "goes over https only", without("URL", "NOWCONNECT_API_URL=http://hub.example.com/ldap"), "members", vpn)
	says(1, "holds a credential", without("URL", "NOWCONNECT_API_URL=https://a:b-secret@hub.example.com/ldap"), "members", vpn)
	says(4, "certificate", without("CA"), "members", vpn, "--timeout", "1s")
	says(4, "", without("URL", "NOWCONNECT_API_URL=https://"+testpeer.Refuse(t)+"/ldap"), "members", vpn, "--timeout", "1s")
}

// The help says how a command is called, what it exits with, and where
// credentials come from.
func TestGroupHelp(t *testing.T) {
	g := groupShell{t: t, bin: testpeer.BuildBinary(t, "./cmd/nowconnect", false)}
	common := []string{"--url", "--user", "--password-file", "--token-file", "--cert", "--key", "--ca", "--timeout", "--json", "--quiet"}
	for command, flags := range map[string][]string{
		"members": nil, "add": {"--file", "--dry-run"}, "remove": {"--file", "--dry-run"}, "sync": {"--file", "--dry-run", "--force"},
	} {
		out, _ := g.run(0, "", command, "--help")
		for _, want := range append(append(flags, common...), "nowconnect group "+command+" <group>", "NOWCONNECT_API_URL", "Exit status:",
			"0  every member", "1  wrong usage", "3  the service refused", "4  the service or the directory", "5  some members") {
			if !strings.Contains(out, want) {
				t.Errorf("the help of %s does not tell %q:\n%s", command, want, out)
			}
		}
		if regexp.MustCompile(`--(password|token|secret) `).MatchString(out) {
			t.Errorf("the help of %s offers a flag for a secret", command)
		}
		for line := range strings.Lines(out) {
			if len(line) > 120 {
				t.Errorf("the help of %s has a long line: %s", command, line)
			}
		}
	}
}
