package agent

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

const testToken = "test-token-0123456789"

// testHub is the hub's end in the small: package http's server, the contract's
// upgrade, and the real tunnel. Which agent serves what is not its affair.
type testHub struct {
	tb   testing.TB
	addr string
	tls  *tls.Config // nil: plain HTTP

	smallBuffers bool // the hub's clients have sockets that take little

	mu     sync.Mutex // guards all below
	srv    *http.Server
	token  string
	max    int      // links that an agent may hold; 0 does not tell it
	accept []string // connectors to accept; nil accepts all
	links  map[int]*hubLink
	logins []hubLogin
	wg     sync.WaitGroup
}

type hubLink struct {
	*tunnel.Link
	hello  wire.Hello
	remote net.Conn
}

// hubLogin is one upgrade that led to a HELLO.
type hubLogin struct {
	carrier string
	hello   wire.Hello
}

func newTestHub(tb testing.TB, conf *tls.Config) *testHub {
	tb.Helper()
	h := &testHub{tb: tb, addr: "127.0.0.1:0", tls: conf, token: testToken, links: make(map[int]*hubLink)}
	h.start()
	tb.Cleanup(h.stop)
	return h
}

// start listens, on the same port after the first time.
func (h *testHub) start() {
	h.tb.Helper()
	ln, err := net.Listen("tcp", h.addr)
	for range 100 { // another socket may be in the way for a moment
		if err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
		ln, err = net.Listen("tcp", h.addr)
	}
	if err != nil {
		h.tb.Fatal(err)
	}
	h.addr = ln.Addr().String()
	if h.tls != nil {
		ln = tls.NewListener(ln, h.tls)
	}
	srv := &http.Server{Handler: h, ErrorLog: silentLog()}
	h.mu.Lock()
	h.srv = srv
	h.mu.Unlock()
	h.wg.Go(func() { _ = srv.Serve(ln) })
}

// stop ends the listener and all links, as a process that is killed would.
func (h *testHub) stop() {
	h.mu.Lock()
	_ = h.srv.Close()
	for _, l := range h.links {
		_ = l.remote.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// silentLog keeps what servers say about the faults that tests make.
func silentLog() *log.Logger { return log.New(io.Discard, "", 0) }

func (h *testHub) url() string {
	if h.tls != nil {
		return "https://" + h.addr
	}
	return "http://" + h.addr
}

func (h *testHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerVersion, protocolVersion)
	h.mu.Lock()
	token := h.token
	h.mu.Unlock()
	up := r.Header.Get("Upgrade")
	switch {
	case r.URL.Path != "/tunnel":
		http.Error(w, "no such path", http.StatusNotFound)
		return
	case up != "nowconnect" && up != "websocket":
		http.Error(w, "upgrade to nowconnect or websocket", http.StatusUpgradeRequired)
		return
	case r.Header.Get("Authorization") != "Bearer "+token:
		http.Error(w, "unknown token", http.StatusUnauthorized)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		h.tb.Errorf("hijack: %v", err)
		return
	}
	h.wg.Add(1)
	defer h.wg.Done()
	defer conn.Close()
	answer := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nNowconnect-Version: 1\r\nUpgrade: " + up + "\r\n"
	if up == "websocket" {
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		answer += "Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]) + "\r\nSec-WebSocket-Protocol: nowconnect.v1\r\n"
	}
	if _, err := io.WriteString(conn, answer+"\r\n"); err != nil {
		return
	}
	h.serveLink(conn, rw.Reader, up)
}

func (h *testHub) serveLink(conn net.Conn, r *bufio.Reader, up string) {
	var c tunnel.Carrier
	if up == "websocket" {
		c = tunnel.NewWebSocket(conn, r, nil, false)
	} else {
		c = tunnel.NewNative(conn, r, nil)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hello, err := tunnel.ReadHello(ctx, c)
	if err != nil {
		return // the agent gave up, or the hub was stopped
	}
	h.mu.Lock()
	ack := wire.HelloAck{Version: 1, Hub: "test-hub", Accepted: hello.Connectors, MaxLinks: h.max}
	if h.accept != nil {
		ack.Accepted, ack.Refused = h.accept, hello.Connectors
	}
	h.logins = append(h.logins, hubLogin{up, hello})
	h.mu.Unlock()
	if tunnel.Welcome(c, ack) != nil {
		return
	}
	link := tunnel.NewHubLink(c, tunnel.Config{}, hello.Window)
	h.mu.Lock()
	h.links[hello.Link] = &hubLink{link, hello, conn}
	h.mu.Unlock()
	_ = link.Serve(context.Background()) // tests look at the agent's side
	h.mu.Lock()
	if l := h.links[hello.Link]; l != nil && l.Link == link {
		delete(h.links, hello.Link)
	}
	h.mu.Unlock()
}

func (h *testHub) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *testHub) link(n int) *hubLink {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.links[n]
}

func (h *testHub) countLinks() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.links)
}

