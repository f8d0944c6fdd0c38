package ldapadmin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// backend is the way to the directory. It is used by the handler and by each
// request in flight; the last one to let go closes it.
type backend struct {
	engine *ldapgroup.Engine
	tunnel *tunnelDialer // nil with a URL
	stats  *obs.Membership

	ctx    context.Context // ends when the backend closes
	cancel context.CancelFunc

	mu         sync.Mutex
	users      int // 0: closed, or about to be
	background sync.WaitGroup
}

// inBackground runs f until it returns, or until its context ends because the
// backend closes, which waits for it.
func (b *backend) inBackground(f func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users > 0 {
		b.background.Go(func() { f(b.ctx) })
	}
}

// acquire takes a use. It is false once nobody has one.
func (b *backend) acquire() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users == 0 {
		return false
	}
	b.users++
	return true
}

// release gives a use back, and closes the backend with the last one.
func (b *backend) release() {
	b.mu.Lock()
	b.users--
	last := b.users == 0
	b.mu.Unlock()
	if !last {
		return
	}
	b.cancel()
	b.engine.Close()
	b.background.Wait()
	if b.tunnel != nil {
		b.tunnel.close()
	}
}

// newBackend makes the engine for a checked configuration.
func (h *Handler) newBackend(app *nowconnect.App) (*backend, error) {
	b := &backend{users: 1}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	c := ldapgroup.Config{
		Groups:        h.groupRules(),
		MemberBases:   h.MemberBases,
		AnyMember:     h.AnyMember,
		AllowSID:      h.AllowSID,
		Lookup:        lookups[h.Lookup],
		Verify:        verifies[h.Verify],
		MinConns:      h.MinConnections,
		MaxConns:      h.MaxConnections,
		IdleTime:      time.Duration(h.IdleTime),
		ChangeTimeout: time.Duration(h.Timeout),
		MaxMembers:    h.MaxMembers,
		MaxQueue:      h.MaxRequests,
		Observer:      h.observer(b),
	}
	if err := h.setDirectory(&c, b, app); err != nil {
		return nil, err
	}
	if err := h.setCredentials(&c); err != nil {
		return nil, err
	}
	b.stats = app.Hub().Metrics().Membership(h.name)
	var err error
	if b.engine, err = ldapgroup.New(c); err != nil {
		return nil, err
	}
	return b, nil
}

// setDirectory says where the directory is and how to get there.
func (h *Handler) setDirectory(c *ldapgroup.Config, b *backend, app *nowconnect.App) error {
	serverName := h.ServerName
	if h.Connector != "" {
		if err := h.checkConnector(app); err != nil {
			return err
		}
		b.tunnel = &tunnelDialer{
			hub: app.Hub(), connector: h.Connector, live: make(map[*tunnelConn]struct{}),
			onDrain: func() { b.engine.Retire() }, // set before anything is dialed
		}
		c.Name, c.Dial, c.Security = h.Connector, b.tunnel.dial, securities[h.TLS]
	} else {
		t, err := ldapgroup.ParseURL(h.URL)
		if err != nil {
			return fmt.Errorf("url: %w", err)
		}
		if app.Decider("") == nil {
			return errors.New("url: the nowconnect app has no pdp of its own: nobody decides who may change groups there")
		}
		c.Name, c.Dial, c.Security = t.Name, t.Dial, t.Security
		c.AllowPlaintextBind = t.Local
		if serverName == "" {
			serverName = t.ServerName
		}
	}
	h.name = c.Name
	if h.InsecurePlaintext {
		c.Security, c.AllowPlaintextBind = ldapgroup.Plaintext, true
	}
	if c.Security == ldapgroup.Plaintext {
		return nil
	}
	var err error
	c.TLS, err = h.tlsConfig(serverName)
	return err
}

func (h *Handler) checkConnector(app *nowconnect.App) error {
	switch {
	case !app.HasConnector(h.Connector):
		return fmt.Errorf("connector %q is not configured in the nowconnect app", h.Connector)
	case !app.Admits(h.Connector, self):
		return fmt.Errorf("connector %q: its allow_cidrs leave out %s, from which ldap_admin connects", h.Connector, self)
	}
	return nil
}

func (h *Handler) tlsConfig(serverName string) (*tls.Config, error) {
	c := &tls.Config{
		ServerName: serverName, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: h.InsecureSkipVerify, //nolint:gosec // the operator's word, and its name says what it is
	}
	if len(h.TLSCA) == 0 {
		return c, nil
	}
	c.RootCAs = x509.NewCertPool()
	for _, file := range h.TLSCA {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("tls_ca: %w", err)
		}
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls_ca: no certificate in %s", file)
		}
	}
	return c, nil
}

// setCredentials makes the function that reads the account, and tries it.
func (h *Handler) setCredentials(c *ldapgroup.Config) error {
	if h.BindDN == "" {
		return nil
	}
	c.Credentials = func(context.Context) (ldapgroup.Credentials, error) {
		r := caddy.NewReplacer()
		dn, err := r.ReplaceOrErr(h.BindDN, true, true)
		if err != nil {
			return ldapgroup.Credentials{}, fmt.Errorf("bind_dn: %w", err)
		}
		password, err := r.ReplaceOrErr(h.BindPassword, true, true)
		if err != nil {
			return ldapgroup.Credentials{}, fmt.Errorf("bind_password: %w", err)
		}
		return ldapgroup.Credentials{DN: dn, Password: password}, nil
	}
	_, err := c.Credentials(context.Background())
	return err
}

func (h *Handler) groupRules() []ldapgroup.GroupRule {
	var rules []ldapgroup.GroupRule
	for _, g := range h.Groups {
		rules = append(rules, ldapgroup.GroupRule{
			DN: g.DN, Subtree: g.Subtree, AllowReplace: g.Replace, MaxRemovals: g.MaxRemovals, Placeholder: g.Placeholder,
		})
	}
	return rules
}

// The words of the configuration.
var (
	securities = map[string]ldapgroup.Security{"ldaps": ldapgroup.LDAPS, "starttls": ldapgroup.StartTLS}
	lookups    = map[string]ldapgroup.Lookup{"": ldapgroup.LookupAlways, "always": ldapgroup.LookupAlways, "never": ldapgroup.LookupNever}
	verifies   = map[string]ldapgroup.Verify{
		"": ldapgroup.VerifyAmbiguous, "ambiguous": ldapgroup.VerifyAmbiguous,
		"always": ldapgroup.VerifyAlways, "never": ldapgroup.VerifyNever,
	}
)
