package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/http/httpproxy"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// dialFunc is net.Dialer's DialContext, or a test's own network.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// A dialer turns the configuration into carriers that have said hello.
type dialer struct {
	cfg      *Config
	hub      hubURL
	token    *tokenSource
	proxyFor func(*url.URL) (*url.URL, error) // nil answer: go directly
	dial     dialFunc
	log      *zap.Logger
	carriers carrierChoice
}

func newDialer(cfg *Config, hub hubURL, log *zap.Logger) *dialer {
	proxies := httpproxy.Config{HTTPProxy: cfg.Proxy.HTTP, HTTPSProxy: cfg.Proxy.HTTPS, NoProxy: cfg.Proxy.NoProxy}
	// Keepalive is TuneLink's affair.
	nd := net.Dialer{KeepAlive: -1}
	return &dialer{
		cfg: cfg, hub: hub, log: log,
		token:    &tokenSource{path: cfg.TokenFile, log: log},
		proxyFor: proxies.ProxyFunc(),
		dial:     nd.DialContext,
		carriers: carrierChoice{mode: cfg.Carrier},
	}
}

// A login is a carrier whose hub has welcomed us.
type login struct {
	carrier tunnel.Carrier
	ack     wire.HelloAck
	tls     string    // TLS version, empty without
	proxy   string    // without credentials, empty without
	secret  digest    // of the token that was sent; zero without
	cert    digest    // of the client certificate; zero without
	expires time.Time // when the hub lets the credential go; zero for never
}

// connect makes one link's carrier and logs in over it. With carrier auto it
// falls back to WebSocket when something on the way spoils the native one.
func (d *dialer) connect(ctx context.Context, h wire.Hello) (*login, error) {
	first := d.carriers.first()
	l, err := d.attempt(ctx, first, h)
	if err == nil {
		d.carriers.worked(first)
		return l, nil
	}
	var ce *ConnectError
	if ctx.Err() != nil || !errors.As(err, &ce) || !ce.spoiled() || !d.carriers.spoiled(first) {
		return nil, err
	}
	l, wsErr := d.attempt(ctx, CarrierWebSocket, h)
	if wsErr != nil {
		return nil, fmt.Errorf("%w; then %w", err, wsErr)
	}
	if d.carriers.worked(CarrierWebSocket) {
		d.log.Info("the native carrier does not come through, using websocket",
			zap.Error(err), zap.Duration("native_again_after", retryNative))
	}
	return l, nil
}

// attempt does everything from TCP to HELLO_ACK within HandshakeTimeout.
func (d *dialer) attempt(ctx context.Context, carrier string, h wire.Hello) (*login, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.HandshakeTimeout)
	defer cancel()
	// Secrets and the CA come first: without them no packet needs to leave.
	cred, err := d.credential()
	if err != nil {
		return nil, err
	}
	l := &login{secret: digestOf(cred.token), cert: cred.digest()}
	conn, err := d.reach(ctx, cred.roots, l)
	if err != nil {
		return nil, err
	}
	stop := guardConn(ctx, conn)
	c, err := d.upgrade(ctx, conn, carrier, cred, l)
	stop()
	if err != nil {
		_ = conn.Close() // the error is told already
		return nil, err
	}
	// From here on the peer is our hub, or something that could answer for it.
	l.carrier = c
	asked := time.Now() // so that we err towards early
	if l.ack, err = tunnel.SayHello(ctx, c, h); err != nil {
		_ = c.Close()
		var le *tunnel.LinkError
		return nil, &ConnectError{Stage: stageHello, FromHub: errors.As(err, &le) && le.Remote, Carrier: carrier, Err: err}
	}
	l.expires = expiry(asked, l.ack.ExpiresIn)
	return l, nil
}

// reach opens the TCP connection to the hub, or through the proxy that leads
// to it.
func (d *dialer) reach(ctx context.Context, roots *x509.CertPool, l *login) (net.Conn, error) {
	scheme := "http"
	if d.hub.tls {
		scheme = "https"
	}
	proxy, err := d.proxyFor(&url.URL{Scheme: scheme, Host: d.hub.addr})
	if err != nil {
		// The URL may hold a password and err repeats it.
		return nil, &ConnectError{Stage: stageProxy, Err: errors.New("the proxy setting is not a URL")}
	}
	addr := d.hub.addr
	if proxy != nil {
		addr = proxyAddr(proxy)
		l.proxy = (&url.URL{Scheme: proxy.Scheme, Host: proxy.Host}).String()
	}
	conn, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, &ConnectError{Stage: stageDial, Err: err}
	}
	tunnel.TuneLink(conn, d.cfg.PingTimeout, d.cfg.CongestionControl)
	if proxy == nil {
		return conn, nil
	}
	tunneled, status, err := d.passProxy(ctx, conn, proxy, roots)
	if err != nil {
		_ = conn.Close() // the error is told already
		return nil, &ConnectError{Stage: stageProxy, Status: status, Err: err}
	}
	return tunneled, nil
}

