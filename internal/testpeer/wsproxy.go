package testpeer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// WebSocketOptions shape a strict intermediary.
type WebSocketOptions struct {
	// Strip makes it forward other upgrades as plain requests, without their
	// Upgrade and Connection headers, as nginx does by default, in place of
	// answering 400.
	Strip bool
}

// WebSocketProxy is an HTTP reverse proxy that lets no upgrade pass but
// websocket, and looks into the frames to see that they are what they claim.
type WebSocketProxy struct {
	Addr string

	target              string
	strip               bool
	upgraded, refused   atomic.Int64
	fromClient, fromHub atomic.Int64

	mu         sync.Mutex
	violations []error // guarded by mu
}

// WebSocketOnlyProxy starts the intermediary in front of target, host:port of
// an HTTP server without TLS.
func WebSocketOnlyProxy(tb testing.TB, target string, o WebSocketOptions) *WebSocketProxy {
	tb.Helper()
	p := &WebSocketProxy{target: target, strip: o.Strip}
	p.Addr = serve(tb, p.handle).addr
	return p
}

// Upgraded is how many WebSocket connections passed.
func (p *WebSocketProxy) Upgraded() int { return int(p.upgraded.Load()) }

// Refused is how many other upgrades were refused or stripped.
func (p *WebSocketProxy) Refused() int { return int(p.refused.Load()) }

// Messages is how many data frames passed from clients and from the target.
func (p *WebSocketProxy) Messages() (fromClients, fromTarget int) {
	return int(p.fromClient.Load()), int(p.fromHub.Load())
}

// Violations lists what broke RFC 6455, after which the connection was cut.
func (p *WebSocketProxy) Violations() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]error(nil), p.violations...)
}

func (p *WebSocketProxy) handle(c *net.TCPConn) {
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	upgrade := req.Header.Get("Upgrade")
	if upgrade != "" && !strings.EqualFold(upgrade, "websocket") {
		p.refused.Add(1)
		if !p.strip {
			answer(c, req, http.StatusBadRequest, nil, "only websocket upgrades pass here\n")
			return
		}
		req.Header.Del("Upgrade")
		req.Header.Del("Connection")
		upgrade = ""
	}
	t, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		answer(c, req, http.StatusBadGateway, nil, "")
		return
	}
	defer t.Close()
	if upgrade == "" {
		req.Close = true // one request per connection is enough here
	}
	if err := req.Write(t); err != nil {
		return
	}
	tbr := bufio.NewReader(t)
	resp, err := http.ReadResponse(tbr, req)
	if err != nil {
		answer(c, req, http.StatusBadGateway, nil, "")
		return
	}
	defer resp.Body.Close()
	if err := resp.Write(c); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return
	}
	p.upgraded.Add(1)
	p.relay(c, br, t.(*net.TCPConn), tbr)
}

func (p *WebSocketProxy) relay(c *net.TCPConn, cr *bufio.Reader, t *net.TCPConn, tr *bufio.Reader) {
	var wg sync.WaitGroup
	move := func(dst *net.TCPConn, src *bufio.Reader, masked bool, count *atomic.Int64) {
		err := relayFrames(dst, src, masked, count)
		if errors.Is(err, errWebSocket) {
			p.mu.Lock()
			p.violations = append(p.violations, err)
			p.mu.Unlock()
		}
		if err == nil {
			dst.CloseWrite() // an error means that dst is gone, which its reader tells
			return
		}
		reset(c)
		reset(t)
	}
	wg.Go(func() { move(t, cr, true, &p.fromClient) })
	wg.Go(func() { move(c, tr, false, &p.fromHub) })
	wg.Wait()
}

var errWebSocket = errors.New("not RFC 6455")

// relayFrames copies frames and checks each header. It returns nil at the end
// of the stream between two frames.
func relayFrames(dst io.Writer, src *bufio.Reader, masked bool, count *atomic.Int64) error {
	for fragments := false; ; {
		head, length, err := readFrameHeader(src, masked)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		fin, op := head[0]&0x80 != 0, head[0]&0x0f
		switch {
		case op >= 8:
		case fragments != (op == 0):
			return fmt.Errorf("opcode %d out of sequence: %w", op, errWebSocket)
		default:
			fragments = !fin
			count.Add(1)
		}
		if _, err := dst.Write(head); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, int64(length)); err != nil {
			return err
		}
	}
}

// readFrameHeader returns a frame's header as it came, mask included, and the
// length of the payload after it.
func readFrameHeader(src *bufio.Reader, masked bool) (head []byte, length uint64, err error) {
	head = make([]byte, 2, 14)
	if _, err := io.ReadFull(src, head); err != nil {
		return nil, 0, err
	}
	bad := func(format string, args ...any) ([]byte, uint64, error) {
		return nil, 0, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errWebSocket)
	}
	op, length := head[0]&0x0f, uint64(head[1]&0x7f)
	if head[0]&0x70 != 0 {
		return bad("reserved bits %#x", head[0]&0x70)
	}
	if op > 2 && op < 8 || op > 10 {
		return bad("opcode %d", op)
	}
	if (head[1]&0x80 != 0) != masked {
		return bad("mask bit is %v", !masked)
	}
	if op >= 8 && (length > 125 || head[0]&0x80 == 0) {
		return bad("control frame of length code %d, first byte %#x", length, head[0])
	}
	more := map[uint64]int{126: 2, 127: 8}[length]
	if masked {
		more += 4
	}
	head = head[:2+more]
	if _, err := io.ReadFull(src, head[2:]); err != nil {
		return nil, 0, err
	}
	switch length {
	case 126:
		if length = uint64(binary.BigEndian.Uint16(head[2:])); length < 126 {
			return bad("length %d in two bytes", length)
		}
	case 127:
		if length = binary.BigEndian.Uint64(head[2:]); length < 1<<16 || length >= 1<<63 {
			return bad("length %d in eight bytes", length)
		}
	}
	return head, length, nil
}
