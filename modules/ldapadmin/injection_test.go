package ldapadmin_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// hostile is a name that means harm, and how it is refused as a group, as a
// member in a path, and as a member in a body. %G and %P stand for where groups
// and people are.
type hostile struct {
	what, name            string
	group, member, inBody string // status and code
}

const (
	invalid   = "400 invalid"
	badPath   = "400 bad_path"
	badBody   = "400 bad_body"
	nobody    = "422 member_not_found"
	noGroup   = "404 group_not_found"
	elsewhere = "403 forbidden"
)

var injections = []hostile{
	// What would change a filter's or a DN's meaning, were it put in as text.
	{"filter: any", "uid=*,%P", elsewhere, nobody, nobody},
	{"filter: any group", "cn=*,%G", noGroup, elsewhere, elsewhere},
	{"filter: closes", "uid=u4)(objectClass=*,%P", elsewhere, nobody, nobody},
	{"filter: or", "uid=x)(|(uid=*,%P", elsewhere, nobody, nobody},
	{"filter: escaped", `uid=\2a,%P`, elsewhere, nobody, nobody},
	{"filter: closes, in a group", "cn=team)(member=*,%G", noGroup, elsewhere, elsewhere},
	{"filter: text", "(uid=u4)", invalid, invalid, invalid},
	{"DN: a comma that separates nothing", `uid=u4,ou=evil\,ou=people,dc=example,dc=org`, elsewhere, elsewhere, elsewhere},
	{"DN: the same as hex", `uid=u4,ou=evil\2cou=people,dc=example,dc=org`, elsewhere, elsewhere, elsewhere},
	{"DN: the base in a value", `uid=u4\2cou=people\2cdc=example\2cdc=org`, elsewhere, elsewhere, elsewhere},
	{"DN: the base beside another part", "uid=u4,ou=people+ou=admin,dc=example,dc=org", elsewhere, elsewhere, elsewhere},
	{"DN: a base that goes on", "uid=u4,%P,dc=evil", elsewhere, elsewhere, elsewhere},
	{"DN: ends in an escape", `uid=u4,%P\`, invalid, invalid, invalid},
	{"DN: an escape of a letter", `uid=\u4,%P`, invalid, invalid, invalid},
	{"DN: quoted", `uid="u4",%P`, invalid, invalid, invalid},
	{"DN: hexadecimal BER", "uid=#04027534,%P", invalid, invalid, invalid},
	{"DN: semicolons", "uid=u4;%P", invalid, invalid, invalid},
	{"DN: an attribute option", "uid;binary=u4,%P", invalid, invalid, invalid},
	{"DN: a range", "member;range=0-1,%P", invalid, invalid, invalid},
	{"DN: an empty part", "uid=u4,,%P", invalid, invalid, invalid},
	{"DN: an empty value", "uid=,%P", invalid, invalid, invalid},
	{"DN: none", "u4", invalid, invalid, invalid},
	{"DN: the root", " ", invalid, invalid, invalid},
	// Caddy's matchers take dots for what they would be, and so no user is found.
	{"DN: a path", "../../groups/cn=team", "401 unauthenticated", invalid, invalid},
	{"DN: a URL", "ldap://127.0.0.1/uid=u4,%P", invalid, invalid, invalid},
	{"a SID", "<SID=S-1-5-11>", invalid, invalid, invalid},
	{"a GUID", "<GUID=9160c6b5-8871-43b7-bf68-00b8e3eef400>", invalid, invalid, invalid},
	// What would begin a line of LDIF or of a log, or end a C string.
	{"LDIF: a further change", "uid=u4,%P\nchangetype: delete", invalid, invalid, invalid},
	{"LDIF: CR and LF", "uid=u4,%P\r\nmember: uid=u9,%P", invalid, invalid, invalid},
	{"LDIF: an escaped line break", `uid=u4\0amember: x,%P`, invalid, invalid, invalid},
	{"LDIF: base64", "uid:: dTQ=,%P", invalid, invalid, invalid},
	{"NUL", "uid=u4\x00,%P", invalid, invalid, invalid},
	{"NUL: at the end", "uid=u4,%P\x00", invalid, invalid, invalid},
	{"NUL: escaped", `uid=u4\00,%P`, invalid, invalid, invalid},
	{"control: a terminal's escape", "uid=u4\x1b[2J,%P", invalid, invalid, invalid},
	{"control: of Latin 1", "uid=u4\u0085,%P", invalid, invalid, invalid},
	// Encodings: a path is decoded once, a body's strings not at all.
	{"percent: twice", "uid%3Du4,%P", badPath, badPath, invalid},
	{"percent: a letter twice", "uid=u%34,%P", badPath, badPath, nobody},
	{"percent: three times", "uid=u%2534,%P", badPath, badPath, nobody},
	{"percent: NUL twice", "uid=u4%00,%P", badPath, badPath, nobody},
	{"percent: not quite", "uid=u4%0,%P", elsewhere, nobody, nobody},
	{"UTF-8: none", "uid=u4\xff,%P", badPath, badPath, badBody},
	{"UTF-8: a slash too long", "uid=u4\xc0\xaf,%P", badPath, badPath, badBody},
	{"UTF-8: a surrogate", "uid=u4\xed\xa0\x80,%P", badPath, badPath, badBody},
	{"UTF-8: none, escaped", `uid=u4\ff,%P`, invalid, invalid, invalid},
	// Characters that look alike, or like nothing, are other characters, unless
	// the directory says that they are not: see TestSpellingsAreToldByTheirName.
	{"Unicode: Cyrillic", "uid=\u0443" + "4,%P", elsewhere, nobody, nobody},
	{"Unicode: no width", "uid=u\u200b4,%P", elsewhere, nobody, nobody},
	{"Unicode: from right to left", "uid=u\u202e4,%P", elsewhere, nobody, nobody},
	{"Unicode: a fullwidth base", "uid=u4,ou=\uff50eople,dc=example,dc=org", elsewhere, elsewhere, elsewhere},
	{"Unicode: a fullwidth comma", "uid=u4\uff0c%P", elsewhere, elsewhere, elsewhere},
	{"Unicode: a fullwidth equals sign", "uid\uff1du4,%P", invalid, invalid, invalid},
	{"Unicode: the type", "u\u0456d=u4,%P", invalid, invalid, invalid},
	// Lengths.
	{"long: a name", "uid=" + strings.Repeat("u", 2048) + ",%P", invalid, invalid, invalid},
	{"long: parts", strings.Repeat("ou=x,", 500) + "%P", invalid, invalid, invalid},
	{"long: a segment", "uid=" + strings.Repeat("u", groupapi.MaxSegment) + ",%P", badPath, badPath, invalid},
}

// Names that would be commands, were they put together as text, are refused
// with an error that says which field was wrong, and change nothing. Whatever
// they hold, each request leaves one line in the audit.
func TestInjection(t *testing.T) {
	w := start(t, options{})
	before := w.dump()
	requests := 0
	for _, in := range injections {
		name := strings.NewReplacer("%G", w.d.GroupsDN, "%P", w.d.PeopleDN).Replace(in.name)
		t.Run(in.what, func(t *testing.T) {
			w := *w
			w.t = t
			for _, r := range in.requests(name, w.group("team")) {
				requests++
				r.off = true // the document bounds lengths, too
				w.refused(r)
			}
		})
	}
	w.unchanged(before)
	if n := len(w.logged("group membership request")); n != requests {
		t.Errorf("%d records in the audit of %d requests", n, requests)
	}
}

// attempt is a request, how it is refused, and the field that was wrong.
type attempt struct {
	request
	want, field string
}

// requests puts the name into each place that takes one.
func (in hostile) requests(name, group string) []attempt {
	quoted := quote(name)
	good := "uid=u4,ou=people,dc=example,dc=org"
	return []attempt{
		{request{method: "GET", path: path(name)}, in.group, "group"},
		{request{method: "PUT", path: path(name, good)}, in.group, "group"},
		{request{method: "PATCH", path: path(name), body: `{"add":["` + good + `"]}`}, in.group, "group"},
		{request{method: "PUT", path: path(group, name)}, in.member, "member"},
		{request{method: "PATCH", path: path(group), body: `{"add":[` + quoted + `]}`}, in.inBody, "member"},
		{request{method: "PATCH", path: path(group) + "?dry_run=true", body: `{"add":[` + quoted + `]}`}, in.inBody, "member"},
	}
}

// quote writes a string of JSON; what is not UTF-8 stays in it.
func quote(s string) string {
	if strings.ToValidUTF8(s, "") != s {
		return `"` + s + `"`
	}
	b, _ := json.Marshal(s)
	return string(b)
}

func (w *world) refused(a attempt) {
	w.t.Helper()
	r := w.do(a.request)
	var p groupapi.Problem
	err := json.Unmarshal([]byte(r.body), &p)
	if got := fmt.Sprintf("%d %s", r.status, p.Code); err != nil || got != a.want || r.header.Get("Content-Type") != groupapi.TypeProblem {
		w.t.Errorf("%s %.200s %.200s: %s %s, want %s", a.method, a.path, a.body, got, r.body, a.want)
		return
	}
	field := a.field
	switch p.Code {
	case "bad_body":
		field = "body"
	case "unauthenticated":
		field = "caller"
	}
	if !strings.Contains(p.Detail, field) || p.Title != http.StatusText(r.status) {
		w.t.Errorf("%s %.200s %.200s: the detail does not name the %s: %s", a.method, a.path, a.body, field, r.body)
	}
}

// In a group of user names the name goes into a filter.
func TestInjectionIntoFilters(t *testing.T) {
	w := start(t, options{})
	unix := w.group("unix")
	before := w.dump()
	for _, tt := range []struct{ user, want string }{
		{"*", nobody}, {"u*", nobody}, {"u1)(uid=*", invalid}, {"x)(|(uid=*))", invalid}, {"u1)(", nobody}, {`\2a`, nobody}, {`u\32`, nobody},
		{"u2&u3", nobody}, {"u2,u3", nobody}, {"u2\x00", invalid}, {"u2\nmemberUid: u3", invalid}, {" u2", invalid}, {"ü2", invalid},
		{"u\uff12", invalid}, {strings.Repeat("u", 300), invalid}, {"u%32", badPath},
	} {
		w.refused(attempt{request{method: "PUT", path: path(unix, tt.user)}, tt.want, "member"})
		if tt.want != nobody {
			w.refused(attempt{request{method: "DELETE", path: path(unix, tt.user)}, tt.want, "member"})
			w.refused(attempt{request{method: "GET", path: path(unix, tt.user)}, tt.want, "member"})
			continue
		}
		// Who is not there is no member, and stays none.
		if got := outcomes(w.do(request{method: "DELETE", path: path(unix, tt.user)}).answer(t, 200)); got[0] != "not_member false" {
			t.Errorf("%q: %q", tt.user, got)
		}
		if m := decode[groupapi.Membership](t, w.do(request{method: "GET", path: path(unix, tt.user)}), 200); m.IsMember {
			t.Errorf("%q is a member", tt.user)
		}
	}
	w.unchanged(before)
}

// What the directory itself takes for another way to write a name is told by
// the name that it keeps: OpenLDAP knows no width of letters, and no alias of a
// type that is not the type.
func TestSpellingsAreToldByTheirName(t *testing.T) {
	w := start(t, options{})
	for _, rdn := range []string{"uid=\uff554", "userid=u4", "0.9.2342.19200300.100.1.1=u4", `uid=\75\34`, "UID=U4"} {
		r := w.do(request{method: "PUT", path: path(w.group("team"), rdn+","+w.d.PeopleDN) + "?dry_run=true"})
		if a := r.answer(t, 200); a.Results[0].Canonical != w.d.UserDN(4) {
			t.Errorf("%s: %s", rdn, r.body)
		}
	}
}

func (w *world) unchanged(before []string) {
	w.t.Helper()
	after := w.dump()
	for _, line := range before {
		if !slices.Contains(after, line) {
			w.t.Errorf("gone: %s", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			w.t.Errorf("new: %s", line)
		}
	}
}

// dump is the whole directory, with the time of each entry's last change.
func (w *world) dump() []string {
	w.t.Helper()
	c, err := ldap.DialURL(w.d.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	res, err := c.Search(ldap.NewSearchRequest(w.d.BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 10, false,
		"(objectClass=*)", []string{"*", "+"}, nil))
	if err != nil {
		w.t.Fatal(err)
	}
	var lines []string
	for _, e := range res.Entries {
		for _, a := range e.Attributes {
			lines = append(lines, fmt.Sprintf("%s: %s: %q", e.DN, a.Name, a.Values))
		}
	}
	slices.Sort(lines)
	return lines
}
