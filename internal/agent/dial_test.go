package agent

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// tlsHub is a hub whose certificate comes from a private CA.
func tlsHub(t *testing.T, names ...string) (*testHub, *testpeer.CA) {
	t.Helper()
	ca := testpeer.NewCA(t)
	return newTestHub(t, &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, names...).TLS}}), ca
}

func TestBothCarriersOverTLSWithPrivateCA(t *testing.T) {
	for _, carrier := range []string{CarrierNative, CarrierWebSocket} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(carrier+" "+tls.VersionName(version), func(t *testing.T) {
				hub, ca := tlsHub(t, "127.0.0.1")
				hub.tls.MinVersion, hub.tls.MaxVersion = version, version
				cfg := testConfig(t, hub)
				cfg.CABundle, cfg.Carrier = ca.File, carrier
				a := startAgent(t, cfg)
				eventually(t, "a link", func() bool { return hub.countLinks() == 1 && a.Ready() })
				hub.open(t, 0, "echo").echo(t, strings.Repeat("0123456789", 10000))
				up := a.logged(t, "link is up").ContextMap()
				if up["tls"] != tls.VersionName(version) || up["hub"] != "test-hub" {
					t.Errorf("logged %v", up)
				}
			})
		}
	}
}

// TestCertificateIsVerified has each way in which a hub may be the wrong one.
func TestCertificateIsVerified(t *testing.T) {
	hub, ca := tlsHub(t, "hub.example.com")
	old, oldCA := tlsHub(t, "127.0.0.1")
	old.tls.MaxVersion = tls.VersionTLS11
	old.tls.MinVersion = tls.VersionTLS10
	other := testpeer.NewCA(t)
	tests := []struct {
		name   string
		hub    *testHub
		bundle string
		server string
		want   string
	}{
		{"system roots do not know it", hub, "", "hub.example.com", "set proxy.ca_bundle or NC_CA_BUNDLE"},
		{"another CA", hub, other.File, "hub.example.com", "the hub's CA is not in " + other.File},
		{"another name", hub, ca.File, "", "cannot validate certificate for 127.0.0.1"},
		{"the wrong server_name", hub, ca.File, "hub2.example.com", "not hub2.example.com"},
		{"TLS 1.1", old, oldCA.File, "", "protocol version"},
		{"right in all", hub, ca.File, "hub.example.com", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, tt.hub)
			cfg.CABundle, cfg.ServerName, cfg.Insecure = tt.bundle, tt.server, true // insecure turns off no check
			err := connectOnce(t, cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var ce *ConnectError
			if !errors.As(err, &ce) || ce.Stage != stageTLS || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if ce.spoiled() {
				t.Error("a wrong certificate is a reason to fall back")
			}
		})
	}
}

// connectOnce makes one attempt and gives the carrier up again.
func connectOnce(t *testing.T, cfg Config) error {
	t.Helper()
	_, err := connectWith(t, cfg)
	return err
}

func connectWith(t *testing.T, cfg Config) (*login, error) {
	t.Helper()
	a, err := New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.dialer.connect(t.Context(), a.hello(0))
	if err == nil {
		_ = l.carrier.Close()
	}
	return l, err
}

// connectProxy is an HTTP proxy that knows CONNECT and, like a real one,
// resolves the names of its inner network itself.
type connectProxy struct {
	addr  string
	hosts map[string]string // host:port as asked for, to the real one
	user  string            // user:password, empty for open

	mu    sync.Mutex
	asked []string
}

func newConnectProxy(t *testing.T, p *connectProxy, conf *tls.Config) *connectProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	var wg sync.WaitGroup
	srv := &http.Server{ErrorLog: silentLog(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1)
		defer wg.Done()
		p.serve(t, w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done; wg.Wait() })
	return p
}

func (p *connectProxy) serve(t *testing.T, w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	if p.user != "" && r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(p.user)) {
		w.Header().Set("Proxy-Authenticate", "Basic")
		http.Error(w, "who are you", http.StatusProxyAuthRequired)
		return
	}
	to, ok := p.hosts[r.Host]
	if r.Method != http.MethodConnect || !ok {
		http.Error(w, "not here", http.StatusForbidden)
		return
	}
	far, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Errorf("hijack: %v", err)
		return
	}
	defer near.Close()
	_, _ = io.WriteString(near, "HTTP/1.1 200 Connection established\r\nProxy-Agent: test\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(far, rw.Reader); _ = far.Close() })
	_, _ = io.Copy(near, far)
	_ = near.Close()
	wg.Wait()
}

