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
// connection through it. Credentials from the proxy's URL go as basic auth.
func (d *dialer) passProxy(ctx context.Context, conn net.Conn, proxy *url.URL, roots *x509.CertPool) (net.Conn, error) {
	stop := guardConn(ctx, conn)
	defer stop()
	if proxy.Scheme == "https" {
		tc := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with the proxy: %w", explainTLS(err, d.cfg.CABundle))
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
		return nil, fmt.Errorf("send request: %w", err)
	}
	br := bufio.NewReader(&cappedReader{r: conn, left: maxAnswer})
	resp, err := readAnswer(br, req)
	if err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired && proxy.User == nil:
		return nil, errors.New("the proxy wants a login; write it into its URL, http://user:password@host:port")
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return nil, errors.New("the proxy refuses our user name and password (only basic auth is known)")
	case resp.StatusCode/100 != 2:
		return nil, fmt.Errorf("the proxy answers %d to CONNECT %s", resp.StatusCode, d.hub.addr)
	case br.Buffered() > 0:
		// Neither TLS nor HTTP servers speak first, so these bytes are nobody's.
		return nil, errors.New("the proxy sends bytes ahead of the tunnel")
	}
	return conn, nil
}
