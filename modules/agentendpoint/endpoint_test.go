package agentendpoint_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// Requests as an agent sends them. %s is for what a test adds.
const (
	native = "GET /tunnel HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\nNowconnect-Version: 1\r\n" +
		"Nowconnect-Agent: premise-1\r\nAuthorization: Bearer " + hubtest.Token + "\r\n%s\r\n"
	webSocket = "GET /tunnel HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: nowconnect.v1\r\n" +
		"Nowconnect-Agent: premise-1\r\nAuthorization: Bearer " + hubtest.Token + "\r\n%s\r\n"
)

// dial opens a raw connection to the site.
func dial(t *testing.T, h *hubtest.Hub) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", h.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// ask sends a request and reads the answer's header, and its body unless it is
// an upgrade.
func ask(t *testing.T, c net.Conn, request string) (*http.Response, *bufio.Reader, string) {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("%v\nto %s", err, request)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, br, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, br, string(b)
}

// change replaces a line of a request; an empty new line removes it.
func change(request, old, line string) string {
	request = fmt.Sprintf(request, "")
	i := strings.Index(request, old)
	if i < 0 {
		panic("no " + old)
	}
	end := i + strings.Index(request[i:], "\r\n") + 2
	if line != "" {
		line += "\r\n"
	}
	return request[:i] + line + request[end:]
}

func add(request, header string) string { return fmt.Sprintf(request, header+"\r\n") }

