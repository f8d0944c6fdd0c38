package ldapadmin

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// asked is what a request wants, beyond its path and method.
type asked struct {
	key  string // Idempotency-Key; empty for none
	body []byte

	adds, removes []string // adds is the wanted set of a replace
	read          ldapgroup.ReadOptions
	change        ldapgroup.ChangeOptions
	replace       ldapgroup.ReplaceOptions
}

// dryRun reports whether nothing is to be written.
func (a *asked) dryRun() bool { return a.change.DryRun || a.replace.DryRun }

// read reads query, headers and body.
func (h *Handler) read(w http.ResponseWriter, q *request) (asked, *problem) {
	var a asked
	if err := a.readQuery(q.target.op, q.URL.RawQuery); err != nil {
		return a, newProblem(http.StatusBadRequest, codeBadQuery, "%v", err)
	}
	if err := a.readHeader(q.target.op, q.Header); err != nil {
		return a, newProblem(http.StatusBadRequest, codeBadHeader, "%v", err)
	}
	if prob := a.readBody(w, q, h); prob != nil {
		return a, prob
	}
	if q.target.op != opReplace || a.replace.Force {
		return a, nil
	}
	switch {
	case a.replace.IfMatch == "":
		return a, newProblem(http.StatusPreconditionRequired, codeNeedIfMatch,
			"replacing the whole set needs If-Match with the ETag of the set as it was read, or force=true")
	case len(a.adds) == 0:
		return a, newProblem(http.StatusConflict, codeEmptySet, "an empty set removes everybody and needs force=true")
	}
	return a, nil
}

// readQuery takes the parameters that the operation has. Unknown ones are
// refused: a misspelled dry_run must not write.
func (a *asked) readQuery(op operation, raw string) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return errors.New("the query is not percent-encoded")
	}
	for name, v := range values {
		if len(v) > 1 {
			return fmt.Errorf("%s is there more than once", name)
		}
		switch {
		case name == "cursor" && op == opList:
			a.read.Cursor = v[0]
		case name == "limit" && op == opList:
			if a.read.Limit, err = limit(v[0]); err != nil {
				return err
			}
		case name == "dry_run" && op.writes():
			if a.change.DryRun, err = boolean(name, v[0]); err != nil {
				return err
			}
			a.replace.DryRun = a.change.DryRun
		case name == "force" && op == opReplace:
			if a.replace.Force, err = boolean(name, v[0]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%q is no parameter of this operation", name)
		}
	}
	return nil
}

// maxLimit is the largest page.
const maxLimit = 10_000

func limit(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxLimit {
		return 0, fmt.Errorf("limit is not a number from 1 to %d", maxLimit)
	}
	return n, nil
}

func boolean(name, s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither true nor false", name)
}

func (a *asked) readHeader(op operation, header http.Header) error {
	if !op.writes() {
		return nil
	}
	var err error
	if a.key, err = idempotencyKey(header); err != nil {
		return err
	}
	tag, err := ifMatch(header)
	a.change.IfMatch, a.replace.IfMatch = tag, tag
	return err
}

// ifMatch reads the header. One strong tag is all that can be compared with.
func ifMatch(header http.Header) (string, error) {
	values := header.Values("If-Match")
	if len(values) == 0 {
		return "", nil
	}
	v := strings.TrimSpace(values[0])
	if len(values) > 1 || len(v) < 2 || len(v) > 256 || v[0] != '"' || strings.IndexByte(v[1:], '"') != len(v)-2 {
		return "", errors.New("If-Match is not one ETag in quotes")
	}
	return v, nil
}

// receive reads the body. Who sends it slowly holds one of the places, so the
// time is bounded; servers that cannot do so go by their own limits.
func (h *Handler) receive(w http.ResponseWriter, q *request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(time.Duration(h.Timeout)))
	body, err := io.ReadAll(http.MaxBytesReader(w, q.Body, h.MaxBody))
	if err == nil { // else the server must not wait for the rest of it
		_ = c.SetReadDeadline(time.Time{})
	}
	return body, err
}

func (a *asked) readBody(w http.ResponseWriter, q *request, h *Handler) *problem {
	body, err := h.receive(w, q)
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return newProblem(http.StatusRequestEntityTooLarge, codeTooLarge, "the body has more than %d bytes", h.MaxBody)
	}
	if err != nil {
		return newProblem(http.StatusBadRequest, codeBadBody, "the body cannot be read").because(err)
	}
	switch q.target.op {
	case opPatch, opReplace:
	default:
		if len(body) > 0 {
			return newProblem(http.StatusBadRequest, codeBadBody, "this operation takes no body")
		}
		a.single(q.target)
		return nil
	}
	if mt, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || mt != groupapi.TypeJSON {
		return newProblem(http.StatusUnsupportedMediaType, codeMediaType, "the body must be application/json").with("Accept", groupapi.TypeJSON)
	}
	a.body = body
	err = a.parse(q.target.op, body, h.MaxMembers)
	if errors.Is(err, groupapi.ErrTooMany) {
		return newProblem(http.StatusRequestEntityTooLarge, codeTooLarge, "the body names more than %d members", h.MaxMembers)
	}
	if err != nil {
		return newProblem(http.StatusBadRequest, codeBadBody, "%v", err)
	}
	return nil
}

// single takes the member of the path.
func (a *asked) single(t target) {
	switch t.op {
	case opAdd:
		a.adds = []string{t.member}
	case opRemove:
		a.removes = []string{t.member}
	}
}

func (a *asked) parse(op operation, body []byte, max int) error {
	fields := map[string]*[]string{"add": &a.adds, "remove": &a.removes}
	if op == opReplace {
		fields = map[string]*[]string{"members": &a.adds}
	}
	if err := groupapi.DecodeLists(body, fields, max); err != nil {
		return err
	}
	switch {
	case op == opReplace && a.adds == nil:
		return errors.New("the body has no list members")
	case op == opPatch && len(a.adds)+len(a.removes) == 0:
		return errors.New("the body names nobody to add or remove")
	}
	return nil
}
