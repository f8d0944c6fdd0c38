package ldapadmin

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if p := r.URL.EscapedPath(); p != h.PathPrefix && !strings.HasPrefix(p, h.PathPrefix+"/") {
		return next.ServeHTTP(w, r)
	}
	q := &request{Request: r, began: time.Now(), id: requestID(r)}
	h.admit(w, q).send(w)
	return nil
}

// request is one on its way through the handler. What becomes known of it is
// filled in step by step, for the audit record.
type request struct {
	*http.Request
	id    string
	began time.Time

	target   target
	asked    asked
	subject  subject
	verdicts []verdict
	group    string   // as the directory keeps it; empty until known
	counts   counts   // of outcomes
	listed   []record // the first members and what became of them
	replayed bool
}

// requestID is Caddy's id of the request, which its access log can show too.
func requestID(r *http.Request) string {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		id, _ := repl.GetString("http.request.uuid")
		return id
	}
	return ""
}

// admit finds out who calls and what for, and takes what serving it needs.
func (h *Handler) admit(w http.ResponseWriter, q *request) (resp *response) {
	defer func() {
		if p := recover(); p != nil {
			h.logger.Error("panic while serving a request", zap.Any("panic", p), zap.String("request", q.id), zap.ByteString("stack", debug.Stack()))
			resp = h.refuse(q, newProblem(http.StatusInternalServerError, codeInternal, "internal error"))
		}
	}()
	var prob *problem
	if q.subject.Entity, prob = h.caller(q.Request); prob != nil {
		return h.refuse(q, prob)
	}
	q.subject.ip = clientIP(q.Request)
	var err error
	if q.target, err = route(h.PathPrefix, q.Method, q.URL); err != nil {
		return h.refuse(q, routeProblem(err))
	}
	if q.target.op == opSpec {
		return specResponse(h.PathPrefix)
	}
	who := callerID{q.subject.Type, q.subject.ID}
	if !h.callers.enter(who, h.MaxRequestsPerCaller) {
		return h.refuse(q, newProblem(http.StatusServiceUnavailable, codeBusy, "max_requests_per_caller of this caller are being served").again())
	}
	defer h.callers.leave(who)
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
	default:
		return h.refuse(q, newProblem(http.StatusServiceUnavailable, codeBusy, "max_requests are being served").again())
	}
	if !h.backend.acquire() {
		return h.refuse(q, newProblem(http.StatusServiceUnavailable, codeStopping, "this configuration is stopping").again())
	}
	defer h.backend.release()
	resp, prob = h.serve(w, q)
	if prob != nil {
		return h.refuse(q, prob)
	}
	h.audit(q, resp.status, nil)
	return resp
}

// refuse makes the answer of a problem and records it.
func (h *Handler) refuse(q *request, p *problem) *response {
	if q.id != "" {
		p.Instance = "urn:uuid:" + q.id
	}
	h.audit(q, p.Status, p)
	return p.response()
}

func routeProblem(err error) *problem {
	var e *routeError
	if !errors.As(err, &e) {
		return newProblem(http.StatusInternalServerError, codeInternal, "internal error").because(err)
	}
	p := newProblem(e.status, e.code, "%s", e.detail)
	if e.allow != "" {
		p = p.with("Allow", e.allow)
	}
	return p
}

// serve reads what is asked, asks policy and carries it out.
func (h *Handler) serve(w http.ResponseWriter, q *request) (*response, *problem) {
	var prob *problem
	if q.asked, prob = h.read(w, q); prob != nil {
		return nil, prob
	}
	ctx, cancel := h.lifetime(q)
	defer cancel()
	if prob = h.authorize(ctx, q, q.target.group); prob != nil {
		return nil, prob
	}
	if q.asked.key == "" {
		return h.carryOut(ctx, q)
	}
	return h.once(ctx, q)
}

// lifetime bounds the request. A write goes on when its caller has gone: half
// of it may be done, and the caller's next try finds the answer kept.
func (h *Handler) lifetime(q *request) (context.Context, context.CancelFunc) {
	ctx := context.WithValue(q.Context(), requestKey{}, q.id)
	if q.target.op.writes() {
		ctx = context.WithoutCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(h.Timeout))
}

