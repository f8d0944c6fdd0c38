package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// groupRun is one run of a group command.
type groupRun struct {
	api      *groupapi.Client
	in       io.Reader
	out, err io.Writer
	json     bool
	progress bool // on err, which is a terminal
}

// members lists a group.
func (g *groupRun) members(ctx context.Context, group string) error {
	var all groupapi.Page
	all.Members = []string{}
	out := bufio.NewWriter(g.out)
	etag, err := g.api.All(ctx, group, func(p *groupapi.Page) {
		all.Group, all.Total = p.Group, p.Total
		if g.json {
			all.Members = append(all.Members, p.Members...)
		} else {
			for _, m := range p.Members {
				fmt.Fprintln(out, printable(m))
			}
		}
		all.NextCursor = p.NextCursor
		g.show("%s: %d members", group, all.Total)
	})
	g.done()
	if err != nil {
		return errors.Join(err, out.Flush())
	}
	if g.json {
		return g.encode(struct {
			groupapi.Page
			ETag string `json:"etag"`
		}{all, etag})
	}
	return out.Flush()
}

// batchSize is how many members go into one request. The hub sends as many to
// the directory at once.
const batchSize = 1000

// change adds or removes members, batch by batch. A batch that the service
// refuses as a whole ends it; what the earlier ones did is told all the same.
func (g *groupRun) change(ctx context.Context, group string, members []string, remove, dry bool) error {
	total := groupapi.Answer{Group: group, DryRun: dry, Results: []groupapi.Result{}}
	var failed error
	g.show("0 of %d members", len(members))
	for done := 0; done < len(members) && failed == nil; {
		batch := members[done:min(done+batchSize, len(members))]
		p := groupapi.Patch{Add: batch}
		if remove {
			p = groupapi.Patch{Remove: batch}
		}
		var a *groupapi.Answer
		a, failed = g.api.Patch(ctx, group, p, groupapi.WriteOptions{DryRun: dry})
		if failed == nil {
			total.Group = a.Group
			total.Results = append(total.Results, a.Results...)
		} else if p := new(groupapi.Problem); errors.As(failed, &p) {
			total.Results = append(total.Results, p.Results...)
		}
		done += len(batch)
		g.show("%d of %d members", done, len(members))
	}
	g.done()
	return g.report(&total, failed)
}

// sync makes members the whole set.
func (g *groupRun) sync(ctx context.Context, group string, members []string, dry, force bool) error {
	g.show("reading %s", group)
	_, etag, err := g.api.List(ctx, group, "", 1)
	if err != nil {
		g.done()
		return err
	}
	g.show("comparing %d members", len(members))
	a, err := g.api.Replace(ctx, group, groupapi.Replace{Members: members}, groupapi.WriteOptions{DryRun: dry, IfMatch: etag, Force: force})
	g.done()
	if err != nil {
		a = &groupapi.Answer{Group: group, DryRun: dry, Results: []groupapi.Result{}}
		if p := new(groupapi.Problem); errors.As(err, &p) {
			a.Results = append(a.Results, p.Results...)
		}
	}
	return g.report(a, err)
}

// report prints results, and says whether all is well.
func (g *groupRun) report(a *groupapi.Answer, failed error) error {
	if failed == nil || len(a.Results) > 0 {
		if err := g.print(a); err != nil {
			return err
		}
	}
	if failed != nil {
		return failed
	}
	for i := range a.Results {
		if !a.Results[i].Outcome.Good() {
			return errIncomplete
		}
	}
	return nil
}

func (g *groupRun) print(a *groupapi.Answer) error {
	if g.json {
		return g.encode(a)
	}
	w := tabwriter.NewWriter(g.out, 0, 8, 2, ' ', 0)
	counts, order := make(map[groupapi.Outcome]int), []groupapi.Outcome(nil)
	for i := range a.Results {
		r := &a.Results[i]
		if counts[r.Outcome]++; counts[r.Outcome] == 1 {
			order = append(order, r.Outcome)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Outcome, printable(r.Member), why(r))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var sums []string
	for _, o := range order {
		sums = append(sums, fmt.Sprintf("%d %s", counts[o], o))
	}
	if len(sums) == 0 {
		sums = []string{"nothing to do"}
	}
	suffix := ""
	if a.DryRun {
		suffix = " (dry run: nothing was written)"
	}
	_, err := fmt.Fprintf(g.out, "%s: %s%s\n", printable(a.Group), strings.Join(sums, ", "), suffix)
	return err
}

// why is the table's last column.
func why(r *groupapi.Result) string {
	var parts []string
	if r.Code != "" {
		parts = append(parts, r.Code)
	}
	if r.Changed == nil {
		parts = append(parts, "changed: not known")
	}
	if r.LDAP != nil && !r.Outcome.Good() {
		parts = append(parts, fmt.Sprintf("%d %s", r.LDAP.Code, r.LDAP.Name))
		if r.LDAP.Diagnostic != "" {
			parts = append(parts, r.LDAP.Diagnostic)
		}
	}
	return printable(strings.Join(parts, ", "))
}

// printable takes the control characters out of what a directory sent: a
// terminal would obey them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return '\ufffd'
		}
		return r
	}, s)
}

func (g *groupRun) encode(v any) error {
	e := json.NewEncoder(g.out)
	e.SetIndent("", "\t")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// show puts a line of progress in place of the one before.
func (g *groupRun) show(format string, args ...any) {
	if g.progress {
		fmt.Fprintf(g.err, "\r\x1b[K"+format, args...)
	}
}

// done clears it.
func (g *groupRun) done() {
	if g.progress {
		fmt.Fprint(g.err, "\r\x1b[K")
	}
}

// isTerminal reports whether somebody may be watching w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// membersOf collects the members of the command line and of the file.
func membersOf(stdin io.Reader, args []string, file string) ([]string, error) {
	members := args
	if file != "" {
		more, err := readMembers(stdin, file)
		if err != nil {
			return nil, err
		}
		members = append(members, more...)
	}
	if len(members) == 0 {
		return nil, errors.New("no members: name them, or give --file")
	}
	return members, nil
}

// maxMemberLine is more than any DN has.
const maxMemberLine = 64 << 10

func readMembers(stdin io.Reader, file string) ([]string, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	var members []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxMemberLine)
	for s.Scan() {
		line := strings.TrimSpace(strings.TrimPrefix(s.Text(), "\ufeff"))
		if line != "" && !strings.HasPrefix(line, "#") {
			members = append(members, line)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return members, nil
}
