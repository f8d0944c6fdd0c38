package agent

import (
	"bufio"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/nowconnect/nowconnect/internal/tunnel"
)

// Words of the upgrade; docs/protocol.md has them.
const (
	headerVersion   = "Nowconnect-Version"
	headerAgent     = "Nowconnect-Agent"
	protocolVersion = "1"
	subProtocol     = "nowconnect.v1"
)

// shakeHTTP asks the hub to turn the connection into a carrier. A nil answer
// means that it did, and that br continues with the carrier's bytes.
// An empty token is none: a client certificate says who we are.
func (d *dialer) shakeHTTP(conn net.Conn, br *bufio.Reader, carrier, token string) *ConnectError {
	req := &http.Request{
		Method: http.MethodGet,
		URL:    &url.URL{Opaque: d.hub.path},
		Host:   d.hub.header,
		Header: http.Header{
			"User-Agent": {d.cfg.Software},
			"Connection": {"Upgrade"},
			headerAgent:  {d.cfg.AgentID},
		},
	}
	if token != "" {
		req.Header["Authorization"] = []string{"Bearer " + token}
	}
	var key string
	if carrier == CarrierWebSocket {
		key = newWebSocketKey()
		req.Header["Upgrade"] = []string{tunnel.WebSocketName}
		req.Header["Sec-WebSocket-Version"] = []string{"13"}
		req.Header["Sec-WebSocket-Key"] = []string{key}
		req.Header["Sec-WebSocket-Protocol"] = []string{subProtocol}
	} else {
		req.Header["Upgrade"] = []string{tunnel.NativeName}
		req.Header[headerVersion] = []string{protocolVersion}
	}
	if err := req.Write(conn); err != nil {
		return &ConnectError{Err: fmt.Errorf("send request: %w", err)}
	}
	resp, err := readAnswer(br, req)
	if err != nil {
		return &ConnectError{Err: fmt.Errorf("no answer: %w", err)}
	}
	if err := judgeAnswer(resp, carrier, key); err != nil {
		return &ConnectError{Status: resp.StatusCode, FromHub: resp.Header.Get(headerVersion) != "", Err: err}
	}
	return nil
}

// readAnswer reads the final answer, past any interim ones.
func readAnswer(br *bufio.Reader, req *http.Request) (*http.Response, error) {
	for range 5 {
		resp, err := http.ReadResponse(br, req)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, errors.New("the connection was closed")
		}
		if err != nil || resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode >= 200 {
			return resp, err
		}
	}
	return nil, errors.New("interim answers without end")
}

// judgeAnswer reports why an answer is not the upgrade that was asked for.
func judgeAnswer(resp *http.Response, carrier, key string) error {
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return refusal(resp)
	}
	if v := resp.Header.Get(headerVersion); v != "" && v != protocolVersion {
		return fmt.Errorf("the hub speaks version %q of the protocol, this agent %s", v, protocolVersion)
	}
	want := tunnel.NativeName
	if carrier == CarrierWebSocket {
		want = tunnel.WebSocketName
	}
	if got := resp.Header.Get("Upgrade"); !strings.EqualFold(got, want) {
		return fmt.Errorf("switched to %q instead of %q", oneLine(got), want)
	}
	if carrier != CarrierWebSocket {
		return nil
	}
	if resp.Header.Get("Sec-WebSocket-Accept") != webSocketAccept(key) {
		return errors.New("the websocket answer does not fit our key: an answer from a cache?")
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != subProtocol {
		return fmt.Errorf("the websocket speaks %q instead of %q: is this the agent endpoint?", oneLine(got), subProtocol)
	}
	return nil
}

// refusal words an answer other than 101. Only our hub's own text is worth
// repeating; what stands before it answers with pages.
func refusal(resp *http.Response) error {
	if resp.Header.Get(headerVersion) == "" {
		err := fmt.Errorf("answer %d does not come from a NowConnect hub", resp.StatusCode)
		if server := oneLine(resp.Header.Get("Server")); server != "" {
			err = fmt.Errorf("%w but from %q", err, server)
		}
		return err
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // a text cut short is still worth showing
	err := fmt.Errorf("the hub answers %d", resp.StatusCode)
	if s := oneLine(string(text)); s != "" {
		err = fmt.Errorf("%w: %s", err, s)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		err = fmt.Errorf("%w (does the token file hold the token that the hub has for this agent id?)", err)
	}
	return err
}

// newWebSocketKey returns a Sec-WebSocket-Key: RFC 6455 §4.1, item 7.
func newWebSocketKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it would end the program
	return base64.StdEncoding.EncodeToString(b[:])
}

// webSocketAccept is the answer that proves the server read the key: RFC 6455
// §4.2.2, item 5.4. SHA-1 is the RFC's choice and protects nothing here.
func webSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
