// Package authzen is the module "nowconnect.pdp.authzen": a policy decision
// point on the network, asked in the form of the OpenID Authorization API 1.0.
//
// Invariants:
//
//   - Only an answer 200 with a boolean decision is an answer. Everything else
//     is an error, which is neither an allow nor a deny nor kept.
//   - The bearer token is in requests to the PDP and nowhere else: not in the
//     configuration, not in an error, not in the log. Redirects are not followed.
//   - A permit with an obligation that the hub cannot fulfil is a denial.
//   - No call outlives the timeout, and no answer is read past the size limit.
package authzen

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&AuthZEN{})
}

// AuthZEN asks a policy decision point over HTTPS about each connection. It
// remembers answers for a short time, asks once when many clients wait for the
// same answer, and leaves a PDP that fails five times in a row alone for a
// second at a time. It refuses connections when the PDP gives no answer.
type AuthZEN struct {
	// Endpoint is the URL that questions are posted to, such as
	// `https://pdp.example.com/access/v1/evaluation`. Placeholders are resolved
	// when the configuration is loaded. Either this or Discover is required.
	Endpoint string `json:"endpoint,omitempty"`

	// Discover is the PDP's identifier, such as `https://pdp.example.com`, whose
	// metadata under /.well-known/authzen-configuration tells the endpoint. It
	// is read when the first question is asked, and again after an hour. The
	// metadata must name this very identifier.
	Discover string `json:"discover,omitempty"`

	// BatchEndpoint is the URL that several questions at once are posted to,
	// when live sessions are judged again, or `off` to ask one by one. Default:
	// what Discover tells; for an Endpoint whose path ends in
	// /access/v1/evaluation, the same with /access/v1/evaluations; else none. A
	// PDP that answers 404, 405 or 501 there is asked one by one for an hour.
	BatchEndpoint string `json:"batch_endpoint,omitempty"`

	// Dialect is `authzen` (default) or `nowconnect-v1`, the form of the first
	// NowConnect, for a PDP that was written for it.
	Dialect string `json:"dialect,omitempty"`

	// AgentID is the subject of questions in the dialect nowconnect-v1, where the
	// PDP judges the agent and learns nothing about the client. Default: the
	// agent that would serve the connection.
	AgentID string `json:"agent_id,omitempty"`

	// Audience is the member `aud` of questions in the dialect nowconnect-v1.
	// Default: not sent.
	Audience string `json:"audience,omitempty"`

	// Timeout bounds a question with everything in it: waiting, connecting, TLS,
	// the answer. Clients wait as long. Default: 500ms.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// CacheTTL is how long an allow is remembered; a permit that the PDP takes
	// back is given for as long as that to whoever connects. A negative value
	// remembers none. Default: 5s.
	CacheTTL caddy.Duration `json:"cache_ttl,omitempty"`

	// DenyTTL is the same for a denial. Default: 2s.
	DenyTTL caddy.Duration `json:"deny_ttl,omitempty"`

	// CacheSize is how many answers are remembered. Default: 10000.
	CacheSize int `json:"cache_size,omitempty"`

	// MaxCalls is how many questions are on their way at one time; further ones
	// wait, at most for the timeout. Default: 64.
	MaxCalls int `json:"max_calls,omitempty"`

	// OnError is `deny` (default) or `allow`. With `allow`, whoever can disturb
	// the PDP or the way to it opens every door.
	OnError string `json:"on_error,omitempty"`

	// BearerToken is sent to the PDP with each question. It is a placeholder
	// such as `{file./etc/nowconnect/pdp.token}` or `{env.PDP_TOKEN}`, resolved
	// when the configuration is loaded; anything else does not load. Default:
	// none.
	BearerToken string `json:"bearer_token,omitempty"`

	// TLS says whom to trust and what to show. Default: the system's
	// authorities, and no client certificate.
	TLS *TLS `json:"tls,omitempty"`

	// MaxResponseSize bounds an answer, in bytes. A larger one is an error.
	// Default: 65536.
	MaxResponseSize int64 `json:"max_response_size,omitempty"`

	// Insecure allows http:// to other hosts than this one. Whoever is on the
	// way can then read the questions and the bearer token, and forge answers.
	Insecure bool `json:"insecure,omitempty"`

	// read-only after Provision
	logger *zap.Logger
	client *client
	guard  *authz.Guard

	failOpen *nowconnect.LogLimiter
}

