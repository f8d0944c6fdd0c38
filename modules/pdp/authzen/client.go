package authzen

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/authzen"
)

// client puts questions to one PDP.
type client struct {
	http    *http.Client
	where   locator
	dialect authzen.Dialect
	token   string // secret; empty without
	maxBody int64

	batchless batchless
	logger    *zap.Logger
}

func newClient(a *AuthZEN) (*client, error) {
	c := &client{maxBody: a.MaxResponseSize, logger: a.logger, dialect: authzen.Standard{}}
	if a.Dialect == dialectV1 {
		c.dialect = authzen.Original{Agent: a.AgentID, Audience: a.Audience}
	}
	configured, name := a.Endpoint, "endpoint"
	if a.Discover != "" {
		configured, name = a.Discover, "discover"
	}
	u, err := parseURL(configured, a.Insecure)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if a.Discover != "" {
		if u.RawQuery != "" {
			return nil, errors.New("discover: an identifier has no query")
		}
		d := newDiscovery(c, u, a.Insecure)
		d.noBatch = a.BatchEndpoint == off
		c.where = d
	} else {
		where := fixed{single: u.String()}
		if where.batch, err = batchURL(a, u); err != nil {
			return nil, fmt.Errorf("batch_endpoint: %w", err)
		}
		c.where = where
	}
	if a.BearerToken != "" {
		if c.token, err = resolveToken(a.BearerToken); err != nil {
			return nil, fmt.Errorf("bearer_token: %w", err)
		}
	}
	config, err := a.TLS.config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	c.http = newHTTP(config, a.MaxCalls)
	return c, nil
}

// engine is c as the guard should see it: one that surely takes no batches is
// asked one by one there, each question with a place and a time limit of its own.
func (c *client) engine() authz.Decider {
	if at, ok := c.where.(fixed); ok && at.batch == "" {
		return c
	}
	return batchClient{c}
}

// batchURL is where several questions at once go. It is empty when the dialect
// has none, when the configuration says so, or when nobody knows.
func batchURL(a *AuthZEN, single *url.URL) (string, error) {
	switch {
	case a.Dialect == dialectV1 || a.BatchEndpoint == off:
		return "", nil
	case a.BatchEndpoint == "":
		return besides(single), nil
	}
	u, err := parseURL(a.BatchEndpoint, a.Insecure)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

// errNoURL stands for url.Error, which repeats the URL with what it holds.
var errNoURL = errors.New("not a URL")

func parseURL(configured string, insecure bool) (*url.URL, error) {
	s, err := caddy.NewReplacer().ReplaceOrErr(configured, true, true)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errNoURL
	}
	return u, checkURL(u, insecure)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// resolveToken insists on a placeholder: a token that stands in the
// configuration is in the autosave and on /config for everybody to read. Its
// errors hold names and never a value.
func resolveToken(configured string) (string, error) {
	if !strings.HasPrefix(configured, "{file.") && !strings.HasPrefix(configured, "{env.") || !strings.HasSuffix(configured, "}") {
		return "", errors.New("must be a placeholder, {file.…} or {env.…}, so that the configuration does not show it")
	}
	token, err := caddy.NewReplacer().ReplaceOrErr(configured, true, true)
	if err != nil {
		return "", err
	}
	token = strings.TrimSpace(token)
	switch {
	case token == "":
		return "", fmt.Errorf("%s is empty", configured)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s has a character that cannot stand in an HTTP header", configured)
	}
	return token, nil
}

// config makes the client's side of TLS; t may be nil.
func (t *TLS) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return cfg, nil
	}
	cfg.ServerName = t.ServerName
	if len(t.CA) > 0 {
		cfg.RootCAs = x509.NewCertPool()
	}
	for _, file := range t.CA {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: no certificate in %s", file)
		}
	}
	if (t.ClientCertificate == "") != (t.ClientKey == "") {
		return nil, errors.New("a client certificate needs its key, and the key its certificate")
	}
	if t.ClientCertificate != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.ClientCertificate, t.ClientKey)
			return &cert, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

// newHTTP speaks HTTP/1.1 only: there a call that runs into its deadline takes
// its connection along, so that a dead one is gone after one call. One HTTP/2
// connection would carry all calls into the same void.
func newHTTP(config *tls.Config, calls int) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            new(net.Dialer).DialContext,
			TLSClientConfig:        config,
			Protocols:              &protocols,
			MaxIdleConns:           calls,
			MaxIdleConnsPerHost:    calls,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: 16 << 10,
			DisableCompression:     true, // what is small on the way stays small here
		},
		// A redirect would carry the question, and by some ways the token, to
		// somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// engineName is this module in decisions.
