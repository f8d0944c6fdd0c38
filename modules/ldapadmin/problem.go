package ldapadmin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// The codes of problems that arise here; those of the engine are its classes.
// Together they are a closed set, which the OpenAPI document lists.
const (
	codeNoRoute         = "no_such_resource"
	codeMethod          = "method_not_allowed"
	codeBadPath         = "bad_path"
	codeBadQuery        = "bad_query"
	codeBadHeader       = "bad_header"
	codeBadBody         = "bad_body"
	codeMediaType       = "media_type"
	codeTooLarge        = "too_large"
	codeUnauthenticated = "unauthenticated"
	codePolicyDenied    = "policy_denied"
	codePolicyError     = "policy_unavailable"
	codeEmptySet        = "empty_set"
	codeNeedIfMatch     = "if_match_required"
	codeKeyReused       = "idempotency_key_reused"
	codeKeyInUse        = "idempotency_key_in_use"
	codeBusy            = "busy"
	codeStopping        = "stopping"
	codeUnknown         = "unknown"
	codeInternal        = "internal"
)

// problem is an error with its HTTP answer.
type problem struct {
	groupapi.Problem
	header http.Header // further headers; may be nil
	cause  error       // for the log only
}

func (p *problem) Error() string { return p.Code + ": " + p.Detail }

// Unwrap returns the cause.
func (p *problem) Unwrap() error { return p.cause }

// newProblem makes one. The detail goes to the caller.
func newProblem(status int, code, format string, args ...any) *problem {
	return &problem{Problem: groupapi.Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...),
	}}
}

func (p *problem) because(err error) *problem {
	p.cause = err
	return p
}

// What a caller waits before it tries again, in seconds.
const (
	retryAfter = 2  // links to agents and connections to directories come back within it
	retryFault = 60 // our own fault (500) is mended by people
)

// with adds a header.
func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header)
	}
	p.header.Set(name, value)
	return p
}

// again tells the caller to come back.
func (p *problem) again() *problem { return p.with("Retry-After", strconv.Itoa(retryAfter)) }

// response is an answer ready to be sent, or to be kept for the next request
// with the same Idempotency-Key.
type response struct {
	status int
	header http.Header
	body   []byte
}

// answer makes a response of a value.
func answer(status int, mediaType string, v any) *response {
	body, err := json.Marshal(v)
	if err != nil { // cannot happen with our shapes
		return newProblem(http.StatusInternalServerError, codeInternal, "the answer cannot be encoded").because(err).response()
	}
	return &response{status: status, header: http.Header{"Content-Type": {mediaType}}, body: append(body, '\n')}
}

// response makes the answer. No 5xx goes without Retry-After.
func (p *problem) response() *response {
	if p.Status >= http.StatusInternalServerError && p.header.Get("Retry-After") == "" {
		_ = p.with("Retry-After", strconv.Itoa(retryFault))
	}
	r := answer(p.Status, groupapi.TypeProblem, p.Problem)
	for name, values := range p.header {
		r.header[name] = values
	}
	return r
}

// send writes it. HEAD never comes here: it is no method of this API.
func (r *response) send(w http.ResponseWriter) {
	for name, values := range r.header {
		w.Header()[name] = slices.Clone(values) // kept answers are shared
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(r.body)))
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body) // the caller may be gone
}