func TestRefusals(t *testing.T) {
	h := hubtest.Start(t)
	for name, c := range map[string]struct {
		request string
		status  int
		message string
		header  string // must be there
	}{
		"origin":               {add(native, "Origin: https://evil.example"), 403, "Origin", ""},
		"origin, websocket":    {add(webSocket, "Origin: null"), 403, "Origin", ""},
		"empty origin":         {add(native, "Origin:"), 403, "Origin", ""},
		"plain get":            {"GET /tunnel HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 426, "agents", "Upgrade"},
		"HTTP/1.0":             {"GET /tunnel HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\n\r\n", 426, "HTTP/1.1", "Upgrade"},
		"unknown upgrade":      {change(native, "Upgrade: nowconnect", "Upgrade: h2c"), 426, "unknown Upgrade", "Upgrade"},
		"no connection header": {change(native, "Connection:", ""), 426, "Connection: Upgrade", "Upgrade"},
		"no version":           {change(native, "Nowconnect-Version", ""), 426, "version 1", "Upgrade"},
		"other version":        {change(native, "Nowconnect-Version", "Nowconnect-Version: 2"), 426, "version 1", "Upgrade"},
		"two versions":         {add(native, "Nowconnect-Version: 1"), 426, "version 1", "Upgrade"},
		"post":                 {strings.Replace(fmt.Sprintf(native, ""), "GET", "POST", 1), 400, "GET", ""},
		"body":                 {add(native, "Content-Length: 5") + "hello", 400, "body", ""},
		"chunked body":         {add(native, "Transfer-Encoding: chunked") + "0\r\n\r\n", 400, "body", ""},
		"agent id garbage":     {change(native, "Nowconnect-Agent", "Nowconnect-Agent: ../../etc"), 400, "agent id", ""},
		"two agent ids":        {add(native, "Nowconnect-Agent: premise-2"), 400, "several", ""},
		"no ws key":            {change(webSocket, "Sec-WebSocket-Key", ""), 400, "0 Sec-WebSocket-Key", ""},
		"short ws key":         {change(webSocket, "Sec-WebSocket-Key", "Sec-WebSocket-Key: c2hvcnQ="), 400, "16 bytes", ""},
		"ws key no base64":     {change(webSocket, "Sec-WebSocket-Key", "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, "16 bytes", ""},
		"two ws keys":          {add(webSocket, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, "2 Sec-WebSocket-Key", ""},
		"old ws version":       {change(webSocket, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), 426, "version 13", "Sec-Websocket-Version"},
		"other sub-protocol":   {change(webSocket, "Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: chat"), 400, "nowconnect.v1", ""},
		"no sub-protocol":      {change(webSocket, "Sec-WebSocket-Protocol", ""), 400, "nowconnect.v1", ""},
		"no token":             {change(native, "Authorization", ""), 401, "not authenticated", "Www-Authenticate"},
		"no token, websocket":  {change(webSocket, "Authorization", ""), 401, "not authenticated", "Www-Authenticate"},
		"wrong token":          {change(native, "Authorization", "Authorization: Bearer "+hubtest.Token+"x"), 401, "not authenticated", "Www-Authenticate"},
		"empty token":          {change(native, "Authorization", "Authorization: Bearer "), 401, "not authenticated", "Www-Authenticate"},
		"basic":                {change(native, "Authorization", "Authorization: Basic cHJlbWlzZS0xOng="), 401, "not authenticated", "Www-Authenticate"},
		"two tokens":           {add(native, "Authorization: Bearer "+hubtest.Token), 401, "not authenticated", "Www-Authenticate"},
		"token of another":     {change(native, "Nowconnect-Agent", "Nowconnect-Agent: premise-2"), 401, "not authenticated", "Www-Authenticate"},
		"huge token":           {change(native, "Authorization", "Authorization: Bearer "+strings.Repeat("x", 8000)), 401, "not authenticated", "Www-Authenticate"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, br, body := ask(t, dial(t, h), c.request)
			if resp.StatusCode != c.status || !strings.Contains(body, c.message) {
				t.Errorf("%s: %q, want %d with %q", resp.Status, body, c.status, c.message)
			}
			if strings.Count(body, "\n") != 1 || !strings.HasSuffix(body, "\n") {
				t.Errorf("the body is not one line: %q", body)
			}
			if v := resp.Header.Values("Nowconnect-Version"); len(v) != 1 || v[0] != "1" {
				t.Errorf("Nowconnect-Version is %q", v)
			}
			if c.header != "" && resp.Header.Get(c.header) == "" {
				t.Errorf("no %s in %v", c.header, resp.Header)
			}
			if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the connection stays open: %v", err)
			}
		})
	}
	if strings.Contains(h.Logged(), hubtest.Token) {
		t.Error("the log has a token")
	}
	if !strings.Contains(h.Logged(), "agent login failed") {
		t.Error("failed logins are not logged")
	}
}

// Bytes that are no HTTP at all are the server's to refuse; it must survive.
func TestGarbage(t *testing.T) {
	h := hubtest.Start(t)
	for _, garbage := range []string{"\x00\x01\x02\x03\r\n\r\n", "GET\r\n\r\n", strings.Repeat("A", 100_000), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		c := dial(t, h)
		_, _ = io.WriteString(c, garbage)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
	h.Agent(nil)
}

func TestOtherPathsPassOn(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, "", "http://$HTTP {\n\tbind 127.0.0.1\n\troute {\n\t\tnowconnect_agent\n\t\trespond \"next\"\n\t}\n}"))
	if _, body, _ := h.Get("/other"); body != "next" {
		t.Errorf("/other: %q", body)
	}
	if status, _, _ := h.Get("/tunnel"); status == 200 {
		t.Error("/tunnel was passed on")
	}
}

// hello makes a link of an upgraded connection.
func hello(t *testing.T, c net.Conn, r io.Reader, ws bool, h wire.Hello) (wire.HelloAck, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	carrier := tunnel.NewNative(c, r, nil)
	if ws {
		carrier = tunnel.NewWebSocket(c, r, nil, true)
	}
	return tunnel.SayHello(ctx, carrier, h)
}

func premise1(link int) wire.Hello {
	return wire.Hello{Version: 1, AgentID: "premise-1", Instance: "i1", Link: link, Connectors: []string{"echo"}, Window: 65536}
}

func TestUpgrades(t *testing.T) {
	h := hubtest.Start(t)
	for name, request := range map[string]string{"nowconnect": native, "websocket": webSocket} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, h)
			resp, br, body := ask(t, c, fmt.Sprintf(request, ""))
			if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != name || resp.Header.Get("Nowconnect-Version") != "1" {
				t.Fatalf("%s %v %s", resp.Status, resp.Header, body)
			}
			if name == "websocket" {
				// RFC 6455 §1.3 has this very key.
				if a := resp.Header.Get("Sec-Websocket-Accept"); a != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
					t.Errorf("Sec-WebSocket-Accept %q", a)
				}
				if p := resp.Header.Get("Sec-Websocket-Protocol"); p != "nowconnect.v1" {
					t.Errorf("Sec-WebSocket-Protocol %q", p)
				}
			}
			ack, err := hello(t, c, br, name == "websocket", premise1(0))
			if err != nil || len(ack.Accepted) != 1 {
				t.Errorf("%+v, %v", ack, err)
			}
		})
	}
}

