package testpeer

import (
	"bufio"
	"cmp"
	"crypto/subtle"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ConnectProxyOptions shape an HTTP proxy.
type ConnectProxyOptions struct {
	User, Password string // Basic credentials that it asks for; empty User = none
	// Hosts maps a host:port that clients ask for to the address that is dialed
	// for it, as the proxy's own name service would. Others are dialed as asked.
	Hosts map[string]string
}

// HTTPProxy is a running HTTP proxy that knows CONNECT and nothing else.
type HTTPProxy struct {
	URL  string // with credentials, as HTTPS_PROXY has them
	Addr string

	tunnels, refused atomic.Int64
	mu               sync.Mutex
	targets          []string // guarded by mu
	want             string   // the Proxy-Authorization asked for, or empty
	hosts            map[string]string
}

// ConnectProxy starts an HTTP proxy for CONNECT.
func ConnectProxy(tb testing.TB, o ConnectProxyOptions) *HTTPProxy {
	tb.Helper()
	p := &HTTPProxy{hosts: o.Hosts}
	u := url.URL{Scheme: "http"}
	if o.User != "" {
		u.User = url.UserPassword(o.User, o.Password)
		p.want = "Basic " + base64.StdEncoding.EncodeToString([]byte(o.User+":"+o.Password))
	}
	s := serve(tb, p.handle)
	p.Addr, u.Host = s.addr, s.addr
	p.URL = u.String()
	return p
}

// Tunnels is how many CONNECT requests led to a target.
func (p *HTTPProxy) Tunnels() int { return int(p.tunnels.Load()) }

// Refused is how many requests were not answered with a tunnel.
func (p *HTTPProxy) Refused() int { return int(p.refused.Load()) }

// Targets lists the host:port of each tunnel, in order.
func (p *HTTPProxy) Targets() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.targets...)
}

func (p *HTTPProxy) handle(c *net.TCPConn) {
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	refuse := func(status int, header http.Header) {
		p.refused.Add(1)
		answer(c, req, status, header, "")
	}
	got := req.Header.Get("Proxy-Authorization")
	if subtle.ConstantTimeCompare([]byte(got), []byte(p.want)) != 1 {
		refuse(http.StatusProxyAuthRequired, http.Header{"Proxy-Authenticate": {`Basic realm="testpeer"`}})
		return
	}
	if req.Method != http.MethodConnect {
		refuse(http.StatusMethodNotAllowed, http.Header{"Allow": {http.MethodConnect}})
		return
	}
	t, err := net.DialTimeout("tcp", cmp.Or(p.hosts[req.Host], req.Host), 5*time.Second)
	if err != nil {
		refuse(http.StatusBadGateway, nil)
		return
	}
	defer t.Close()
	p.tunnels.Add(1)
	p.mu.Lock()
	p.targets = append(p.targets, req.Host)
	p.mu.Unlock()
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	splice(c, br, t.(*net.TCPConn))
}

// splice joins two connections until both directions have ended; br holds what
// was already read from c. Whatever ends out of order ends both at once.
func splice(c *net.TCPConn, br io.Reader, t *net.TCPConn) {
	move := func(dst *net.TCPConn, src io.Reader) {
		if _, err := io.Copy(dst, src); err != nil {
			reset(c)
			reset(t)
			return
		}
		dst.CloseWrite() // an error means that dst is gone, which its reader tells
	}
	var wg sync.WaitGroup
	wg.Go(func() { move(t, br) })
	wg.Go(func() { move(c, t) })
	wg.Wait()
}

// answer writes a response with a text body and tells the client that it is
// the last one.
func answer(w io.Writer, req *http.Request, status int, header http.Header, body string) {
	resp := &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Request: req, Header: header, Close: true,
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body)),
	}
	if resp.Header == nil {
		resp.Header = make(http.Header)
	}
	resp.Write(w) // a client that is gone need not be told
}
