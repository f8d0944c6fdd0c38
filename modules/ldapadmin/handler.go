package ldapadmin

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Handler changes and reads group memberships in an LDAP directory over HTTP.
// Every request may be repeated: it makes members present or absent and tells,
// member by member, what it found and did. The API is described by the
// OpenAPI document at `/openapi.json` below the path prefix.
//
// The directory is a connector of the nowconnect app, reached through the hub
// inside the process, or a URL. The policy (`pdp`) of the connector, or the
// app's for a URL, is asked for every request, with the actions
// `group.members.read`, `group.members.add`, `group.members.remove` and
// `group.members.replace`, the connector as resource with the group among its
// properties, and the authenticated caller as subject. With a connector it is asked for each connection too, as
// for any client: the subject is `ldap_admin` of type `service`, and the source
// address 127.0.0.1.
//
// A caller is known by the user that an `authentication` handler
// (`basic_auth` in the Caddyfile, or one of another module) has found, or else
// by its verified client certificate. The handler does not load where neither
// is configured in front of it, and answers 401 to a request that has neither.
type Handler struct {
	// Connector is the connector of the nowconnect app that leads to the
	// directory. Either this or `url` is required.
	Connector string `json:"connector,omitempty"`

	// URL is a directory that the hub reaches by itself: `ldaps://host[:port]`,
	// `ldap://host[:port]` (with StartTLS, unless the host is a loopback
	// address) or `ldapi://path`.
	URL string `json:"url,omitempty"`

	// TLS is how connections through a connector are protected, inside of the
	// tunnel and up to the directory: `ldaps` or `starttls`. Required with a
	// connector, unless `insecure_plaintext` is set.
	TLS string `json:"tls,omitempty"`

	// ServerName is the name that the directory's certificate must have.
	// Required with a connector and TLS. Default with a URL: its host.
	ServerName string `json:"server_name,omitempty"`

	// TLSCA lists PEM files with the authorities that may have issued the
	// directory's certificate. Default: the system's.
	TLSCA []string `json:"tls_ca,omitempty"`

	// InsecurePlaintext lets the bind password go over a connection without
	// TLS. With a connector that is the agent's connection to the directory:
	// whoever listens on the company's network between them learns it.
	InsecurePlaintext bool `json:"insecure_plaintext,omitempty"`

	// InsecureSkipVerify takes any certificate of the directory. Whoever stands
	// in between learns the bind password.
	InsecureSkipVerify bool `json:"tls_insecure_skip_verify,omitempty"`

	// BindDN is the account that changes groups, a DN or, for Active Directory,
	// `user@domain`. Placeholders are replaced for each new connection. It
	// needs the right to write the member attribute of the groups, and no
	// other. Default: empty, an anonymous bind.
	BindDN string `json:"bind_dn,omitempty"`

	// BindPassword is the account's password: a placeholder such as
	// `{file./etc/nowconnect/ldap.password}` or `{env.LDAP_PASSWORD}`, which is
	// read again for each new connection and when the directory refuses the
	// account, so that a new password needs no reload. A literal one does not
	// load, because Caddy shows and stores its configuration.
	BindPassword string `json:"bind_password,omitempty"`

	// Groups lists the groups that may be read and changed. Required.
	Groups []*Group `json:"groups,omitempty"`

	// MemberBases lists the subtrees whose entries may become members.
	// Required, unless `any_member` is set.
	MemberBases []string `json:"member_bases,omitempty"`

	// AnyMember lets every entry become a member.
	AnyMember bool `json:"any_member,omitempty"`

	// AllowSID takes members of Active Directory in the forms `<SID=…>` and
	// `<GUID=…>`.
	AllowSID bool `json:"allow_sid,omitempty"`

	// Lookup says whether a member's entry is looked up before it is added:
	// `always`, so that one that does not exist is refused on every server, or
	// `never`. Default: always.
	Lookup string `json:"lookup,omitempty"`

	// Verify says when the directory's word for a no-op is confirmed by a
	// search: `ambiguous`, for the codes that have a second meaning, `always`
	// or `never`. Default: ambiguous.
	Verify string `json:"verify,omitempty"`

	// PathPrefix is where the API begins. Requests for other paths go to the
	// next handler. Default: /ldap.
	PathPrefix string `json:"path_prefix,omitempty"`

	// MaxBody bounds a request's body, in bytes. Default: 8388608 (8 MiB).
	MaxBody int64 `json:"max_body,omitempty"`

	// MaxMembers bounds the members of one request. Default: 50000.
	MaxMembers int `json:"max_members,omitempty"`

	// MaxRequests bounds the requests served at one time; more get a 503.
	// Default: 256.
	MaxRequests int `json:"max_requests,omitempty"`

	// MaxRequestsPerCaller bounds those of one caller; more get a 503. Less than
	// MaxRequests leaves room for others beside a caller that sends as much as it
	// can. Default: half of MaxRequests.
	MaxRequestsPerCaller int `json:"max_requests_per_caller,omitempty"`

	// MinConnections and MaxConnections bound the connections to the directory:
	// those kept open while idle, and all. Default: 2 and 8.
	MinConnections int `json:"min_connections,omitempty"`
	MaxConnections int `json:"max_connections,omitempty"`

	// IdleTime is after how long an idle connection is closed. Keep it below
	// the directory's own limit (Active Directory: 900 s). Default: 4m.
	IdleTime caddy.Duration `json:"idle_time,omitempty"`

	// Timeout bounds a request. What has been sent and not been answered by then
	// is `unknown` in the answer. Default: 60s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// IdempotencyTTL is how long the answer to a write with an Idempotency-Key
	// is kept for its repetition. Default: 10m.
	IdempotencyTTL caddy.Duration `json:"idempotency_ttl,omitempty"`

	// InsecureNoAuth serves callers that nobody has authenticated. To the
	// policy they are their address.
	InsecureNoAuth bool `json:"insecure_no_auth,omitempty"`

	// owned by Provision; read-only afterwards
	logger   *zap.Logger
	name     string // of the directory, in metrics and logs
	backend  *backend
	keeper   *keeper
	places   chan struct{} // one per request being served
	callers  callers       // whose they are
	keeperID string        // empty until taken from the pool
	names    names
	unknown  *nowconnect.LogLimiter // of callers that nobody knows

	cleanup sync.Once
}