// An agent may send its HELLO together with the request.
func TestEarlyBytesAreNotLost(t *testing.T) {
	h := hubtest.Start(t)
	hi := premise1(0)
	frame, err := wire.AppendMessage(nil, wire.TypeHello, 0, &hi, wire.MaxHello)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, h)
	_, br, _ := ask(t, c, fmt.Sprintf(native, "")+string(frame))
	var hdr [wire.HeaderLen]byte
	if _, err := io.ReadFull(br, hdr[:]); err != nil || wire.ParseHeader(hdr[:]).Type != wire.TypeHelloAck {
		t.Errorf("%v %v", wire.ParseHeader(hdr[:]), err)
	}
}

// The credential says who an agent is; HELLO cannot say otherwise.
func TestHelloCannotNameAnotherAgent(t *testing.T) {
	h := hubtest.Start(t)
	c := dial(t, h)
	_, br, _ := ask(t, c, change(native, "Nowconnect-Agent", "")) // the secret alone is enough
	other := premise1(0)
	other.AgentID = "premise-2"
	_, err := hello(t, c, br, false, other)
	var le *tunnel.LinkError
	if !errors.As(err, &le) || le.Reason != wire.ReasonRefused || !le.Remote {
		t.Errorf("got %v", err)
	}
}

// A credential that is taken back between the upgrade and HELLO opens nothing.
func TestRevokedBetweenUpgradeAndHello(t *testing.T) {
	h := hubtest.Start(t)
	c := dial(t, h)
	_, br, _ := ask(t, c, fmt.Sprintf(native, ""))
	h.Write("new", "another-secret-of-sufficient-length")
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "$DIR/token", "$DIR/new", 1), hubtest.Layer4, hubtest.Site))
	_, _ = hello(t, c, br, false, premise1(0)) // a welcome may come before the end
	if _, err := io.Copy(io.Discard, br); err != nil && !errors.Is(err, net.ErrClosed) && !testpeer.IsReset(err) {
		t.Errorf("the link goes on: %v", err)
	}
	if ready, _ := nowconnect.Current().Hub().Ready("echo"); ready {
		t.Error("the hub has the agent")
	}
}

func TestHostileHandshakes(t *testing.T) {
	h := hubtest.Start(t)
	huge := binary.BigEndian.AppendUint32(nil, uint32(wire.TypeHello)<<24|0xffffff)
	for name, frame := range map[string][]byte{
		"length of 16 MiB":   append(huge, 0, 0, 0, 0),
		"data before hello":  wire.AppendFrame(nil, wire.TypeData, 1, []byte("x")),
		"hello that is none": wire.AppendFrame(nil, wire.TypeHello, 0, []byte("{}")),
		"no JSON":            wire.AppendFrame(nil, wire.TypeHello, 0, []byte{0xff, 0xfe}),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, h)
			_, br, _ := ask(t, c, fmt.Sprintf(native, ""))
			if _, err := c.Write(frame); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(br)
			if len(b) < wire.HeaderLen || wire.ParseHeader(b).Type != wire.TypeClose {
				t.Errorf("%q, %v: no CLOSE", b, err)
			}
		})
	}
	h.Agent(nil)
}

func TestHTTP2IsToldToUpgradeItsVersion(t *testing.T) {
	h := hubtest.New(t)
	ca := testpeer.NewCA(t)
	cert := ca.Issue(t, "127.0.0.1")
	h.Load(h.Caddyfile(hubtest.Basic, "", h.Expand("https://$HTTP {\n\tbind 127.0.0.1\n\ttls \""+cert.CertFile+"\" \""+cert.KeyFile+"\"\n\tnowconnect_agent /tunnel\n}")))
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("GET", "https://"+h.HTTP+"/tunnel", nil)
	req.Header.Set("Authorization", "Bearer "+hubtest.Token)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 || resp.StatusCode != 426 || !strings.Contains(string(b), "HTTP/2.0 cannot become a tunnel") || resp.Header.Get("Nowconnect-Version") != "1" {
		t.Errorf("%s %s: %s", resp.Proto, resp.Status, b)
	}
	if v, ok := resp.Header["Upgrade"]; ok {
		t.Errorf("HTTP/2 forbids the header Upgrade: %q", v)
	}
	// And over HTTP/1.1 on the same listener an agent gets through TLS.
	h.Agent(func(c *agent.Config) { c.URL, c.CABundle = "https://"+h.HTTP+"/tunnel", ca.File })
}

