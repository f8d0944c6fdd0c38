package ldapgroup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync/atomic"
)

// errTooLarge is a message that nobody should have to hold in memory.
var errTooLarge = errors.New("answer is larger than allowed")

var errMalformed = errors.New("answer is malformed")

const (
	// maxElements bounds the BER elements of one message: the decoder spends
	// some 300 bytes on each, however short it is. A member takes one.
	maxElements = 1 << 20
	// maxDepth bounds their nesting. LDAP messages of servers have eight levels.
	maxDepth = 32
)

// guard stands between the connection and the BER decoder, which believes any
// length it reads. It hands out a message only after it has seen all of it:
// within the size allowed, well nested, and of a bounded number of elements.
// A claim of 1 GB costs nothing.
type guard struct {
	net.Conn
	in     *bufio.Reader
	limit  int // bytes of one message
	budget atomic.Int64

	// Owned by the one goroutine that reads.
	message []byte // reused while small
	rest    []byte // of message, not handed out yet
	err     error

	fault atomic.Pointer[error] // why the guard ended the stream
}

// keepMessage is the largest buffer kept for the next message.
const keepMessage = 64 << 10

func newGuard(c net.Conn, limit int) *guard {
	g := &guard{Conn: c, in: bufio.NewReaderSize(c, 16<<10), limit: limit}
	g.grant()
	return g
}

// grant allows the server to send as much again: one operation's worth.
func (g *guard) grant() { g.budget.Store(2 * int64(g.limit)) }

// Read hands out checked bytes. An error of the guard itself lasts.
func (g *guard) Read(p []byte) (int, error) {
	if len(g.rest) == 0 {
		if g.err == nil {
			g.err = g.next()
		}
		if g.err != nil {
			return 0, g.err
		}
	}
	n := copy(p, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// faulted is why the guard ended the stream, nil when it did not.
func (g *guard) faulted() error {
	if p := g.fault.Load(); p != nil {
		return *p
	}
	return nil
}

func (g *guard) next() error {
	err := g.fill()
	if errors.Is(err, errTooLarge) || errors.Is(err, errMalformed) {
		g.fault.Store(&err)
	}
	return err
}

// fill reads the next message and checks it.
func (g *guard) fill() error {
	head, length, err := readHead(g.in)
	if err != nil {
		return err
	}
	if length > g.limit {
		return fmt.Errorf("%w: %d bytes", errTooLarge, length)
	}
	if g.budget.Add(-int64(length+len(head))) < 0 {
		return fmt.Errorf("%w: too many messages for one operation", errTooLarge)
	}
	g.message = append(g.message[:0], head...)
	if err := g.read(length); err != nil {
		return err
	}
	left := maxElements
	if err := checkBER(g.message[len(head):], maxDepth, &left); err != nil {
		return err
	}
	g.rest = g.message
	if cap(g.message) > keepMessage {
		g.message = nil
	}
	return nil
}

// read appends n bytes to the message. It grows with what arrives, not with
// what was announced.
func (g *guard) read(n int) error {
	for n > 0 {
		step := min(n, max(keepMessage/4, len(g.message)))
		at := len(g.message)
		g.message = append(g.message, make([]byte, step)...)
		if _, err := io.ReadFull(g.in, g.message[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		n -= step
	}
	return nil
}

// sequenceTag opens every LDAP message.
const sequenceTag = 0x30

// readHead reads the tag and length of a message.
func readHead(in *bufio.Reader) (head []byte, length int, err error) {
	tag, err := in.ReadByte()
	if err != nil {
		return nil, 0, err
	}
	if tag != sequenceTag {
		return nil, 0, fmt.Errorf("%w: tag %#x instead of a message", errMalformed, tag)
	}
	first, err := in.ReadByte()
	if err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	head = []byte{tag, first}
	if first < 0x80 {
		return head, int(first), nil
	}
	n := int(first & 0x7f)
	if n == 0 || n > 4 {
		return nil, 0, fmt.Errorf("%w: length of %d bytes", errTooLarge, n)
	}
	var b [4]byte
	if _, err := io.ReadFull(in, b[4-n:]); err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	size := binary.BigEndian.Uint32(b[:])
	if size > math.MaxInt32 {
		return nil, 0, fmt.Errorf("%w: %d bytes", errTooLarge, size)
	}
	return append(head, b[4-n:]...), int(size), nil
}

// checkBER walks the elements in b. left counts down the elements allowed.
func checkBER(b []byte, depth int, left *int) error {
	if depth == 0 {
		return fmt.Errorf("%w: nested too deeply", errMalformed)
	}
	for len(b) > 0 {
		if *left--; *left < 0 {
			return fmt.Errorf("%w: more than %d elements", errTooLarge, maxElements)
		}
		tag, content, rest, err := element(b)
		if err != nil {
			return err
		}
		if tag&0x20 != 0 {
			if err := checkBER(content, depth-1, left); err != nil {
				return err
			}
		}
		b = rest
	}
	return nil
}

// element splits the first element off b. LDAP needs neither tags above 30 nor
// indefinite lengths.
func element(b []byte) (tag byte, content, rest []byte, err error) {
	if len(b) < 2 || b[0]&0x1f == 0x1f {
		return 0, nil, nil, errMalformed
	}
	tag = b[0]
	length, b := int(b[1]), b[2:]
	if length >= 0x80 {
		n := length & 0x7f
		if n == 0 || n > 4 || len(b) < n {
			return 0, nil, nil, errMalformed
		}
		length = 0
		for _, c := range b[:n] {
			length = length<<8 | int(c)
		}
		b = b[n:]
	}
	if length < 0 || length > len(b) {
		return 0, nil, nil, errMalformed
	}
	return tag, b[:length], b[length:], nil
}
