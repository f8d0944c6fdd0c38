package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
)

// proxyAddr is the host:port that p's URL names.
func proxyAddr(p *url.URL) string {
	port := p.Port()
	if port == "" {
		port = "80"
		if p.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(p.Hostname(), port)
}

// passProxy asks an HTTP proxy for a tunnel to the hub and returns the
// connection through it, or the status of its refusal. Credentials from the
// proxy's URL go as basic auth.
func (d *dialer) passProxy(ctx context.Context, conn net.Conn, proxy *url.URL, roots *x509.CertPool) (net.Conn, int, error) {
	stop := guardConn(ctx, conn)
	defer stop()
	if proxy.Scheme == "https" {
		tc := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, 0, fmt.Errorf("TLS with the proxy: %w", explainTLS(err, d.cfg.CABundle))
		}
		conn = tc
	}
	req := &http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Opaque: d.hub.addr},
		Host:   d.hub.addr,
		Header: http.Header{"User-Agent": {d.cfg.Software}},
	}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		basic := http.Request{Header: http.Header{}}
		basic.SetBasicAuth(u.Username(), password)
		req.Header["Proxy-Authorization"] = basic.Header["Authorization"]
	}
	if err := req.Write(conn); err != nil {
		return nil, 0, fmt.Errorf("send request: %w", err)
	}
	br := bufio.NewReader(&cappedReader{r: conn, left: maxAnswer})
	resp, err := readAnswer(br, req)
	if err != nil {
		return nil, 0, fmt.Errorf("no answer: %w", err)
	}
	if err := d.judgeProxy(resp, proxy); err != nil {
		return nil, resp.StatusCode, err
	}
	if br.Buffered() > 0 {
		// Neither TLS nor HTTP servers speak first, so these bytes are nobody's.
		return nil, 0, errors.New("the proxy sends bytes ahead of the tunnel")
	}
	return conn, 0, nil
}

func (d *dialer) judgeProxy(resp *http.Response, proxy *url.URL) error {
	// 407 it should be; some proxies say 401.
	unknown := resp.StatusCode == http.StatusProxyAuthRequired || resp.StatusCode == http.StatusUnauthorized
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case unknown && proxy.User == nil:
		return errors.New("the proxy wants a login; write it into its URL, http://user:password@host:port")
	case unknown:
		return errors.New("the proxy refuses our user name and password (only basic auth is known)")
	}
	return fmt.Errorf("the proxy answers %d to CONNECT %s", resp.StatusCode, d.hub.addr)
}
