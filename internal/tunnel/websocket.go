package tunnel

import (
	"bufio"
	crand "crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// Opcodes of RFC 6455 §5.2.
const (
	wsContinuation = 0x0
	wsBinary       = 0x2
	wsClose        = 0x8
	wsPing         = 0x9
	wsPong         = 0xA
)

// Errors of the WebSocket carrier.
var (
	errWSFrame = errors.New("websocket: malformed frame")
	errWSText  = errors.New("websocket: text message")
	errWSMask  = errors.New("websocket: wrong masking")
)

// maxWSHeader is the size of a frame header with an 8-byte length and a mask.
const maxWSHeader = 14

// messagesSize is how many bytes of messages are collected before they are
// written: three full TLS records, as in a Gather. A message of many is made and written piece by
// piece, so that it is still in the nearest cache when it is encrypted.
const messagesSize = 3 * maxTLSPlaintext

const maxTLSPlaintext = 16 << 10 // RFC 8446 §5.1

// messages holds buffers for messages. A link has one only while it writes: idle
// links hold none.
var messages = sync.Pool{New: func() any { return new([messagesSize]byte) }}

// webSocket carries frames as the payload of binary messages. Message
// boundaries mean nothing: the payloads joined are the stream of frames, so an
// intermediary may split or merge messages.
//
// It is our own and not a library's because the libraries copy through 4 KiB
// buffers and allocate per message; this costs one copy (which masking needs
// anyway) and no allocation.
type webSocket struct {
	net.Conn
	flush  func() error
	client bool // we mask; the peer does not

	// Owned by the reading goroutine.
	br    *bufio.Reader
	left  uint64 // payload bytes of the current message still to read
	mask  [4]byte
	pos   uint64 // into mask
	eof   bool   // the peer sent a close frame
	ahead aheadReader
	now   func(p []byte) (int, error) // readNow, made once
	rest  func(p []byte) (int, error) // br.Read, made once

	// Owned by the writing goroutine.
	buf  *[messagesSize]byte // from messages, nil between batches
	n    int                 // bytes of buf in use
	keys *rand.ChaCha8       // masking keys must be unpredictable, RFC 6455 §5.3

	pongMu   sync.Mutex // guards what the reader leaves for the writer
	pong     [125]byte
	pongLen  int
	owesPong bool
	owed     func() // tells the link that Flush has something to write
}

// poker is a carrier that sometimes has to write without being asked to.
type poker interface {
	// onOwed sets what the carrier calls then, from the reading goroutine;
	// Flush must follow soon.
	onOwed(f func())
}

func (c *webSocket) onOwed(f func()) {
	c.pongMu.Lock()
	c.owed = f
	c.pongMu.Unlock()
}

// NewWebSocket returns the carrier that speaks WebSocket on conn after the
// upgrade. r and flush are as for [NewNative]. client masks what it sends, as
// RFC 6455 demands of clients, and expects the peer not to.
func NewWebSocket(conn net.Conn, r io.Reader, flush func() error, client bool) Carrier {
	if r == nil {
		r = conn
	}
	c := &webSocket{Conn: conn, flush: flush, client: client}
	c.ahead, c.now = newAheadReader(conn), c.readNow
	c.br = bufio.NewReaderSize(r, 4<<10)
	c.rest = c.br.Read
	if client {
		var seed [32]byte
		_, _ = crand.Read(seed[:]) // never fails, crypto/rand says
		c.keys = rand.NewChaCha8(seed)
	}
	return c
}

// NetConn returns the connection below.
func (c *webSocket) NetConn() net.Conn { return c.Conn }

func (c *webSocket) Name() string { return WebSocketName }

// Read returns payload bytes of binary messages.
func (c *webSocket) Read(p []byte) (int, error) {
	for c.left == 0 {
		if c.eof {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if uint64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.br.Read(p)
	if err == nil && n < len(p) && c.ahead.below != nil && c.br.Buffered() == 0 {
		// What br had of the message's beginning; the rest of its TLS record is there.
		n += c.ahead.during(c.rest, p[n:])
	}
	if !c.client {
		maskBytes(p, p[:n], c.mask, c.pos)
		c.pos += uint64(n)
	}
	c.left -= uint64(n)
	return n, err
}

// readAhead reads of the current message, or of the next one, what is there.
func (c *webSocket) readAhead(p []byte) int { return c.ahead.during(c.now, p) }

// readNow is Read for when reading does not wait. It begins a new message only
// with its header all there and only when that is data.
func (c *webSocket) readNow(p []byte) (int, error) {
	if c.left == 0 {
		h, err := c.br.Peek(maxWSHeader)
		if err != nil {
			return 0, err
		}
		if op := h[0] & 0x0f; op != wsBinary && op != wsContinuation {
			return 0, nil
		}
	}
	return c.Read(p)
}

// next reads one frame header and, for control frames, the whole frame.
func (c *webSocket) next() error {
	var h [8]byte
	if err := c.readSmall(h[:2]); err != nil {
		return err
	}
	op, fin, rsv := h[0]&0x0f, h[0]&0x80 != 0, h[0]&0x70
	masked, length := h[1]&0x80 != 0, uint64(h[1]&0x7f)
	if rsv != 0 {
		return fmt.Errorf("%w: reserved bits set", errWSFrame)
	}
	if masked == c.client {
		return errWSMask
	}
	control := op >= wsClose
	if control && (length > 125 || !fin) {
		return fmt.Errorf("%w: control frame of %d bytes", errWSFrame, length)
	}
	switch length {
	case 126:
		if err := c.readSmall(h[:2]); err != nil {
			return err
		}
		length = uint64(binary.BigEndian.Uint16(h[:]))
	case 127:
		if err := c.readSmall(h[:8]); err != nil {
			return err
		}
		if length = binary.BigEndian.Uint64(h[:]); length>>63 != 0 {
			return fmt.Errorf("%w: length", errWSFrame)
		}
	}
	if masked {
		if err := c.readSmall(c.mask[:]); err != nil {
			return err
		}
		c.pos = 0
	}
	switch op {
	case wsBinary, wsContinuation:
		c.left = length // no allocation follows from it, however large
		return nil
	case wsClose, wsPing, wsPong:
		return c.control(op, int(length))
	case 0x1:
		return errWSText
	}
	return fmt.Errorf("%w: opcode %#x", errWSFrame, op)
}

// readSmall fills p without letting it escape to the heap.
func (c *webSocket) readSmall(p []byte) error {
	for i := range p {
		b, err := c.br.ReadByte()
		if err != nil {
			if i > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		p[i] = b
	}
	return nil
}

// control reads a control frame's payload and answers it.
func (c *webSocket) control(op byte, n int) error {
	var p [125]byte
	if err := c.readSmall(p[:n]); err != nil {
		return err
	}
	if !c.client {
		maskBytes(p[:], p[:n], c.mask, 0)
	}
	switch op {
	case wsClose:
		c.eof = true
		return nil
	case wsPing:
		// An intermediary or peer that pings at WebSocket level. The reader
		// must not block on a socket write: the writer answers, and if more
		// came meanwhile, the newest only (RFC 6455 §5.5.3).
		c.pongMu.Lock()
		c.pong, c.pongLen, c.owesPong = p, n, true
		owed := c.owed
		c.pongMu.Unlock()
		if owed != nil {
			owed()
		}
	}
	return nil
}

// Write adds p as one binary message.
func (c *webSocket) Write(p []byte) (int, error) {
	if err := c.message(wsBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends our direction; see native.
func (c *webSocket) CloseWrite() error { return closeWriteBelow(c.Conn) }

// Close closes the socket; see closeBelow.
func (c *webSocket) Close() error { return closeBelow(c.Conn) }

// message adds a whole message to buf, and writes buf as often as it is full.
func (c *webSocket) message(op byte, p []byte) error {
	if c.buf == nil {
		c.buf, c.n = messages.Get().(*[messagesSize]byte), 0
	} else if c.n+maxWSHeader > messagesSize {
		if err := c.write(); err != nil {
			return err
		}
	}
	key := c.header(op, len(p))
	for pos := uint64(0); len(p) > 0; {
		n := min(len(p), messagesSize-c.n)
		if c.client {
			maskBytes(c.buf[c.n:], p[:n], key, pos)
		} else {
			copy(c.buf[c.n:], p[:n])
		}
		c.n += n
		pos += uint64(n)
		if p = p[n:]; c.n == messagesSize {
			if err := c.write(); err != nil {
				return err
			}
		}
	}
	return nil
}

// header adds the header of a message of n bytes, for which there is room, and
// returns the masking key.
func (c *webSocket) header(op byte, n int) (key [4]byte) {
	var maskBit byte
	if c.client {
		maskBit = 0x80
	}
	b := append(c.buf[:c.n], 0x80|op)
	switch {
	case n <= 125:
		b = append(b, maskBit|byte(n))
	case n <= 0xffff:
		b = append(b, maskBit|126)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b = append(b, maskBit|127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if c.client {
		binary.LittleEndian.PutUint32(key[:], uint32(c.keys.Uint64()))
		b = append(b, key[:]...)
	}
	c.n = len(b)
	return key
}

// write writes what buf holds.
func (c *webSocket) write() error {
	if c.n == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf[:c.n])
	c.n = 0
	return err
}

// Flush writes the collected messages, and a pong if one is owed.
func (c *webSocket) Flush() error {
	c.pongMu.Lock()
	p, n, owes := c.pong, c.pongLen, c.owesPong
	c.owesPong = false
	c.pongMu.Unlock()
	var err error
	if owes {
		err = c.message(wsPong, p[:n])
	}
	if err == nil {
		err = c.write()
	}
	if c.buf != nil {
		messages.Put(c.buf)
		c.buf, c.n = nil, 0
	}
	if err == nil && c.flush != nil {
		err = c.flush()
	}
	return err
}

// maskPattern is how many bytes of repeated key maskBytes applies at once.
const maskPattern = 512

// maskBytes applies the masking of RFC 6455 §5.3 to src, whose first byte is
// number pos of its message, and puts the result into dst, which may be src.
func maskBytes(dst, src []byte, key [4]byte, pos uint64) {
	var k [4]byte
	for i := range k {
		k[i] = key[(pos+uint64(i))&3]
	}
	if len(src) >= maskPattern {
		var pattern [maskPattern]byte
		for n := copy(pattern[:], k[:]); n < len(pattern); {
			n += copy(pattern[n:], pattern[:n])
		}
		for len(src) > 0 { // vector instructions do this, of the standard library's
			n := subtle.XORBytes(dst, src[:min(len(src), maskPattern)], pattern[:])
			dst, src = dst[n:], src[n:]
		}
		return
	}
	k32 := binary.LittleEndian.Uint32(k[:])
	k64 := uint64(k32)<<32 | uint64(k32)
	for len(src) >= 8 {
		binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src)^k64)
		dst, src = dst[8:], src[8:]
	}
	for i := range src {
		dst[i] = src[i] ^ k[i&3]
	}
}
