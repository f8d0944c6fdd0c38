package testpeer

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// upgrader is an HTTP server that agrees to any upgrade and then echoes bytes;
// other requests get 426 as from our hub.
func upgrader(t *testing.T) *Target {
	t.Helper()
	return Serve(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		up := req.Header.Get("Upgrade")
		if up == "" {
			answer(c, req, http.StatusUpgradeRequired, http.Header{"Nowconnect-Version": {"1"}}, "upgrade, please\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+up+"\r\n\r\n")
		io.Copy(c, br)
	})
}

func upgradeTo(t *testing.T, addr, protocol string) (*net.TCPConn, *bufio.Reader, *http.Response) {
	t.Helper()
	c := dial(t, addr)
	io.WriteString(c, "GET /tunnel HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return c, br, resp
}

func TestWebSocketOnlyProxyRefusesOtherUpgrades(t *testing.T) {
	p := WebSocketOnlyProxy(t, upgrader(t).Addr, WebSocketOptions{})
	_, _, resp := upgradeTo(t, p.Addr, "nowconnect")
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Nowconnect-Version") != "" {
		t.Errorf("%s %v, want 400 that is not the hub's", resp.Status, resp.Header)
	}
	if p.Refused() != 1 || p.Upgraded() != 0 {
		t.Errorf("refused %d, upgraded %d", p.Refused(), p.Upgraded())
	}
}

func TestWebSocketOnlyProxyStrips(t *testing.T) {
	p := WebSocketOnlyProxy(t, upgrader(t).Addr, WebSocketOptions{Strip: true})
	_, _, resp := upgradeTo(t, p.Addr, "nowconnect")
	if resp.StatusCode != http.StatusUpgradeRequired || resp.Header.Get("Nowconnect-Version") != "1" {
		t.Errorf("%s %v, want the hub's 426", resp.Status, resp.Header)
	}
}

func TestWebSocketOnlyProxyPassesFrames(t *testing.T) {
	// An echo returns masked frames, which a server must not send: from the
	// client's side all is well until the first one comes back.
	p := WebSocketOnlyProxy(t, upgrader(t).Addr, WebSocketOptions{})
	c, br, resp := upgradeTo(t, p.Addr, "WebSocket")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	c.Write([]byte{0x82, 0x81, 1, 2, 3, 4, 'x'})
	if _, err := br.ReadByte(); !IsReset(err) {
		t.Errorf("read: %v, want the connection cut", err)
	}
	if in, out := p.Messages(); in != 1 || out != 0 || p.Upgraded() != 1 {
		t.Errorf("%d messages in, %d out, %d upgrades", in, out, p.Upgraded())
	}
	if !eventually(5*time.Second, nil, func() bool { return len(p.Violations()) == 1 }) || !strings.Contains(p.Violations()[0].Error(), "mask") {
		t.Errorf("violations %v, want the mask", p.Violations())
	}
}

func TestRelayFrames(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 70000)
	frame := func(parts ...any) (out []byte) {
		for _, p := range parts {
			switch p := p.(type) {
			case rune:
				out = append(out, byte(p))
			case int:
				out = append(out, byte(p))
			case []byte:
				out = append(out, p...)
			}
		}
		return out
	}
	for name, tt := range map[string]struct {
		in     []byte
		masked bool
		count  int64
		bad    string
	}{
		"small":                {frame(0x82, 3, []byte("abc")), false, 1, ""},
		"16-bit length":        {frame(0x82, 126, 0, 200, long[:200]), false, 1, ""},
		"64-bit length":        {frame(0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70, long), false, 1, ""},
		"masked":               {frame(0x82, 0x81, 1, 2, 3, 4, 'x'), true, 1, ""},
		"fragments and a ping": {frame(0x02, 1, 'a', 0x89, 1, 'p', 0x80, 1, 'b'), false, 2, ""},
		"continuation first":   {frame(0x80, 1, 'a'), false, 0, "out of sequence"},
		"text in a message":    {frame(0x02, 1, 'a', 0x81, 1, 'b'), false, 1, "out of sequence"},
		"reserved bit":         {frame(0xc2, 1, 'a'), false, 0, "reserved"},
		"reserved opcode":      {frame(0x83, 1, 'a'), false, 0, "opcode 3"},
		"unmasked client":      {frame(0x82, 1, 'a'), true, 0, "mask"},
		"long ping":            {frame(0x89, 126, 0, 200, long[:200]), false, 0, "control frame"},
		"fragmented ping":      {frame(0x09, 1, 'a'), false, 0, "control frame"},
		"wasteful 16 bits":     {frame(0x82, 126, 0, 3, []byte("abc")), false, 0, "two bytes"},
		"wasteful 64 bits":     {frame(0x82, 127, 0, 0, 0, 0, 0, 0, 0, 3, []byte("abc")), false, 0, "eight bytes"},
		"length with sign":     {frame(0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 3), false, 0, "eight bytes"},
		"cut in the header":    {frame(0x82), false, 0, "unexpected EOF"},
		"cut in the payload":   {frame(0x82, 3, 'a'), false, 1, "EOF"},
	} {
		var count atomic.Int64
		var out bytes.Buffer
		err := relayFrames(&out, bufio.NewReader(bytes.NewReader(tt.in)), tt.masked, &count)
		if tt.bad == "" && (err != nil || !bytes.Equal(out.Bytes(), tt.in)) {
			t.Errorf("%s: error %v, or changed on the way", name, err)
		}
		if tt.bad != "" && (err == nil || !strings.Contains(err.Error(), tt.bad)) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.bad)
		}
		if count.Load() != tt.count {
			t.Errorf("%s: %d messages, want %d", name, count.Load(), tt.count)
		}
	}
}
