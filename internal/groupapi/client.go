package groupapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client talks to the API. It is safe for concurrent use.
type Client struct {
	base  string
	http  *http.Client
	auth  func(*http.Request) error
	tries int
	wait  func(ctx context.Context, d time.Duration) error
}

// Once makes the client send each request one time only and leave it to the
// caller to repeat it.
func (c *Client) Once() { c.tries = 1 }

// Bounds of the client.
const (
	maxAnswer  = 256 << 20        // bytes of one answer
	maxTries   = 6                // of one request
	maxPause   = 30 * time.Second // between two tries
	firstPause = 250 * time.Millisecond
)

// NewClient makes a client for the API below base, such as
// https://hub.example.com/ldap. auth, when not nil, adds the caller's
// credential to each request. The http.Client decides about TLS, proxies and
// time limits; it must not follow redirects, which would take the credential
// elsewhere.
func NewClient(base string, c *http.Client, auth func(*http.Request) error) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%q is not the URL of an API, such as https://hub.example.com/ldap", redact(base))
	}
	if u.User != nil {
		return nil, errors.New("the API's URL holds a credential: give it by file or environment")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the API's URL has a query or a fragment")
	}
	return &Client{base: strings.TrimSuffix(u.String(), "/"), http: c, auth: auth, tries: maxTries, wait: sleep}, nil
}

// redact takes out of a URL that cannot be used what may be a password.
func redact(base string) string {
	if _, rest, ok := strings.Cut(base, "@"); ok {
		return "…@" + rest
	}
	return base
}

// Error implements error: a Problem is what the client returns when the
// service refused a request.
func (p *Problem) Error() string {
	s := fmt.Sprintf("%s (%d %s)", p.Detail, p.Status, p.Code)
	if p.LDAPCode != nil {
		s += fmt.Sprintf("; the directory said %d %s", *p.LDAPCode, p.LDAPName)
		if p.Diagnostic != "" {
			s += ": " + p.Diagnostic
		}
	}
	if p.Instance != "" {
		s += "; " + p.Instance
	}
	return s
}

// WriteOptions are those of every write.
type WriteOptions struct {
	DryRun  bool
	IfMatch string
	Force   bool // Replace only
}

// List returns one page of the group's members and the ETag of all.
func (c *Client) List(ctx context.Context, group, cursor string, limit int) (*Page, string, error) {
	q := make(url.Values)
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	p := new(Page)
	h, err := c.do(ctx, &call{method: http.MethodGet, path: members(group), query: q, out: p})
	return p, h.Get("ETag"), err
}

// All calls page for each page of the group's members until there is none, and
// returns the ETag of all. A group that changes in between is an error.
func (c *Client) All(ctx context.Context, group string, page func(*Page)) (etag string, err error) {
	for cursor := ""; ; {
		p, tag, err := c.List(ctx, group, cursor, 0)
		if err != nil {
			return "", err
		}
		if etag != "" && tag != etag {
			return "", errors.New("the group changed while it was read")
		}
		etag = tag
		page(p)
		if cursor = p.NextCursor; cursor == "" {
			return etag, nil
		}
	}
}

// IsMember asks whether one entry is a member.
func (c *Client) IsMember(ctx context.Context, group, member string) (*Membership, error) {
	m := new(Membership)
	_, err := c.do(ctx, &call{method: http.MethodGet, path: members(group) + "/" + url.PathEscape(member), out: m})
	return m, err
}

// Add makes one entry a member.
func (c *Client) Add(ctx context.Context, group, member string, o WriteOptions) (*Answer, error) {
	return c.write(ctx, http.MethodPut, members(group)+"/"+url.PathEscape(member), nil, o)
}

// Remove makes one entry not a member.
func (c *Client) Remove(ctx context.Context, group, member string, o WriteOptions) (*Answer, error) {
	return c.write(ctx, http.MethodDelete, members(group)+"/"+url.PathEscape(member), nil, o)
}

// Patch adds and removes many.
func (c *Client) Patch(ctx context.Context, group string, p Patch, o WriteOptions) (*Answer, error) {
	return c.write(ctx, http.MethodPatch, members(group), p, o)
}