func (p *connectProxy) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

func TestThroughConnectProxy(t *testing.T) {
	hub, ca := tlsHub(t, "hub.internal")
	proxyCert := ca.Issue(t, "127.0.0.1").TLS
	for _, scheme := range []string{"http", "https"} {
		for _, carrier := range []string{CarrierNative, CarrierWebSocket} {
			t.Run(scheme+" proxy, "+carrier, func(t *testing.T) {
				var conf *tls.Config
				if scheme == "https" {
					conf = &tls.Config{Certificates: []tls.Certificate{proxyCert}}
				}
				p := newConnectProxy(t, &connectProxy{hosts: map[string]string{"hub.internal:443": hub.addr}, user: "me:s3cr%t"}, conf)
				cfg := testConfig(t, hub)
				cfg.URL, cfg.CABundle, cfg.Carrier = "https://hub.internal", ca.File, carrier
				cfg.Proxy.HTTPS = scheme + "://me:s3cr%25t@" + p.addr
				a := startAgent(t, cfg)
				eventually(t, "a link", func() bool { return a.Ready() && hub.link(0) != nil })
				hub.open(t, 0, "echo").echo(t, strings.Repeat("x", 100_000))
				if got := p.requests(); len(got) != 1 || got[0] != "CONNECT hub.internal:443" {
					t.Errorf("the proxy was asked for %q", got)
				}
				if up := a.logged(t, "link is up").ContextMap(); up["proxy"] != scheme+"://"+p.addr {
					t.Errorf("logged proxy %v", up["proxy"])
				}
				noSecret(t, a, "s3cr", testToken)
			})
		}
	}
}

// noSecret fails when a log line holds one of the words.
func noSecret(t *testing.T, a *running, words ...string) {
	t.Helper()
	for _, e := range a.logs.All() {
		line := fmt.Sprint(e.Message, e.ContextMap())
		for _, w := range words {
			if strings.Contains(line, w) {
				t.Errorf("the log holds %q: %s", w, line)
			}
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	hub, ca := tlsHub(t, "hub.internal")
	open := newConnectProxy(t, &connectProxy{}, nil)
	closed := newConnectProxy(t, &connectProxy{user: "me:right"}, nil)
	junk := testpeer.Serve(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhello")
		_, _ = io.Copy(io.Discard, c)
	})
	flood := testpeer.Serve(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
		for {
			if _, err := io.WriteString(c, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	})
	tests := []struct{ name, proxy, want string }{
		{"forbidden", "http://" + open.addr, "pass proxy: the proxy answers 403 to CONNECT hub.internal:443"},
		{"no login", closed.addr, "pass proxy: the proxy wants a login; write it into its URL, http://user:password@host:port"},
		{"wrong login", "http://me:wrong@" + closed.addr, "pass proxy: the proxy refuses our user name and password (only basic auth is known)"},
		{"speaks first", junk.Addr, "pass proxy: the proxy sends bytes ahead of the tunnel"},
		{"endless header", flood.Addr, "pass proxy: no answer: answer has more than 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, hub)
			cfg.URL, cfg.CABundle, cfg.Proxy.HTTPS = "https://hub.internal", ca.File, tt.proxy
			err := connectOnce(t, cfg)
			var ce *ConnectError
			if err == nil || err.Error() != tt.want || !errors.As(err, &ce) || ce.spoiled() {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNoProxyAndLoopbackGoDirectly(t *testing.T) {
	hub, _ := tlsHub(t, "hub.internal")
	p := newConnectProxy(t, &connectProxy{}, nil)
	cfg := testConfig(t, hub) // 127.0.0.1
	cfg.Proxy = Proxy{HTTPS: p.addr, HTTP: p.addr}
	var ce *ConnectError
	if err := connectOnce(t, cfg); !errors.As(err, &ce) || ce.Stage != stageTLS {
		t.Errorf("loopback: %v", err)
	}
	cfg.URL, cfg.Proxy.NoProxy = "https://hub.invalid", ".invalid"
	if err := connectOnce(t, cfg); !errors.As(err, &ce) || ce.Stage != stageDial {
		t.Errorf("NO_PROXY: %v", err)
	}
	if got := p.requests(); len(got) != 0 {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// intermediary stands between agent and hub, passes WebSocket on, and does
// something else to the native carrier.
func intermediary(t *testing.T, hub *testHub, native func(http.ResponseWriter, *http.Request, http.Handler)) string {
	t.Helper()
	to, err := url.Parse(hub.url())
	if err != nil {
		t.Fatal(err)
	}
	pass := httputil.NewSingleHostReverseProxy(to)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	srv := &http.Server{ErrorLog: silentLog(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1)
		defer wg.Done()
		if r.Header.Get("Upgrade") == "nowconnect" {
			native(w, r, pass)
			return
		}
		pass.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done; wg.Wait() })
	return "http://" + ln.Addr().String()
}

func hijack(t *testing.T, w http.ResponseWriter) net.Conn {
	t.Helper()
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Errorf("hijack: %v", err)
	}
	return c
}

// TestFallsBackToWebSocket has each way in which something between agent and
// hub lets only WebSocket through.
func TestFallsBackToWebSocket(t *testing.T) {
	tests := []struct {
		name   string
		native func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		{"answers itself", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Server", "corporate gateway")
			http.Error(w, "<html>policy</html>", http.StatusForbidden)
		}},
		{"removes the Upgrade header", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			r.Header.Del("Upgrade")
			r.Header.Del("Connection")
			pass.ServeHTTP(w, r) // the hub answers 426
		}},
		{"closes", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { hijack(t, w).Close() }},
		{"resets", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			c := hijack(t, w)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}},
		{"says nothing", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			c := hijack(t, w)
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}},
		{"agrees and then swallows", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			c := hijack(t, w)
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			hub := newTestHub(t, nil)
			var natives atomic.Int32
			cfg := testConfig(t, hub)
			cfg.URL = intermediary(t, hub, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
				natives.Add(1)
				tt.native(w, r, pass)
			})
			cfg.HandshakeTimeout = 500 * time.Millisecond
			a := startAgent(t, cfg)
			eventually(t, "a link", func() bool { return a.Ready() && hub.link(0) != nil })
			hub.open(t, 0, "echo").echo(t, strings.Repeat("x", 50_000))
			a.logged(t, "the native carrier does not come through, using websocket")

			// The next connect goes straight to WebSocket.
			before := natives.Load()
			hub.link(0).remote.Close()
			eventually(t, "a second login", func() bool { return len(hub.allLogins()) == 2 })
			if got := natives.Load(); got != before {
				t.Errorf("the native carrier was tried again %d times", got-before)
			}
			for _, l := range hub.allLogins() {
				if l.carrier != "websocket" {
					t.Errorf("login over %s", l.carrier)
				}
			}
		})
	}
}

