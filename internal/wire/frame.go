package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the protocol version spoken by this package. HELLO and HELLO_ACK
// carry it; there is no other version yet.
const Version = 1

// Sizes in bytes.
const (
	// HeaderLen is the length of every frame's header.
	HeaderLen = 8

	// MaxFrame caps a frame after the handshake, header included. It equals
	// the largest TLS record, so that a stream of full frames puts one frame
	// into one record.
	MaxFrame = 16 << 10

	// MaxData is the most payload that one DATA frame carries.
	MaxData = MaxFrame - HeaderLen

	// MaxHello caps the payload of HELLO and HELLO_ACK, the only frames that
	// may be longer than MaxFrame. A HELLO arrives before its sender is
	// trusted, so this is also what an unknown peer can make us hold.
	MaxHello = 64 << 10

	// MaxMessage caps the text in RST and CLOSE frames.
	MaxMessage = 512
)

// Type tells what a frame is. The top bit marks frames that a receiver which
// does not know them must skip; any other unknown type ends the link.
type Type uint8

// OptionalBit marks frame types that an older peer may skip.
const OptionalBit Type = 0x80

// The frame types of version 1.
const (
	TypeHello    Type = 1  // agent to hub, first frame; JSON
	TypeHelloAck Type = 2  // hub to agent, its answer; JSON
	TypeOpen     Type = 3  // hub to agent: begin session cid; JSON
	TypeOpened   Type = 4  // agent to hub: the target accepted the connection
	TypeData     Type = 5  // both: bytes of session cid
	TypeFin      Type = 6  // both: no more bytes in this direction
	TypeRst      Type = 7  // both: session cid is over; reason and text
	TypeCredit   Type = 8  // both: permission to send so many more bytes
	TypePing     Type = 9  // both: answer at once with PONG
	TypePong     Type = 10 // both: the eight bytes of the PING
	TypeDrain    Type = 11 // both: open no more sessions on this link
	TypeClose    Type = 12 // both: the link is over; code and text
	TypeAuth     Type = 13 // agent to hub: a fresh bearer token for this link
	TypeAuthAck  Type = 14 // hub to agent, its answer; JSON
)

var typeNames = [...]string{
	TypeHello: "HELLO", TypeHelloAck: "HELLO_ACK", TypeOpen: "OPEN", TypeOpened: "OPENED",
	TypeData: "DATA", TypeFin: "FIN", TypeRst: "RST", TypeCredit: "CREDIT", TypePing: "PING",
	TypePong: "PONG", TypeDrain: "DRAIN", TypeClose: "CLOSE", TypeAuth: "AUTH", TypeAuthAck: "AUTH_ACK",
}

// String returns the name that docs/protocol.md uses.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %#02x", uint8(t))
}

// Known reports whether version 1 defines t.
func (t Type) Known() bool { return t >= TypeHello && t <= TypeAuthAck }

// Optional reports whether a receiver that does not know t must skip it.
func (t Type) Optional() bool { return t&OptionalBit != 0 }

// CID names a session within one link. The hub chooses it; 0 is the link
// itself. A cid is not reused while its session lives.
type CID uint32

// Header precedes every payload: type (1 byte), payload length (3 bytes), cid
// (4 bytes).
type Header struct {
	Type   Type
	Length uint32 // of the payload; at most 1<<24-1
	CID    CID
}

// Put writes h into the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	binary.BigEndian.PutUint32(b, uint32(h.Type)<<24|h.Length&0xffffff)
	binary.BigEndian.PutUint32(b[4:], uint32(h.CID))
}

// ParseHeader reads the header at the start of b, which must hold at least
// HeaderLen bytes. It judges nothing; see [Header.Check].
func ParseHeader(b []byte) Header {
	_ = b[HeaderLen-1]
	w := binary.BigEndian.Uint32(b)
	return Header{Type: Type(w >> 24), Length: w & 0xffffff, CID: CID(binary.BigEndian.Uint32(b[4:]))}
}

// Errors that end a link. They are wrapped with the offending header.
var (
	ErrFrameTooLong = errors.New("frame too long")
	ErrUnknownFrame = errors.New("unknown mandatory frame type")
	ErrBadFrame     = errors.New("malformed frame")
	ErrUnexpected   = errors.New("frame not allowed here")
	ErrUnknownCID   = errors.New("frame for a session that was never opened")
	ErrBadHandshake = errors.New("malformed handshake")
	ErrWrongVersion = errors.New("no common protocol version")
)