// TLS is what a connection to the PDP needs.
type TLS struct {
	// CA lists PEM files with the authorities to trust, instead of the
	// system's.
	CA []string `json:"ca,omitempty"`

	// ClientCertificate and ClientKey are PEM files. They are read at each
	// handshake, so that a certificate can be renewed without a reload.
	ClientCertificate string `json:"client_certificate,omitempty"`
	ClientKey         string `json:"client_key,omitempty"`

	// ServerName is the name that the PDP's certificate must have. Default: the
	// endpoint's host.
	ServerName string `json:"server_name,omitempty"`
}

const (
	dialectAuthZEN = "authzen"
	dialectV1      = "nowconnect-v1"

	off = "off"

	maxResponse = 16 << 20

	onErrorDeny  = "deny"
	onErrorAllow = "allow"
)

// CaddyModule returns the Caddy module information.
func (*AuthZEN) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.pdp.authzen",
		New: func() caddy.Module { return new(AuthZEN) },
	}
}

// Provision fills in defaults and prepares the client. It does not call the
// PDP: a hub must start also when the PDP does not.
func (a *AuthZEN) Provision(ctx caddy.Context) error {
	a.logger = ctx.Logger()
	a.setDefaults()
	if err := a.check(); err != nil {
		return err
	}
	c, err := newClient(a)
	if err != nil {
		return err
	}
	a.client = c
	a.failOpen = nowconnect.NewLogLimiter(1, 1)
	a.guard = authz.NewGuard(c.engine(), authz.GuardConfig{
		Timeout:        time.Duration(a.Timeout),
		AllowTTL:       max(0, time.Duration(a.CacheTTL)),
		DenyTTL:        max(0, time.Duration(a.DenyTTL)),
		CacheSize:      a.CacheSize,
		MaxCalls:       a.MaxCalls,
		MaxBatch:       maxBatch,
		BreakerChanged: a.breakerChanged,
		Panicked: func(v any, stack []byte) {
			a.logger.Error("asking the PDP panicked", zap.Any("panic", v), zap.ByteString("stack", stack))
		},
	})
	if a.OnError == onErrorAllow {
		if err := nowconnect.TellInsecure(ctx, a, "on_error allow", "whenever the PDP gives no answer, every client is let in; "+
			"whoever can disturb the PDP or the way to it opens every door"); err != nil {
			return err
		}
	}
	if a.Insecure {
		return nowconnect.TellInsecure(ctx, a, "insecure", "questions to the PDP may go over plain HTTP, where others can read the bearer token and forge answers")
	}
	return nil
}

func (a *AuthZEN) setDefaults() {
	if a.Dialect == "" {
		a.Dialect = dialectAuthZEN
	}
	if a.OnError == "" {
		a.OnError = onErrorDeny
	}
	if a.Timeout == 0 {
		a.Timeout = caddy.Duration(500 * time.Millisecond)
	}
	if a.CacheTTL == 0 {
		a.CacheTTL = caddy.Duration(5 * time.Second)
	}
	if a.DenyTTL == 0 {
		a.DenyTTL = caddy.Duration(2 * time.Second)
	}
	if a.MaxCalls == 0 {
		a.MaxCalls = 64
	}
	if a.MaxResponseSize == 0 {
		a.MaxResponseSize = 64 << 10
	}
}

