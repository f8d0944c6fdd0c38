package ldapadmin

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// placeholder is what a secret must be: read at use, and never in what Caddy
// shows.
var placeholder = regexp.MustCompile(`^\{(file|env)\.[^{}]+\}$`)

// check finds mistakes that need nothing but the configuration.
func (h *Handler) check() error {
	for _, check := range []func() error{h.checkPlace, h.checkTLS, h.checkAccount, h.checkLists, h.checkBounds} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) checkPlace() error {
	switch {
	case h.Connector == "" && h.URL == "":
		return errors.New("neither connector nor url: one of them leads to the directory")
	case h.Connector != "" && h.URL != "":
		return errors.New("connector and url: only one of them can lead to the directory")
	case !strings.HasPrefix(h.PathPrefix, "/") || strings.HasSuffix(h.PathPrefix, "/") || strings.ContainsAny(h.PathPrefix, "%?# "):
		return fmt.Errorf("path_prefix %q does not begin with a slash, ends with one or needs encoding", h.PathPrefix)
	}
	return nil
}

func (h *Handler) checkTLS() error {
	_, known := securities[h.TLS]
	switch {
	case h.TLS != "" && !known:
		return fmt.Errorf("tls %q is neither ldaps nor starttls", h.TLS)
	case h.TLS != "" && h.URL != "":
		return errors.New("tls goes with a connector; with a url, its scheme says it")
	case h.TLS != "" && h.InsecurePlaintext:
		return errors.New("tls and insecure_plaintext contradict each other")
	case h.Connector != "" && h.TLS == "" && !h.InsecurePlaintext:
		return errors.New("no tls: write tls ldaps or tls starttls, or insecure_plaintext")
	case h.Connector != "" && h.TLS != "" && h.ServerName == "" && !h.InsecureSkipVerify:
		return errors.New("no server_name: a connector has no name that the directory's certificate could be compared with")
	}
	return nil
}

func (h *Handler) checkAccount() error {
	switch {
	case h.BindDN == "" && h.BindPassword != "":
		return errors.New("bind_password without bind_dn")
	case h.BindDN == "":
		return nil
	case h.BindPassword == "":
		return errors.New("bind_dn without bind_password")
	case !placeholder.MatchString(h.BindPassword):
		return errors.New("bind_password is not a placeholder such as {file./etc/nowconnect/ldap.password} or {env.LDAP_PASSWORD}")
	}
	return nil
}

func (h *Handler) checkLists() error {
	if len(h.Groups) == 0 {
		return errors.New("no groups: name those that may be changed, or what they are below")
	}
	for _, g := range h.Groups {
		if g == nil || g.DN == "" {
			return errors.New("groups: one has no dn")
		}
		if g.MaxRemovals < 0 || g.MaxRemovals > 1 {
			return fmt.Errorf("groups: max_removals %v of %s is not a share between 0 and 1", g.MaxRemovals, g.DN)
		}
	}
	switch {
	case len(h.MemberBases) == 0 && !h.AnyMember:
		return errors.New("no member_bases: name what members are below, or write any_member")
	case len(h.MemberBases) > 0 && h.AnyMember:
		return errors.New("member_bases and any_member contradict each other")
	}
	if _, ok := lookups[h.Lookup]; !ok {
		return fmt.Errorf("lookup %q is neither always nor never", h.Lookup)
	}
	if _, ok := verifies[h.Verify]; !ok {
		return fmt.Errorf("verify %q is not ambiguous, always or never", h.Verify)
	}
	return nil
}

// The largest pool: one connection serves many requests at once.
const maxPool = 64

func (h *Handler) checkBounds() error {
	for _, b := range []struct {
		name       string
		value, max int64
	}{
		{"max_body", h.MaxBody, 1 << 30},
		{"max_members", int64(h.MaxMembers), 1_000_000},
		{"max_requests", int64(h.MaxRequests), 100_000},
		{"max_requests_per_caller", int64(h.MaxRequestsPerCaller), 100_000},
		{"min_connections", int64(h.MinConnections), maxPool},
		{"max_connections", int64(h.MaxConnections), maxPool},
		{"idle_time", int64(h.IdleTime), 1 << 62},
		{"timeout", int64(h.Timeout), 1 << 62},
		{"idempotency_ttl", int64(h.IdempotencyTTL), 1 << 62},
	} {
		if b.value < 0 || b.value > b.max {
			return fmt.Errorf("%s is %d, not between 0 (the default) and %d", b.name, b.value, b.max)
		}
	}
	if h.MaxConnections != 0 && h.MinConnections > h.MaxConnections {
		return fmt.Errorf("min_connections %d is above max_connections %d", h.MinConnections, h.MaxConnections)
	}
	return nil
}
