package jwt

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// source is where keys come from and how they are kept: what makes two
// configurations share a key set.
type source struct {
	url, file                            string // one of them
	refresh, cooldown, timeout, maxStale time.Duration
}

// Bounds of a key set. Providers publish a few keys in a few kilobytes.
const (
	maxSet     = 512 << 10
	maxKeys    = 64
	maxHeaders = 64 << 10
)

// checkURL says what is wrong with a jwks_url.
func checkURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "":
		return errors.New("jwks_url is not a URL")
	case u.User != nil:
		return errors.New("jwks_url holds a user name or password; keys are public")
	case u.Fragment != "":
		return errors.New("jwks_url has a fragment")
	case u.Scheme == "https", u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	case u.Scheme == "http":
		return errors.New("jwks_url is http and not on loopback: whoever can change the answer on its way could make tokens; use https")
	}
	return fmt.Errorf("jwks_url: scheme %q is not https", u.Scheme)
}

func isLoopback(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// name is the source for logs: a URL's query may hold what a log should not.
func (s source) name() string {
	if s.file != "" {
		return s.file
	}
	name, _, _ := strings.Cut(s.url, "?")
	return name
}

// client makes what fetches the URL: each time on a connection of its own, so
// that none is left when the key set is not used any more.
func (s source) client() *http.Client {
	return &http.Client{
		Timeout: s.timeout, // to the body's last byte
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the keys come from where the configuration says and from nowhere else
		},
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			DisableCompression:     true, // a small answer can unpack to a huge one
			MaxResponseHeaderBytes: maxHeaders,
		},
	}
}

// keys fetches and parses.
func (s source) keys(ctx context.Context, c *http.Client) (usable []key, skipped int, err error) {
	b, err := s.read(ctx, c)
	if err != nil {
		return nil, 0, err
	}
	return parseKeys(b)
}

func (s source) read(ctx context.Context, c *http.Client) ([]byte, error) {
	if s.file != "" {
		f, err := os.Open(s.file)
		if err != nil {
			return nil, fmt.Errorf("jwks_file: %w", err)
		}
		defer f.Close()
		return readBounded(f)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := c.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // which does not repeat the URL
		}
		return nil, fmt.Errorf("fetch keys: %w", err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, fmt.Errorf("fetch keys: answer %d, and redirects are not followed: configure the URL that it leads to", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("fetch keys: answer %d", resp.StatusCode)
	}
	return readBounded(resp.Body)
}

func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSet+1))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if len(b) > maxSet {
		return nil, fmt.Errorf("the key set has more than %d bytes", maxSet)
	}
	return b, nil
}

// parseKeys reads a JWK set (RFC 7517) and passes over what it cannot use:
// other kinds of keys, keys for encryption, private and weak ones. A set
// without any usable key is an answer too: the provider withdrew them.
func parseKeys(b []byte) (usable []key, skipped int, err error) {
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil || set.Keys == nil {
		return nil, 0, errors.New("the answer is not a JWK set") // the parser's error may repeat parts of it
	}
	if len(*set.Keys) > maxKeys {
		return nil, 0, fmt.Errorf("the key set has %d keys, more than %d", len(*set.Keys), maxKeys)
	}
	for _, raw := range *set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(raw, &k) != nil {
			skipped++
			continue
		}
		if good, ok := newKey(k); ok {
			usable = append(usable, good)
		} else {
			skipped++
		}
	}
	return usable, skipped, nil
}

// weak reports whether k is an RSA key that is too short to trust.
func weak(k any) bool {
	r, ok := k.(*rsa.PublicKey)
	return ok && r.N.BitLen() < 2048
}