// Check reports whether a frame with this header may follow the handshake:
// whether its type is known or skippable, whether its length fits the type,
// and whether a cid is present exactly where one belongs.
func (h Header) Check() error {
	if h.HeaderTooLong() {
		return fmt.Errorf("%v with %d bytes: %w", h.Type, h.Length, ErrFrameTooLong)
	}
	if !h.Type.Known() {
		if h.Type.Optional() {
			return nil
		}
		return fmt.Errorf("%v: %w", h.Type, ErrUnknownFrame)
	}
	lo, hi, session := h.Type.shape()
	if h.Length < lo || h.Length > hi {
		return fmt.Errorf("%v with %d bytes: %w", h.Type, h.Length, ErrBadFrame)
	}
	if session != (h.CID != 0) {
		return fmt.Errorf("%v with cid %d: %w", h.Type, h.CID, ErrBadFrame)
	}
	return nil
}

// HeaderTooLong reports whether the payload exceeds what any frame after the
// handshake may carry.
func (h Header) HeaderTooLong() bool { return h.Length > MaxData }

// shape gives the payload length's bounds and whether the frame belongs to a
// session. HELLO and HELLO_ACK have none: they are not allowed again.
func (t Type) shape() (lo, hi uint32, session bool) {
	switch t {
	case TypeOpen:
		return 2, MaxData, true
	case TypeOpened, TypeFin:
		return 0, 0, true
	case TypeData:
		return 1, MaxData, true
	case TypeRst:
		return 1, 1 + MaxMessage, true
	case TypeCredit:
		return 4, 4, true
	case TypePing, TypePong:
		return 8, 8, false
	case TypeDrain:
		return 0, MaxMessage, false
	case TypeClose:
		return 1, 1 + MaxMessage, false
	case TypeAuth:
		return 1, MaxData, false
	case TypeAuthAck:
		return 2, MaxData, false
	}
	return 1, 0, false // HELLO, HELLO_ACK: no length is right
}

// AppendFrame appends a whole frame to b. The payload must be at most
// 1<<24-1 bytes; callers keep to the type's own bound.
func AppendFrame(b []byte, t Type, cid CID, payload []byte) []byte {
	b = AppendHeader(b, Header{Type: t, Length: uint32(len(payload)), CID: cid})
	return append(b, payload...)
}

// AppendHeader appends h to b.
func AppendHeader(b []byte, h Header) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(h.Type)<<24|h.Length&0xffffff)
	return binary.BigEndian.AppendUint32(b, uint32(h.CID))
}

// AppendCredit appends a CREDIT frame that permits n more bytes.
func AppendCredit(b []byte, cid CID, n uint32) []byte {
	b = AppendHeader(b, Header{Type: TypeCredit, Length: 4, CID: cid})
	return binary.BigEndian.AppendUint32(b, n)
}

// ParseCredit reads a CREDIT payload. [Header.Check] has seen to its length.
func ParseCredit(p []byte) uint32 { return binary.BigEndian.Uint32(p) }

// AppendPing appends a PING or PONG frame with an opaque token.
func AppendPing(b []byte, t Type, token uint64) []byte {
	b = AppendHeader(b, Header{Type: t, Length: 8})
	return binary.BigEndian.AppendUint64(b, token)
}

// ParsePing reads a PING or PONG payload.
func ParsePing(p []byte) uint64 { return binary.BigEndian.Uint64(p) }

// AppendReason appends an RST (cid not 0) or CLOSE (cid 0) frame. A message
// longer than MaxMessage is cut.
func AppendReason(b []byte, cid CID, r Reason, message string) []byte {
	t := TypeRst
	if cid == 0 {
		t = TypeClose
	}
	if len(message) > MaxMessage {
		message = message[:MaxMessage]
	}
	b = AppendHeader(b, Header{Type: t, Length: uint32(1 + len(message)), CID: cid})
	b = append(b, byte(r))
	return append(b, message...)
}

// ParseReason reads an RST or CLOSE payload. A reason that this version does
// not know becomes ReasonUnknown, so that the set stays closed in metrics.
func ParseReason(p []byte) (Reason, string) {
	if len(p) == 0 {
		return ReasonUnknown, ""
	}
	r := Reason(p[0])
	if !r.Known() {
		r = ReasonUnknown
	}
	return r, string(p[1:])
}