// Replace makes these the members and nobody else.
func (c *Client) Replace(ctx context.Context, group string, r Replace, o WriteOptions) (*Answer, error) {
	if r.Members == nil {
		r.Members = []string{}
	}
	return c.write(ctx, http.MethodPut, members(group), r, o)
}

func members(group string) string { return "/groups/" + url.PathEscape(group) + "/members" }

func (c *Client) write(ctx context.Context, method, path string, body any, o WriteOptions) (*Answer, error) {
	q, a := make(url.Values), new(Answer)
	if o.DryRun {
		q.Set("dry_run", "true")
	}
	if o.Force {
		q.Set("force", "true")
	}
	k := &call{method: method, path: path, query: q, ifMatch: o.IfMatch, key: rand.Text(), out: a}
	if body != nil {
		var err error
		if k.body, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
	}
	_, err := c.do(ctx, k)
	return a, err
}

// call is one request and where its answer goes.
type call struct {
	method, path string
	query        url.Values
	body         []byte
	ifMatch, key string
	out          any
}

// do sends a call until it is answered for good.
func (c *Client) do(ctx context.Context, k *call) (http.Header, error) {
	pause := firstPause
	for try := 1; ; try++ {
		h, err := c.once(ctx, k)
		if err == nil || try == c.tries || ctx.Err() != nil {
			return h, err
		}
		asked, again := retry(err)
		if !again {
			return h, err
		}
		if c.wait(ctx, max(min(asked, maxPause), pause)) != nil {
			return h, err
		}
		pause = min(2*pause, maxPause)
	}
}

// retry tells whether another try makes sense, and how soon. A request that was
// not answered may have been carried out; to repeat it is harmless.
func retry(err error) (time.Duration, bool) {
	var p *Problem
	var u *url.Error
	switch {
	case errors.As(err, &p):
		switch p.Status {
		case http.StatusConflict, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return p.RetryAfter, p.RetryAfter > 0
		}
		return 0, false
	case errors.As(err, &u), errors.Is(err, io.ErrUnexpectedEOF):
		return 0, true
	}
	return 0, false
}

// retryAfter reads the header; 0 when there is none that makes sense.
func retryAfter(h http.Header) time.Duration {
	s, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || s < 0 || s > 1<<20 {
		return 0
	}
	return time.Duration(s) * time.Second
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// once sends a call one time.
func (c *Client) once(ctx context.Context, k *call) (http.Header, error) {
	target := c.base + k.path
	if len(k.query) > 0 {
		target += "?" + k.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, k.method, target, bytes.NewReader(k.body))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("Accept", TypeJSON+", "+TypeProblem)
	for name, value := range map[string]string{"If-Match": k.ifMatch, HeaderIdempotencyKey: k.key} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	if k.body != nil {
		r.Header.Set("Content-Type", TypeJSON)
	}
	if c.auth != nil {
		if err := c.auth(r); err != nil {
			return nil, err
		}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return resp.Header, fmt.Errorf("read the answer: %w", err)
	case len(body) > maxAnswer:
		return resp.Header, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	return resp.Header, understand(resp, body, k.out)
}

// understand decodes an answer, or makes an error of it.
func understand(resp *http.Response, body []byte, out any) error {
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case mt == TypeProblem:
		p := new(Problem)
		if err := json.Unmarshal(body, p); err != nil || p.Status == 0 {
			return fmt.Errorf("the answer (%s) is a problem that makes no sense", resp.Status)
		}
		p.RetryAfter = retryAfter(resp.Header)
		return p
	case (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusMultiStatus) && mt == TypeJSON:
		if err := json.Unmarshal(body, out); err != nil {
			return fmt.Errorf("decode the answer: %w", err)
		}
		return nil
	}
	// Not from the API: from what stands in front of it, or from elsewhere.
	return &Problem{
		Type: "about:blank", Title: http.StatusText(resp.StatusCode), Status: max(resp.StatusCode, 1), Code: "not_from_api",
		Detail: "the answer is not one of this API", RetryAfter: retryAfter(resp.Header),
	}
}