func (h *testHub) allLogins() []hubLogin {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]hubLogin(nil), h.logins...)
}

// session opens one session on a link and returns its client end.
type hubSession struct {
	*tunnel.Session
	client net.Conn // what the hub's client would hold
	result chan tunnel.Result
}

func (h *testHub) open(tb testing.TB, link int, connector string) *hubSession {
	tb.Helper()
	return h.openWith(tb, link, wire.Open{Connector: connector, Session: "s-" + connector + "-" + strconv.Itoa(link)})
}

func (h *testHub) openWith(tb testing.TB, link int, o wire.Open) *hubSession {
	tb.Helper()
	l := h.link(link)
	if l == nil {
		tb.Fatalf("link %d is not up", link)
	}
	s, err := l.Open(o, tunnel.SessionConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	client, server := tcpPair(tb)
	if h.smallBuffers {
		_ = client.(*net.TCPConn).SetReadBuffer(4096)
		_ = server.(*net.TCPConn).SetWriteBuffer(4096)
	}
	hs := &hubSession{Session: s, client: client, result: make(chan tunnel.Result, 1)}
	h.wg.Go(func() { hs.result <- s.Run(tunnel.Endpoint{Conn: server}) })
	return hs
}

func (s *hubSession) wait(tb testing.TB) tunnel.Result {
	tb.Helper()
	select {
	case r := <-s.result:
		return r
	case <-time.After(10 * time.Second):
		tb.Fatal("the session does not end")
		panic("unreachable")
	}
}

func tcpPair(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// echo sends text through the session and expects it back.
func (s *hubSession) echo(tb testing.TB, text string) {
	tb.Helper()
	if err := s.client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.WriteString(s.client, text); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s.client, got); err != nil || string(got) != text {
		tb.Fatalf("got %q, %v", got, err)
	}
}

// testConfig is a configuration for h that serves one echo target.
func testConfig(tb testing.TB, h *testHub) Config {
	tb.Helper()
	return Config{
		URL: h.url(), AgentID: "premise-1", TokenFile: writeToken(tb, testToken+"\n"),
		Targets: map[string]Target{"echo": targetOf(tb, testpeer.Echo(tb).Addr)},
		Links:   1,
	}
}

func targetOf(tb testing.TB, addr string) Target {
	tb.Helper()
	t, err := parseTarget(addr)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func writeToken(tb testing.TB, content string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "token")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// running is an agent whose Run goes on.
type running struct {
	*Agent
	logs *observer.ObservedLogs
	stop context.CancelFunc // asks Run to end
	done chan struct{}      // closed when it has
}

func startAgent(tb testing.TB, cfg Config) *running {
	tb.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	a, err := New(cfg, zap.New(core))
	if err != nil {
		tb.Fatal(err)
	}
	return runAgent(tb, a, logs)
}

func runAgent(tb testing.TB, a *Agent, logs *observer.ObservedLogs) *running {
	tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Agent: a, logs: logs, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := a.Run(ctx); err != nil {
			tb.Errorf("Run: %v", err)
		}
	}()
	tb.Cleanup(func() {
		stop()
		a.Cut()
		<-r.done
	})
	return r
}

// eventually waits until cond holds.
func eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(end) {
			tb.Fatalf("it does not happen: %s", what)
		}
	}
}

// logged returns the first entry with the message, once there is one.
func (r *running) logged(tb testing.TB, message string) observer.LoggedEntry {
	tb.Helper()
	eventually(tb, "log "+message, func() bool { return r.logs.FilterMessage(message).Len() > 0 })
	return r.logs.FilterMessage(message).All()[0]
}

func errorField(e observer.LoggedEntry) error {
	for _, f := range e.Context {
		if err, ok := f.Interface.(error); ok {
			return err
		}
	}
	return errors.New("no error in " + fmt.Sprint(e))
}
