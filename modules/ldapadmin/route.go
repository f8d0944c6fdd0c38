package ldapadmin

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// operation is what a request asks for.
type operation uint8

const (
	opSpec    operation = iota // GET /openapi.json
	opList                     // GET …/members
	opTest                     // GET …/members/{member}
	opAdd                      // PUT …/members/{member}
	opRemove                   // DELETE …/members/{member}
	opPatch                    // PATCH …/members
	opReplace                  // PUT …/members
)

// writes reports whether the operation can change the directory.
func (o operation) writes() bool { return o >= opAdd }

// target is a request's path and method, understood.
type target struct {
	op            operation
	group, member string // decoded once; not yet checked to be DNs
}

// routeError is a path or method that nothing answers to.
type routeError struct {
	status int
	code   string
	detail string
	allow  string // for 405
}

func (e *routeError) Error() string { return e.detail }

var errNoRoute = &routeError{status: http.StatusNotFound, code: codeNoRoute, detail: "no such resource; /openapi.json below this prefix lists them"}

// route understands a request. It works on the path as it was sent, because a
// DN may hold an encoded slash, and decodes each segment exactly once.
func route(prefix, method string, u *url.URL) (target, error) {
	rest, ok := strings.CutPrefix(u.EscapedPath(), prefix+"/")
	if !ok {
		return target{}, errNoRoute
	}
	segments := strings.Split(rest, "/")
	if len(segments) == 1 && segments[0] == "openapi.json" {
		return byMethod(target{}, method, map[string]operation{http.MethodGet: opSpec})
	}
	if len(segments) < 3 || len(segments) > 4 || segments[0] != "groups" || segments[2] != "members" {
		return target{}, errNoRoute
	}
	var t target
	var err error
	if t.group, err = groupapi.DecodeSegment(segments[1]); err != nil {
		return target{}, badSegment("group", err)
	}
	if len(segments) == 3 {
		return byMethod(t, method, map[string]operation{
			http.MethodGet: opList, http.MethodPut: opReplace, http.MethodPatch: opPatch,
		})
	}
	if t.member, err = groupapi.DecodeSegment(segments[3]); err != nil {
		return target{}, badSegment("member", err)
	}
	return byMethod(t, method, map[string]operation{
		http.MethodGet: opTest, http.MethodPut: opAdd, http.MethodDelete: opRemove,
	})
}

func byMethod(t target, method string, ops map[string]operation) (target, error) {
	if op, ok := ops[method]; ok {
		t.op = op
		return t, nil
	}
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if _, ok := ops[m]; ok {
			allow = append(allow, m)
		}
	}
	return target{}, &routeError{
		status: http.StatusMethodNotAllowed, code: codeMethod,
		detail: "this resource does not take that method", allow: strings.Join(allow, ", "),
	}
}

func badSegment(what string, err error) *routeError {
	return &routeError{status: http.StatusBadRequest, code: codeBadPath, detail: what + " in the path: " + err.Error()}
}