// requestKey is where the request's id is kept in the engine's contexts.
type requestKey struct{}

// once carries out a write with an Idempotency-Key, or answers as the first one
// with it was.
func (h *Handler) once(ctx context.Context, q *request) (*response, *problem) {
	var prob *problem
	key := keepKey{site(q.Request), q.subject.Type + "\x00" + q.subject.ID, q.asked.key}
	resp, replayed, err := h.keeper.do(ctx, key, digest(q.Request, q.asked.body), func() *response {
		var resp *response
		resp, prob = h.carryOut(ctx, q)
		return resp // nil with a problem: then it is not kept
	})
	switch {
	case errors.Is(err, errKeyReused):
		return nil, newProblem(http.StatusUnprocessableEntity, codeKeyReused, "the Idempotency-Key was used for another request")
	case err != nil:
		return nil, newProblem(http.StatusConflict, codeKeyInUse, "a request with the same Idempotency-Key is still being served").again()
	case prob != nil:
		return nil, prob
	}
	if q.replayed = replayed; replayed {
		resp = resp.copyWith("Idempotency-Replayed", "true")
	}
	return resp, nil
}

// site is where a request came in: a user of one site need not be the one who
// is called the same at another.
func site(r *http.Request) string {
	server := ""
	if s, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		server = s.Name()
	}
	return server + "\x00" + strings.ToLower(r.Host)
}

// copyWith returns a copy with one more header: kept answers are shared.
func (r *response) copyWith(name, value string) *response {
	c := &response{r.status, r.header.Clone(), r.body}
	c.header.Set(name, value)
	return c
}

// carryOut does what is asked.
func (h *Handler) carryOut(ctx context.Context, q *request) (*response, *problem) {
	if prob := h.resolve(ctx, q); prob != nil {
		return nil, prob
	}
	switch q.target.op {
	case opList:
		return h.list(ctx, q)
	case opTest:
		return h.test(ctx, q)
	case opReplace:
		return h.replace(ctx, q)
	default:
		return h.change(ctx, q)
	}
}

func (h *Handler) list(ctx context.Context, q *request) (*response, *problem) {
	page, err := h.backend.engine.Read(ctx, q.target.group, q.asked.read)
	if err != nil {
		return nil, engineProblem(err)
	}
	q.group = page.Canonical
	members := page.Members
	if members == nil {
		members = []string{}
	}
	resp := answer(http.StatusOK, groupapi.TypeJSON, groupapi.Page{
		Group: page.Canonical, Members: members, Total: page.Total, NextCursor: page.Next,
	})
	resp.header.Set("ETag", page.ETag)
	return resp, nil
}

func (h *Handler) test(ctx context.Context, q *request) (*response, *problem) {
	m, err := h.backend.engine.IsMember(ctx, q.target.group, q.target.member)
	if err != nil {
		return nil, engineProblem(err)
	}
	q.group = m.CanonicalGroup
	member := m.CanonicalMember
	if member == "" {
		member = q.target.member
	}
	if err := h.approve(q)(ctx, []string{m.Called}, nil); err != nil {
		return nil, engineProblem(err)
	}
	return answer(http.StatusOK, groupapi.TypeJSON, groupapi.Membership{
		Group: m.CanonicalGroup, Member: member, IsMember: m.IsMember,
	}), nil
}

func (h *Handler) change(ctx context.Context, q *request) (*response, *problem) {
	o := q.asked.change
	o.Approve = h.approve(q)
	res, err := h.backend.engine.Change(ctx, q.target.group, q.asked.adds, q.asked.removes, o)
	if err != nil {
		return nil, engineProblem(err)
	}
	return h.result(q, res)
}

func (h *Handler) replace(ctx context.Context, q *request) (*response, *problem) {
	o := q.asked.replace
	o.Approve = h.approve(q)
	res, err := h.backend.engine.Replace(ctx, q.target.group, q.asked.adds, o)
	if err != nil {
		return nil, engineProblem(err)
	}
	return h.result(q, res)
}
