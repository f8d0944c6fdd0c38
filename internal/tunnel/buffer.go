package tunnel

import (
	"sync"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Sizes of what a session reads from its local socket at once. Each is a whole
// number of slots of one frame, so that several full frames lie end to end in
// the buffer exactly as they go onto the wire: read once, copied never.
const (
	smallQuantum = 4 << 10
	maxQuantum   = maxParts * wire.MaxFrame
)

// frames is a buffer of encoded DATA frames of one session.
type frames struct {
	s *Session
	b []byte // whole buffer
	n int    // bytes of b in use; set by seal
	p int    // payload bytes in use; set by seal
}

var (
	smallFrames = sync.Pool{New: func() any { return &frames{b: make([]byte, smallQuantum)} }}
	frameFrames = sync.Pool{New: func() any { return &frames{b: make([]byte, wire.MaxFrame)} }}
	largeFrames = sync.Pool{New: func() any { return &frames{b: make([]byte, maxQuantum)} }}
)

// getFrames returns a buffer with room for about want payload bytes.
func getFrames(want int) *frames {
	switch {
	case want <= smallQuantum-wire.HeaderLen:
		return smallFrames.Get().(*frames)
	case want <= wire.MaxData:
		return frameFrames.Get().(*frames)
	}
	return largeFrames.Get().(*frames)
}

func (f *frames) free() {
	f.s, f.n, f.p = nil, 0, 0
	switch len(f.b) {
	case smallQuantum:
		smallFrames.Put(f)
	case wire.MaxFrame:
		frameFrames.Put(f)
	default:
		largeFrames.Put(f)
	}
}

// slots returns the payload areas of the buffer, at most max bytes of them.
func (f *frames) slots(dst [][]byte, max int) [][]byte {
	for off := 0; off < len(f.b) && max > 0; off += wire.MaxFrame {
		end := min(off+wire.MaxFrame, len(f.b))
		area := f.b[off+wire.HeaderLen : end]
		if len(area) > max {
			area = area[:max]
		}
		max -= len(area)
		dst = append(dst, area)
	}
	return dst
}

// seal writes the headers for n payload bytes that were read into the slots.
func (f *frames) seal(cid wire.CID, n int) {
	f.p = n
	off := 0
	for n > 0 {
		size := min(n, wire.MaxData, len(f.b)-off-wire.HeaderLen)
		wire.Header{Type: wire.TypeData, Length: uint32(size), CID: cid}.Put(f.b[off:])
		off += wire.HeaderLen + size
		n -= size
	}
	f.n = off
}

// bytes returns the encoded frames.
func (f *frames) bytes() []byte { return f.b[:f.n] }

// chunkSize is the unit of a session's receive queue: what metrics call a
// frame. Small frames are packed into one chunk, so that the memory of a queue
// is its bytes and not its number of frames.
const chunkSize = wire.MaxFrame

type chunk struct {
	next *chunk
	r, w int
	b    [chunkSize]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// queue is a FIFO of bytes in pooled chunks. The zero value is empty.
type queue struct {
	head, tail *chunk
	bytes      int
}

// push copies p to the end.
func (q *queue) push(p []byte) {
	q.bytes += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == chunkSize {
			c := chunks.Get().(*chunk)
			c.next, c.r, c.w = nil, 0, 0
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

// pop removes the first chunk; the caller frees it. It returns nil when empty.
func (q *queue) pop() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	q.bytes -= c.w - c.r
	return c
}

// drainChunks is how many chunks popSome takes: one write of 64 KiB.
const drainChunks = 4

// popSome removes the first few chunks, linked; the caller frees them. It
// returns nil when empty.
func (q *queue) popSome() *chunk {
	first := q.pop()
	if first == nil {
		return nil
	}
	last := first
	for range drainChunks - 1 {
		c := q.pop()
		last.next = c
		if c == nil {
			break
		}
		last = c
	}
	last.next = nil
	return first
}

// consume removes n bytes from the first chunk, which holds at least as many.
func (q *queue) consume(n int) {
	q.head.r += n
	q.bytes -= n
	if q.head.r == q.head.w {
		chunks.Put(q.pop())
	}
}

// clear frees everything.
func (q *queue) clear() {
	for c := q.pop(); c != nil; c = q.pop() {
		chunks.Put(c)
	}
}