// Group is a group, or all below one place, that may be read and changed.
type Group struct {
	// DN is the group's, or with `subtree` that of what the groups are below. A
	// built-in privileged group of Active Directory is only served when it is
	// named here itself.
	DN string `json:"dn,omitempty"`

	// Subtree makes it the groups below DN.
	Subtree bool `json:"subtree,omitempty"`

	// Replace allows PUT of the whole set of members.
	Replace bool `json:"replace,omitempty"`

	// MaxRemovals is the share of its members that one PUT of the whole set may
	// remove, from above 0 to 1. Default: 0.2.
	MaxRemovals float64 `json:"max_removals,omitempty"`

	// Placeholder is a member that takes the place of the last one, for groups
	// that must have one. It is never shown. Default: empty; the last member is
	// then not removed.
	Placeholder string `json:"placeholder,omitempty"`
}

// Defaults.
const (
	defaultPrefix      = "/ldap"
	defaultMaxBody     = 8 << 20
	defaultMaxMembers  = 50_000
	defaultMaxRequests = 256
	defaultTimeout     = time.Minute
	defaultTTL         = 10 * time.Minute
)

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.ldap_admin",
		New: func() caddy.Module { return new(Handler) },
	}
}

// keepers hold kept answers over reloads, by what the handler is.
var keepers = caddy.NewUsagePool()

// Provision checks the configuration and makes the engine. It does not dial:
// the directory, and the agent in front of it, may come later.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	app, err := nowconnect.FromContext(ctx)
	if err != nil {
		return err
	}
	h.setDefaults()
	if err := h.check(); err != nil {
		return err
	}
	if err := h.checkAuthentication(ctx); err != nil {
		return err
	}
	h.unknown = nowconnect.NewLogLimiter(10, 50)
	h.places = make(chan struct{}, h.MaxRequests)
	if h.backend, err = h.newBackend(app); err != nil {
		return err
	}
	if err := h.takeKeeper(); err != nil {
		return err
	}
	if err := h.watch(ctx); err != nil {
		return err
	}
	app.AddCheck(h.examine)
	return h.tellInsecure(ctx)
}

// tellInsecure says which protections the configuration gives up.
func (h *Handler) tellInsecure(ctx caddy.Context) error {
	for _, o := range []struct {
		on           bool
		name, danger string
	}{
		{h.InsecureNoAuth, "insecure_no_auth", "whoever reaches this handler is served, if policy allows its address"},
		{h.InsecurePlaintext, "insecure_plaintext", "whoever listens on the way to the directory learns the bind password"},
		{h.InsecureSkipVerify, "tls_insecure_skip_verify", "whoever stands on the way to the directory learns the bind password"},
	} {
		if !o.on {
			continue
		}
		if err := nowconnect.TellInsecure(ctx, h, o.name, o.danger); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) takeKeeper() error {
	id, err := h.identity()
	if err != nil {
		return err
	}
	v, loaded, err := keepers.LoadOrNew(id, func() (caddy.Destructor, error) {
		return newKeeper(time.Duration(h.IdempotencyTTL)), nil
	})
	if err != nil {
		return err
	}
	h.keeperID, h.keeper = id, v.(*keeper)
	if loaded {
		h.keeper.setTTL(time.Duration(h.IdempotencyTTL))
	}
	return nil
}

// identity is what of the configuration says which directory the handler serves
// and who may do what there. Handlers that differ in it do not see each other's
// kept answers, and neither does one whose rules were changed by a reload.
func (h *Handler) identity() (string, error) {
	b, err := json.Marshal(&Handler{
		Connector: h.Connector, URL: h.URL, PathPrefix: h.PathPrefix, BindDN: h.BindDN,
		Groups: h.Groups, MemberBases: h.MemberBases, AnyMember: h.AnyMember, AllowSID: h.AllowSID, Lookup: h.Lookup,
		InsecureNoAuth: h.InsecureNoAuth,
	})
	return string(b), err
}

func (h *Handler) setDefaults() {
	setDefault(&h.PathPrefix, defaultPrefix)
	setDefault(&h.MaxBody, defaultMaxBody)
	setDefault(&h.MaxMembers, defaultMaxMembers)
	setDefault(&h.MaxRequests, defaultMaxRequests)
	setDefault(&h.MaxRequestsPerCaller, (h.MaxRequests+1)/2)
	setDefault(&h.Timeout, caddy.Duration(defaultTimeout))
	setDefault(&h.IdempotencyTTL, caddy.Duration(defaultTTL))
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Cleanup lets go of the directory. Requests in flight finish first; the last
// of them closes the connections.
func (h *Handler) Cleanup() error {
	var err error
	h.cleanup.Do(func() {
		if h.backend != nil {
			h.backend.release()
		}
		if h.keeperID != "" {
			_, err = keepers.Delete(h.keeperID)
		}
	})
	if err != nil {
		return fmt.Errorf("let go of kept answers: %w", err)
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