const engineName = "authzen"

// Decide implements authz.Decider: it is the engine behind the guard, which sets
// ctx's deadline.
func (c *client) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	at, err := c.where.locate(ctx)
	if err != nil {
		return failed(err)
	}
	question, err := c.dialect.Question(r)
	if err != nil {
		return authz.Fail(authz.KindRejected, fmt.Errorf("write the question: %w", err))
	}
	id, answered, body, err := c.post(ctx, at.single, question, c.maxBody)
	if err != nil {
		return failed(fmt.Errorf("ask the PDP (request %s): %w", id, err))
	}
	d, err := c.dialect.Answer(body)
	if err != nil {
		return authz.Fail(authz.KindDecode, fmt.Errorf("ask the PDP (request %s): %w", id, err))
	}
	d.Engine, d.ID = engineName, id
	if l := c.logger.Check(zap.DebugLevel, "asked the PDP"); l != nil {
		l.Write(zap.String("request_id", id), zap.String("answered_request_id", answered),
			zap.String("connector", r.Resource.ID), zap.String("subject", r.Subject.ID),
			zap.Stringer("decision", d.Outcome), zap.String("reason", d.Reason))
	}
	return d
}

// post asks under a new request id. It returns that id, the one in the answer,
// which the PDP may have left out or replaced, and the answer's body.
func (c *client) post(ctx context.Context, target string, question []byte, limit int64) (id, answered string, body []byte, err error) {
	id = rand.Text()
	header, body, err := c.do(ctx, call{method: http.MethodPost, target: target, body: question, limit: limit, header: http.Header{
		"Content-Type": {"application/json"},
		"X-Request-Id": {id},
		// Not sent, being empty; tells Transport that the question may be asked
		// again on a fresh connection when the PDP had closed the idle one.
		"Idempotency-Key": {},
	}})
	return id, authzen.Clean(header.Get("X-Request-Id")), body, err
}

// call is one request.
type call struct {
	method, target string
	header         http.Header
	body           []byte
	limit          int64 // bytes of the answer
}

// do sends one request and reads its answer, which must be a 200. Errors have
// their kind.
func (c *client) do(ctx context.Context, k call) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, k.method, k.target, bytes.NewReader(k.body))
	if err != nil {
		return nil, nil, &authz.Failure{Kind: authz.KindTransport, Err: err}
	}
	req.Header = k.header
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "nowconnect")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, whose query may hold a key
		}
		return nil, nil, &authz.Failure{Kind: kindOf(err), Err: err}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, k.limit+1))
	if resp.StatusCode != http.StatusOK {
		return nil, nil, c.refused(resp, answer)
	}
	switch {
	case err != nil:
		return nil, nil, &authz.Failure{Kind: kindOf(err), Err: fmt.Errorf("read the answer: %w", err)}
	case int64(len(answer)) > k.limit:
		return nil, nil, &authz.Failure{Kind: authz.KindDecode, Err: fmt.Errorf("the answer is larger than %d bytes", k.limit)}
	}
	return resp.Header, answer, nil
}

// refused makes an error of a status. 429 and 5xx say that the PDP cannot now;
// any other says that it will not.
func (c *client) refused(resp *http.Response, body []byte) error {
	kind := authz.KindRejected
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500 {
		kind = authz.KindUnavailable
	}
	text := string(body)
	if c.token != "" { // some servers repeat what they were sent
		text = strings.ReplaceAll(text, c.token, "[token]")
	}
	return &authz.Failure{Kind: kind, Err: &statusError{resp.StatusCode, authzen.Clean(text)}}
}

// statusError is an answer that is not a 200.
type statusError struct {
	status int
	text   string // the beginning of its body
}

func (e *statusError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("status %d", e.status)
	}
	return fmt.Sprintf("status %d: %s", e.status, e.text)
}

func kindOf(err error) authz.Kind {
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return authz.KindTimeout
	}
	return authz.KindTransport
}

// failed makes a decision of an error, of the kind of the Failure in it.
func failed(err error) authz.Decision {
	kind := authz.KindTransport
	if f, ok := errors.AsType[*authz.Failure](err); ok {
		kind = f.Kind
	}
	return authz.Fail(kind, err)
}