// upgrade goes from a TCP connection to a carrier. Nothing that the peer sends
// is trusted: its answer is capped in bytes and by ctx in time.
func (d *dialer) upgrade(ctx context.Context, conn net.Conn, carrier string, cred credential, l *login) (tunnel.Carrier, error) {
	var flush func() error
	var gather *tunnel.Gather
	if d.hub.tls {
		gather = tunnel.NewGather(conn)
		tc := tls.Client(gather, d.tlsConfig(cred.roots, cred.cert))
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, d.tlsError(err)
		}
		l.tls = tls.VersionName(tc.ConnectionState().Version)
		conn, flush = tc, gather.Flush
	}
	capped := &cappedReader{r: conn, left: maxAnswer}
	br := bufio.NewReader(capped)
	if err := d.shakeHTTP(conn, br, carrier, cred.token); err != nil {
		if cred.cert != nil && refusedByTLS(err.Err) {
			return nil, d.tlsError(err.Err)
		}
		err.Stage, err.Carrier = stageUpgrade, carrier
		return nil, err
	}
	if gather != nil {
		gather.Collect()
	}
	rest := bufferedThen(br, conn)
	if carrier == CarrierWebSocket {
		return tunnel.NewWebSocket(conn, rest, flush, true), nil
	}
	return tunnel.NewNative(conn, rest, flush), nil
}

// tlsConfig verifies always: there is no setting that turns it off. ALPN
// offers HTTP/1.1 alone because a hijacked connection needs it. A client
// certificate is sent to whoever asks for one, whatever CAs it names: its own
// error says more than one about a missing certificate.
func (d *dialer) tlsConfig(roots *x509.CertPool, cert *tls.Certificate) *tls.Config {
	name := d.cfg.ServerName
	if name == "" {
		name = d.hub.host
	}
	conf := &tls.Config{
		ServerName: name,
		RootCAs:    roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		// Full records from the first byte: frames are made to fit them, and
		// small records at the start of each burst cost throughput.
		DynamicRecordSizingDisabled: true,
	}
	if cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return conf
}

// readRoots returns nil, the system's roots, for an empty path. A bundle is
// trusted instead of them: whoever names a CA means that one, as with curl's
// --cacert and the original's ca_bundle.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA bundle: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA bundle %s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// tlsError words what is wrong with either side's certificate.
func (d *dialer) tlsError(err error) *ConnectError {
	if d.cfg.ClientCert != "" && refusedByTLS(err) {
		return &ConnectError{Stage: stageTLS, FromHub: true, Err: fmt.Errorf("%w: %w", errCertRefused, err)}
	}
	return &ConnectError{Stage: stageTLS, Err: explainTLS(err, d.cfg.CABundle)}
}

// explainTLS adds what an operator can do about an untrusted certificate.
func explainTLS(err error, bundle string) error {
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		return err
	}
	if bundle != "" {
		return fmt.Errorf("%w; the hub's CA is not in %s, which is trusted instead of the system's", err, bundle)
	}
	return fmt.Errorf("%w; for a private CA, or a proxy that inspects TLS, set proxy.ca_bundle or NC_CA_BUNDLE", err)
}

// guardConn makes ctx's deadline and its end unblock conn. The returned
// function lifts that and must be called.
func guardConn(ctx context.Context, conn net.Conn) (stop func()) {
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t)
	}
	cancel := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		// Too late to cancel means that ctx is over, and so is the attempt.
		if cancel() {
			_ = conn.SetDeadline(time.Time{})
		}
	}
}

// maxAnswer caps an HTTP answer's header, and what may follow it unread, in
// bytes.
const maxAnswer = 64 << 10

// cappedReader fails once more than left bytes were read.
type cappedReader struct {
	r    io.Reader
	left int
}

var errAnswerTooLong = fmt.Errorf("answer has more than %d bytes", maxAnswer)

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errAnswerTooLong
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// bufferedThen returns a reader for what br holds and then conn, leaving br's
// buffer out of the data path.
func bufferedThen(br *bufio.Reader, conn net.Conn) io.Reader {
	n := br.Buffered()
	if n == 0 {
		return conn
	}
	b, _ := br.Peek(n) // cannot fail: they are buffered
	return io.MultiReader(bytes.NewReader(bytes.Clone(b)), conn)
}