// With an access log, the hijacked connection is a wrapper of Caddy's.
func TestAccessLog(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4, strings.Replace(hubtest.Site, "bind", "log {\n\t\toutput file $DIR/access {\n\t\t\troll_disabled\n\t\t}\n\t}\n\tbind", 1)))
	stop := h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "hello")
	stop()
	access := func() string { b := *h; b.Log = h.Dir + "/access"; return b.Logged() }
	hubtest.Eventually(t, "the access log has the upgrade", func() bool { return strings.Contains(access(), `"status":101`) })
	if strings.Contains(access(), hubtest.Token) {
		t.Errorf("the access log has the token: %s", access())
	}
}

func TestNoHubNoUpgrade(t *testing.T) {
	h := hubtest.Start(t)
	if status, _ := h.AdminDo("POST", "/nowconnect/drain", "application/json", `{"timeout": "1s"}`); status != 200 {
		t.Fatalf("drain: %d", status)
	}
	resp, _, body := ask(t, dial(t, h), fmt.Sprintf(native, ""))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("Nowconnect-Version") != "1" {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
}

// Sockets that say nothing cost an agent that does nothing.
func TestSilentSocketsKeepNobodyOut(t *testing.T) {
	h := hubtest.Start(t)
	for range 1000 {
		dial(t, h)
	}
	start := time.Now()
	h.Agent(nil)
	if d := time.Since(start); d > time.Second {
		t.Errorf("connecting took %v", d)
	}
}

// Whoever holds one agent's secret can fill that agent's share of handshakes,
// and no more than that.
func TestUnfinishedHandshakesAreBounded(t *testing.T) {
	h := hubtest.New(t)
	h.Write("token2", "another-secret-of-sufficient-length")
	h.Load(h.Caddyfile(`agent_auth token {
			agent premise-1 {file.$DIR/token}
			agent premise-2 {file.$DIR/token2}
		}
		pdp allow_all
		handshake_timeout 2s
		connector echo {
			agents premise-1 premise-2
		}`, hubtest.Layer4, hubtest.Site))
	upgraded, refused := 0, 0
	for range 200 {
		switch resp, _, _ := ask(t, dial(t, h), fmt.Sprintf(native, "")); resp.StatusCode {
		case 101:
			upgraded++
		case 503:
			refused++
		default:
			t.Fatal(resp.Status)
		}
	}
	if upgraded != 2*wire.MaxLinks || refused != 200-upgraded {
		t.Errorf("%d handshakes at once, %d refused", upgraded, refused)
	}
	start := time.Now()
	h.Agent(func(c *agent.Config) { c.AgentID, c.TokenFile = "premise-2", h.Dir+"/token2" })
	if d := time.Since(start); d > time.Second {
		t.Errorf("another agent took %v", d)
	}
	// Their time runs out, and the first agent gets in as well.
	h.Agent(nil)
}

func TestHandshakesOverAllAreBounded(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, "", strings.Replace(hubtest.Site, "/tunnel", "/tunnel {\n\t\tmax_handshakes 3\n\t}", 1)))
	var held []net.Conn
	for range 3 {
		c := dial(t, h)
		if resp, _, _ := ask(t, c, fmt.Sprintf(native, "")); resp.StatusCode != 101 {
			t.Fatal(resp.Status)
		}
		held = append(held, c)
	}
	if resp, _, _ := ask(t, dial(t, h), fmt.Sprintf(native, "")); resp.StatusCode != 503 {
		t.Errorf("a fourth handshake: %s", resp.Status)
	}
	_ = held[0].Close() // gives its place back
	hubtest.Eventually(t, "there is room again", func() bool {
		c := dial(t, h)
		defer c.Close()
		resp, br, _ := ask(t, c, fmt.Sprintf(native, ""))
		if resp.StatusCode != 101 {
			return false
		}
		_, err := hello(t, c, br, false, premise1(0))
		return err == nil
	})
	// Links that are up take no place. A place is free again a moment after the
	// agent has its welcome, hence the patience.
	for i := range 4 {
		hubtest.Eventually(t, fmt.Sprintf("link %d is up", i), func() bool {
			c := dial(t, h)
			resp, br, _ := ask(t, c, fmt.Sprintf(native, ""))
			if resp.StatusCode != 101 {
				return false
			}
			_, err := hello(t, c, br, false, premise1(i))
			return err == nil
		})
	}
}