// check is not Validate, because Provision needs what it checks.
func (a *AuthZEN) check() error {
	switch {
	case (a.Endpoint == "") == (a.Discover == ""):
		return fmt.Errorf("either an endpoint or discover is needed, and not both")
	case a.Dialect != dialectAuthZEN && a.Dialect != dialectV1:
		return fmt.Errorf("dialect %q: there is %s and %s", a.Dialect, dialectAuthZEN, dialectV1)
	case a.Dialect == dialectV1 && a.Discover != "":
		return fmt.Errorf("dialect %s has no discovery: give the endpoint", dialectV1)
	case a.Dialect == dialectV1 && a.BatchEndpoint != "":
		return fmt.Errorf("dialect %s has no batch_endpoint", dialectV1)
	case a.Discover != "" && a.BatchEndpoint != "" && a.BatchEndpoint != off:
		return fmt.Errorf("discover tells the batch_endpoint: leave it out, or say `off`")
	case a.Dialect != dialectV1 && (a.AgentID != "" || a.Audience != ""):
		return fmt.Errorf("agent_id and audience are words of dialect %s", dialectV1)
	case a.OnError != onErrorDeny && a.OnError != onErrorAllow:
		return fmt.Errorf("on_error %q: it is %s or %s", a.OnError, onErrorDeny, onErrorAllow)
	case a.Timeout < 0 || a.CacheSize < 0 || a.MaxCalls < 0 || a.MaxResponseSize < 0:
		return fmt.Errorf("timeout, cache_size, max_calls and max_response_size cannot be negative")
	case a.MaxResponseSize > maxResponse:
		return fmt.Errorf("max_response_size %d: at most %d", a.MaxResponseSize, maxResponse)
	}
	return nil
}

// Decide implements authz.Decider.
func (a *AuthZEN) Decide(ctx context.Context, r *authz.Request) authz.Decision {
	return a.finish(r, a.guard.Decide(ctx, r))
}

// DecideBatch implements authz.BatchDecider.
func (a *AuthZEN) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	var ds []authz.Decision
	if a.client.batchless.now() {
		// Each by itself has a place among MaxCalls and a time limit of its own.
		ds = authz.DecideEach(ctx, a.guard, rs, a.MaxCalls)
	} else {
		ds = a.guard.DecideBatch(ctx, rs)
	}
	for i, r := range rs {
		ds[i] = a.finish(r, ds[i])
	}
	return ds
}

// Flush implements authz.Flusher.
func (a *AuthZEN) Flush() { a.guard.Flush() }

// finish names the engine, also where nobody was asked, and makes an error a
// permit if the configuration says so in words.
func (a *AuthZEN) finish(r *authz.Request, d authz.Decision) authz.Decision {
	d.Engine = engineName
	if d.Outcome == authz.Allow || d.Outcome == authz.Deny || a.OnError != onErrorAllow {
		return d
	}
	if suppressed, ok := a.failOpen.Allow(); ok {
		a.logger.Warn("let a client in because the PDP gave no answer (on_error allow)",
			zap.String("connector", r.Resource.ID), zap.String("subject", r.Subject.ID), zap.Error(d.Err), suppressed)
	}
	return authz.Decision{Outcome: authz.Allow, Reason: "on_error allow", Engine: engineName, Err: d.Err}
}

func (a *AuthZEN) breakerChanged(open bool) {
	if open {
		a.logger.Error("the PDP fails: asking it only now and then until it answers", zap.String("on_error", a.OnError))
	} else {
		a.logger.Info("the PDP answers again")
	}
}

// Cleanup closes idle connections. Questions on their way end by themselves.
func (a *AuthZEN) Cleanup() error {
	if a.client != nil {
		a.client.http.CloseIdleConnections()
	}
	return nil
}

// checkURL finds out whether questions may go to u.
func checkURL(u *url.URL, insecure bool) error {
	switch {
	case u.Host == "" || u.Hostname() == "":
		return fmt.Errorf("no host in the URL")
	case u.User != nil:
		return fmt.Errorf("a user name or password in the URL: use bearer_token or a client certificate")
	case u.Fragment != "":
		return fmt.Errorf("a fragment in the URL")
	case u.Scheme == "https", u.Scheme == "http" && (insecure || loopback(u.Hostname())):
		return nil
	case u.Scheme == "http":
		return fmt.Errorf("http:// to another host than this one: use https, or say `insecure`")
	default:
		return fmt.Errorf("scheme %q: use https", u.Scheme)
	}
}

// Interface guards
var (
	_ caddy.Provisioner  = (*AuthZEN)(nil)
	_ caddy.CleanerUpper = (*AuthZEN)(nil)
	_ authz.BatchDecider = (*AuthZEN)(nil)
	_ authz.Flusher      = (*AuthZEN)(nil)
)
