package ldapadmin

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

const encodedGroup = "cn=a%2Fb%5C%2Cc,ou=Z%C3%BCrich,dc=example"

func TestRoute(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		want         target
	}{
		{"GET", "/ldap/openapi.json", target{op: opSpec}},
		{"GET", "/ldap/groups/" + encodedGroup + "/members", target{op: opList, group: `cn=a/b\,c,ou=Zürich,dc=example`}},
		{"PATCH", "/ldap/groups/cn=g/members?dry_run=true", target{op: opPatch, group: "cn=g"}},
		{"PUT", "/ldap/groups/cn=g/members", target{op: opReplace, group: "cn=g"}},
		{"GET", "/ldap/groups/cn=g/members/uid=u", target{op: opTest, group: "cn=g", member: "uid=u"}},
		{"PUT", "/ldap/groups/cn=g/members/uid=u%20v+x", target{op: opAdd, group: "cn=g", member: "uid=u v+x"}},
		{"DELETE", "/ldap/groups/cn=g%3Bh/members/%3CSID=S-1%3E", target{op: opRemove, group: "cn=g;h", member: "<SID=S-1>"}},
		{"GET", "/ldap/groups/cn=100%25/members", target{op: opList, group: "cn=100%"}},
		{"GET", "/ldap/groups/..%2F..%2Fetc/members", target{op: opList, group: "../../etc"}}, // no DN, and refused as such
	} {
		u, err := url.Parse(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := route("/ldap", tt.method, u); err != nil || got != tt.want {
			t.Errorf("%s %s: %+v, %v", tt.method, tt.path, got, err)
		}
	}
}

func TestRouteRefuses(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/ldap", 404}, {"GET", "/ldap/", 404}, {"GET", "/ldap/groups", 404}, {"GET", "/ldap/groups/cn=g", 404},
		{"GET", "/ldap/groups/cn=g/members/", 400}, {"GET", "/ldap/groups/cn=g/members/uid=u/", 404},
		{"GET", "/ldap/groups//members", 400}, {"GET", "/ldap//groups/cn=g/members", 404},
		{"GET", "/ldap/groups/cn=a/b/members", 404}, // a slash that was not encoded
		{"GET", "/ldap/groups/cn=g/member", 404}, {"GET", "/ldap/Groups/cn=g/members", 404},
		{"GET", "/ldap/group%73/cn=g/members", 404}, // our own words are not decoded
		{"GET", "/ldap/groups/cn=g%252Cou=x/members", 400}, {"GET", "/ldap/groups/%2525/members", 400},
		{"GET", "/ldap/groups/cn=%FF/members", 400}, {"GET", "/ldap/groups/" + strings.Repeat("a", groupapi.MaxSegment+1) + "/members", 400},
		{"POST", "/ldap/groups/cn=g/members", 405}, {"DELETE", "/ldap/groups/cn=g/members", 405},
		{"PATCH", "/ldap/groups/cn=g/members/uid=u", 405}, {"HEAD", "/ldap/groups/cn=g/members", 405},
		{"get", "/ldap/groups/cn=g/members", 405}, {"PUT", "/ldap/openapi.json", 405},
	} {
		u, err := url.Parse(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = route("/ldap", tt.method, u)
		var e *routeError
		if !errors.As(err, &e) || e.status != tt.status {
			t.Errorf("%s %s: %v, want status %d", tt.method, tt.path, err, tt.status)
			continue
		}
		if (e.status == http.StatusMethodNotAllowed) != (e.allow != "") {
			t.Errorf("%s %s: allow is %q", tt.method, tt.path, e.allow)
		}
	}
}
