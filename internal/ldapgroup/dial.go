package ldapgroup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Target is where a URL leads.
type Target struct {
	Name       string // host:port, or the socket's path
	ServerName string // for TLS; empty for ldapi
	Security   Security
	// Local says that the bytes do not leave this machine: loopback or a Unix
	// socket. A bind over Plaintext is then as safe as it gets.
	Local bool
	Dial  func(ctx context.Context) (net.Conn, error)
}

// keepAlive finds dead peers of idle connections.
const keepAlive = 30 * time.Second

// ParseURL reads ldap://, ldaps:// and ldapi:// URLs without a path beyond "/".
// ldap:// is StartTLS unless it is local, and then Plaintext.
func ParseURL(raw string) (*Target, error) {
	if path, ok := strings.CutPrefix(raw, "ldapi://"); ok {
		// The socket's path is in the host's place, percent-encoded, which
		// url.Parse refuses.
		path, err := url.PathUnescape(strings.TrimSuffix(path, "/"))
		if err != nil || path == "" {
			return nil, errors.New("ldapi URL has no socket path, percent-encoded, after ldapi://")
		}
		return target("unix", path, &Target{Name: path, Security: Plaintext, Local: true}), nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("parse LDAP URL: %w", err)
	}
	if u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.Hostname() == "" {
		return nil, errors.New("LDAP URL has more, or less, than a host and a port")
	}
	t := &Target{ServerName: u.Hostname(), Local: isLoopback(u.Hostname())}
	port := u.Port()
	switch u.Scheme {
	case "ldaps":
		t.Security = LDAPS
		port = orElse(port, "636")
	case "ldap":
		t.Security = StartTLS
		if t.Local {
			t.Security = Plaintext
		}
		port = orElse(port, "389")
	default:
		return nil, fmt.Errorf("LDAP URL has the scheme %q", u.Scheme)
	}
	t.Name = net.JoinHostPort(u.Hostname(), port)
	return target("tcp", t.Name, t), nil
}

func target(network, addr string, t *Target) *Target {
	d := &net.Dialer{KeepAlive: keepAlive}
	t.Dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, addr) }
	return t
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// isLoopback goes by what is written: a name other than localhost could lead
// anywhere.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