// TestHubsRefusalIsNoFallback: what the hub itself says would be no different
// over WebSocket.
func TestHubsRefusalIsNoFallback(t *testing.T) {
	hub := newTestHub(t, nil)
	hub.token = "another"
	cfg := testConfig(t, hub)
	var asked atomic.Int32
	cfg.URL = intermediary(t, hub, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		asked.Add(1)
		pass.ServeHTTP(w, r)
	})
	err := connectOnce(t, cfg)
	var ce *ConnectError
	if !errors.As(err, &ce) || ce.Status != http.StatusUnauthorized || !ce.FromHub || ce.Carrier != CarrierNative {
		t.Fatalf("got %v", err)
	}
	want := "HTTP upgrade (native): the hub answers 401: unknown token (does the token file hold the token that the hub has for this agent id?)"
	if err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if strings.Contains(err.Error(), testToken) {
		t.Error("the error holds the token")
	}
	if classify(err) != troubleRefused {
		t.Errorf("classed %v", classify(err))
	}
	if asked.Load() != 1 {
		t.Errorf("%d native attempts", asked.Load())
	}
}

// TestAnswersThatAreNoUpgrade has what a wrong server may say; none of it may
// be taken for a hub.
func TestAnswersThatAreNoUpgrade(t *testing.T) {
	const ok = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
	tests := []struct{ name, carrier, answer, want string }{
		{"a page", CarrierNative, "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 2\r\n\r\nhi",
			`answer 200 does not come from a NowConnect hub but from "nginx"`},
		{"a redirect", CarrierNative, "HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n",
			"answer 301 does not come from a NowConnect hub"},
		{"garbage", CarrierNative, "SSH-2.0-OpenSSH\r\n\r\n", `no answer: malformed HTTP response "SSH-2.0-OpenSSH"`},
		{"endless interim answers", CarrierNative, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20), "no answer: interim answers without end"},
		{"interim, then a page", CarrierNative, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
			"answer 404 does not come from a NowConnect hub"},
		{"endless header", CarrierNative, "HTTP/1.1 101 X\r\nX: " + strings.Repeat("x", 70<<10), "no answer: answer has more than 65536 bytes"},
		{"another protocol", CarrierNative, ok + "Upgrade: h2c\r\n\r\n", `switched to "h2c" instead of "nowconnect"`},
		{"another version", CarrierNative, ok + "Nowconnect-Version: 2\r\nUpgrade: nowconnect\r\n\r\n",
			`the hub speaks version "2" of the protocol, this agent 1`},
		{"a wrong accept", CarrierWebSocket, ok + "Upgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
			"the websocket answer does not fit our key: an answer from a cache?"},
		{"the hub's words, made fit for a log", CarrierNative,
			"HTTP/1.1 503 X\r\nNowconnect-Version: 1\r\nContent-Length: 17\r\n\r\ndraining\x1b[31m\n\r\nx",
			"the hub answers 503: draining [31m x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv := testpeer.Serve(t, func(c *net.TCPConn) {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, tt.answer)
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			})
			cfg := Config{
				URL: "http://" + srv.Addr, AgentID: "premise-1", TokenFile: writeToken(t, testToken), Carrier: tt.carrier,
				Targets: map[string]Target{"echo": {"127.0.0.1", 1}},
			}
			err := connectOnce(t, cfg)
			if want := "HTTP upgrade (" + tt.carrier + "): " + tt.want; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// TestHandshakeHasOneDeadline: a server that says nothing, at any stage, costs
