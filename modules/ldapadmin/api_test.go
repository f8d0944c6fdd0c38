package ldapadmin_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

func TestMembersOneByOne(t *testing.T) {
	w := start(t, options{})
	team, u4 := w.group("team"), w.d.UserDN(4)
	for _, step := range []struct {
		method string
		query  string
		want   string
		in     bool // afterwards
	}{
		{"PUT", "?dry_run=true", "would_add false", false},
		{"PUT", "", "added true", true},
		{"PUT", "", "already_member false", true},
		{"PUT", "?dry_run=true", "already_member false", true},
		{"DELETE", "?dry_run=true", "would_remove false", true},
		{"DELETE", "", "removed true", false},
		{"DELETE", "", "not_member false", false},
	} {
		r := w.do(request{method: step.method, path: path(team, u4) + step.query})
		a := r.answer(t, 200)
		if got := outcomes(a); !slices.Equal(got, []string{step.want}) || a.Group != team || a.Results[0].Member != u4 ||
			a.DryRun != (step.query != "") {
			t.Errorf("%s %s: %s", step.method, step.query, r.body)
		}
		if got := slices.Contains(w.members(team), u4); got != step.in {
			t.Errorf("%s %s: in the directory: %v", step.method, step.query, got)
		}
		m := decode[groupapi.Membership](t, w.do(request{method: "GET", path: path(team, u4)}), 200)
		if m.IsMember != step.in || m.Group != team || m.Member != u4 {
			t.Errorf("%s %s: %+v", step.method, step.query, m)
		}
	}
}

func TestMembersInOneRequest(t *testing.T) {
	w := start(t, options{})
	team := w.group("team")
	patch := func(add, remove []string) string {
		b, _ := json.Marshal(groupapi.Patch{Add: add, Remove: remove})
		return string(b)
	}
	u := w.d.UserDN
	r := w.do(request{method: "PATCH", path: path(team), body: patch([]string{u(4), u(1), strings.ToUpper(u(4))}, []string{u(2), u(9)})})
	if got, want := outcomes(r.answer(t, 200)), []string{"added true", "already_member false", "added true", "removed true", "not_member false"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := w.members(team), []string{u(1), u(3), u(4)}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("%q, want %q", got, want)
	}
	r = w.do(request{method: "PATCH", path: path(team), body: patch([]string{u(5), "uid=ghost," + w.d.PeopleDN, "no dn", "cn=svc," + w.d.BaseDN}, []string{u(4)})})
	want := []string{"added true", "failed false member_not_found", "failed false invalid", "failed false forbidden", "removed true"}
	if got := outcomes(r.answer(t, 207)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	p := w.do(request{method: "PATCH", path: path(team), body: patch([]string{u(4)}, []string{u(4)})}).problem(t, 400, "invalid")
	if p.Detail == "" {
		t.Errorf("%+v", p)
	}
}

func TestPagesAndReplace(t *testing.T) {
	w := start(t, options{})
	whole := w.group("whole")
	var all []string
	var etag string
	for cursor, pages := "", 0; ; pages++ {
		r := w.do(request{method: "GET", path: path(whole) + "?limit=2&cursor=" + cursor})
		p := decode[groupapi.Page](t, r, 200)
		if p.Total != 5 || p.Group != whole || etag != "" && r.header.Get("ETag") != etag {
			t.Errorf("%s %v", r.body, r.header)
		}
		etag = r.header.Get("ETag")
		all = append(all, p.Members...)
		if cursor = p.NextCursor; cursor == "" {
			if pages != 2 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if got := w.members(whole); !slices.Equal(slices.Sorted(slices.Values(all)), slices.Sorted(slices.Values(got))) {
		t.Errorf("pages have %q, the directory %q", all, got)
	}
	replace := func(query, match string, members ...string) reply {
		b, _ := json.Marshal(groupapi.Replace{Members: append([]string{}, members...)})
		r := request{method: "PUT", path: path(whole) + query, body: string(b)}
		if match != "" {
			r.header = []string{"If-Match", match}
		}
		return w.do(r)
	}
	u := w.d.UserDN
	replace("", "", u(1)).problem(t, 428, "if_match_required")
	replace("", `"other"`, u(1), u(2), u(3), u(4), u(6)).problem(t, 412, "precondition")
	replace("", etag).problem(t, 409, "empty_set")
	replace("", etag, u(1)).problem(t, 409, "removal_limit")
	if got := outcomes(replace("?dry_run=true", etag, u(1), u(2), u(3), u(6)).answer(t, 200)); !slices.Equal(got, []string{"would_add false", "would_remove false", "would_remove false"}) {
		t.Errorf("dry run: %q", got)
	}
	r := replace("", etag, u(1), u(2), u(3), u(6))
	if got := outcomes(r.answer(t, 200)); !slices.Equal(got, []string{"added true", "removed true", "removed true"}) {
		t.Errorf("%q", got)
	}
	if now := w.do(request{method: "GET", path: path(whole)}).header.Get("ETag"); now != r.header.Get("ETag") || now == etag {
		t.Errorf("ETag %s after a replace that said %s, %s before", now, r.header.Get("ETag"), etag)
	}
	replace("", etag, u(1), u(2), u(3), u(6)).problem(t, 412, "precondition")
	if got := outcomes(replace("?force=true", "", u(7)).answer(t, 200)); len(got) != 5 {
		t.Errorf("by force: %q", got)
	}
	if got := w.members(whole); !slices.Equal(got, []string{u(7)}) {
		t.Errorf("%q", got)
	}
	// The other groups do not allow it.
	b, _ := json.Marshal(groupapi.Replace{Members: []string{u(1)}})
	w.do(request{method: "PUT", path: path(w.group("team")) + "?force=true", body: string(b)}).problem(t, 403, "forbidden")
	// If-Match is for the other writes too.
	w.do(request{method: "PUT", path: path(whole, u(1)), header: []string{"If-Match", etag}}).problem(t, 412, "precondition")
}
