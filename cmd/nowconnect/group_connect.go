package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/internal/groupapi"
)

// apiOptions say where the API is and who calls it.
type apiOptions struct {
	url                string
	user, passwordFile string
	tokenFile          string
	cert, key, ca      string

	password, token string // from the environment only
}

// fromEnvironment fills in what the command line does not say. A flag that
// chooses one kind of credential leaves those of the environment alone.
func (o *apiOptions) fromEnvironment(getenv func(string) string) error {
	chosen := o.user != "" || o.tokenFile != "" || o.cert != ""
	set := func(to *string, name string) {
		if *to == "" {
			*to = getenv("NOWCONNECT_API_" + name)
		}
	}
	set(&o.url, "URL")
	set(&o.ca, "CA")
	if !chosen {
		set(&o.user, "USER")
		set(&o.tokenFile, "TOKEN_FILE")
		set(&o.token, "TOKEN")
		set(&o.cert, "CERT")
	}
	if o.cert != "" {
		set(&o.key, "KEY")
	}
	if o.user != "" {
		set(&o.passwordFile, "PASSWORD_FILE")
		set(&o.password, "PASSWORD")
	}
	return o.check()
}

func (o *apiOptions) check() error {
	token := o.token != "" || o.tokenFile != ""
	switch {
	case o.url == "":
		return errors.New("no API: give --url or set NOWCONNECT_API_URL")
	case o.user != "" && token:
		return errors.New("a user and a token: only one of them can be sent")
	case o.user != "" && o.password == "" && o.passwordFile == "":
		return errors.New("a user without a password: give --password-file, or set NOWCONNECT_API_PASSWORD_FILE or NOWCONNECT_API_PASSWORD")
	case o.user == "" && o.passwordFile != "":
		return errors.New("a password without a user: give --user or set NOWCONNECT_API_USER")
	case (o.cert == "") != (o.key == ""):
		return errors.New("--cert and --key go together")
	}
	return nil
}

// client makes the client. Files with credentials are read now.
func (o *apiOptions) client() (*groupapi.Client, error) {
	auth, err := o.credential()
	if err != nil {
		return nil, err
	}
	if auth != nil {
		if err := safeFor(o.url); err != nil {
			return nil, err
		}
	}
	cfg, err := o.tls()
	if err != nil {
		return nil, err
	}
	return groupapi.NewClient(o.url, &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       2 * time.Minute, // of one try; the service answers within its own timeout
	}, auth)
}

func (o *apiOptions) credential() (func(*http.Request) error, error) {
	if o.user != "" {
		password, err := secret(o.password, o.passwordFile)
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		return func(r *http.Request) error { r.SetBasicAuth(o.user, password); return nil }, nil
	}
	if o.token == "" && o.tokenFile == "" {
		return nil, nil
	}
	token, err := secret(o.token, o.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	return func(r *http.Request) error { r.Header.Set("Authorization", "Bearer "+token); return nil }, nil
}

// secret reads a file, or takes the value that came from the environment.
func secret(value, file string) (string, error) {
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		value = string(bytes.TrimRight(b, "\r\n"))
	}
	if value == "" {
		return "", errors.New("it is empty")
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return "", errors.New("it has more than one line")
	}
	return value, nil
}

// safeFor refuses to send a credential in the clear over a network.
func safeFor(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("the API's URL makes no sense") // and may hold a password
	}
	if u.Scheme == "https" {
		return nil
	}
	host := u.Hostname()
	if a, err := netip.ParseAddr(host); host == "localhost" || err == nil && a.IsLoopback() {
		return nil
	}
	return errors.New("the API's URL is http: a credential goes over https only, or to a loopback address")
}

func (o *apiOptions) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		pem, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, err
		}
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			cfg.RootCAs = x509.NewCertPool()
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", o.ca)
		}
	}
	if o.cert != "" {
		c, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{c}
	}
	return cfg, nil
}