// no more than HandshakeTimeout.
func TestHandshakeHasOneDeadline(t *testing.T) {
	silent := testpeer.Silent(t)
	for _, u := range []string{"https://" + silent.Addr, "http://" + silent.Addr} {
		cfg := Config{
			URL: u, AgentID: "premise-1", TokenFile: writeToken(t, testToken), Carrier: CarrierNative,
			Targets: map[string]Target{"echo": {"127.0.0.1", 1}}, HandshakeTimeout: 100 * time.Millisecond,
		}
		start := time.Now()
		if err := connectOnce(t, cfg); err == nil {
			t.Errorf("%s: no error", u)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s: took %v", u, d)
		}
	}
}

func TestTokenFile(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"trailing newline", testToken + "\n", ""},
		{"Windows editor", "\ufeff" + testToken + "\r\n", ""},
		{"empty", "", "is empty"},
		{"white space", " \n\t\n", "is empty"},
		{"two lines", "abc\ndef\n", "holds more than one word, or characters that no token has"},
		{"a header in it", "abc\r\nX-Evil: 1", "holds more than one word, or characters that no token has"},
		{"binary", "\x00\x01", "holds more than one word, or characters that no token has"},
		{"huge", strings.Repeat("x", maxToken+1), "has more than 16384 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := (&tokenSource{path: writeToken(t, tt.content), log: zap.NewNop()}).read()
			switch {
			case tt.want == "" && (err != nil || got != testToken):
				t.Errorf("got %q, %v", got, err)
			case tt.want != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.want)):
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// TestTokenIsReadAtEachConnect lets an agent start without its secret, find
// it, and use the next one after a rotation.
func TestTokenIsReadAtEachConnect(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	cfg.TokenFile = writeToken(t, "\n")
	cfg.BackoffMin, cfg.BackoffMax = 20*time.Millisecond, 50*time.Millisecond
	a := startAgent(t, cfg)
	bad := a.logged(t, "the hub cannot be used")
	if err := errorField(bad); err.Error() != "read token: token file "+cfg.TokenFile+" is empty" {
		t.Errorf("logged %v", err)
	}
	put := func(token string) {
		if err := os.WriteFile(cfg.TokenFile, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(testToken)
	eventually(t, "a link", func() bool { return hub.countLinks() == 1 })

	hub.set(func() { hub.token = "rotated-token" })
	put("rotated-token")
	hub.link(0).remote.Close()
	eventually(t, "a login with the new token", func() bool { return len(hub.allLogins()) == 2 })
	noSecret(t, a, testToken, "rotated-token")
}

func TestReadableTokenFileIsReported(t *testing.T) {
	hub := newTestHub(t, nil)
	cfg := testConfig(t, hub)
	if err := os.Chmod(cfg.TokenFile, 0o644); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, cfg)
	a.logged(t, "link is up")
	hub.link(0).remote.Close()
	eventually(t, "a second link", func() bool { return len(hub.allLogins()) == 2 })
	if n := a.logs.FilterMessage("every user of this machine can read the token; chmod 600 the file").Len(); n != 1 {
		t.Errorf("told %d times", n)
	}
}
