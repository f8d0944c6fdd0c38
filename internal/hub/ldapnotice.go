package hub

import (
	"sync"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// LDAP result codes of RFC 4511 appendix A that a notice carries.
const (
	ldapInsufficientAccessRights = 50
	ldapBusy                     = 51
	ldapUnavailable              = 52
)

// notice encodes a Notice of Disconnection (RFC 4511 §4.4.1): an
// ExtendedResponse with message ID 0, the code, no DN, the text, and the name
// 1.3.6.1.4.1.1466.20036.
func notice(code byte, text string) []byte {
	const oid = "1.3.6.1.4.1.1466.20036"
	body := []byte{0x0a, 1, code, 0x04, 0}                      // resultCode, matchedDN
	body = append(append(body, 0x04, byte(len(text))), text...) // diagnosticMessage
	body = append(append(body, 0x8a, byte(len(oid))), oid...)   // responseName [10]
	msg := []byte{0x02, 1, 0, 0x78, byte(len(body))}            // messageID 0, [APPLICATION 24]
	msg = append(msg, body...)
	return append([]byte{0x30, byte(len(msg))}, msg...)
}

// The notices by reason. The text tells a client's operator where to look and
// nothing about the policy.
var notices = map[wire.Reason][]byte{
	wire.ReasonDenied:         notice(ldapInsufficientAccessRights, "NowConnect: access denied"),
	wire.ReasonRevoked:        notice(ldapInsufficientAccessRights, "NowConnect: access revoked"),
	wire.ReasonLimit:          notice(ldapBusy, "NowConnect: connection limit reached"),
	wire.ReasonPDPError:       notice(ldapUnavailable, "NowConnect: policy unavailable"),
	wire.ReasonNoAgent:        notice(ldapUnavailable, "NowConnect: no agent connected"),
	wire.ReasonConnectFailed:  notice(ldapUnavailable, "NowConnect: directory unreachable"),
	wire.ReasonConnectTimeout: notice(ldapUnavailable, "NowConnect: directory unreachable"),
	wire.ReasonLinkLost:       notice(ldapUnavailable, "NowConnect: link to agent lost"),
	wire.ReasonOverflow:       notice(ldapUnavailable, "NowConnect: link to agent failed"),
	wire.ReasonDraining:       notice(ldapUnavailable, "NowConnect: shutting down"),
	wire.ReasonShutdown:       notice(ldapUnavailable, "NowConnect: shutting down"),
	wire.ReasonIdle:           notice(ldapUnavailable, "NowConnect: idle timeout"),
}

// ldapWatch follows where LDAP messages begin and end, so that a notice is
// only sent between two: in the middle of one, or inside TLS, a client would
// take its bytes for part of something else.
type ldapWatch struct {
	mu      sync.Mutex // FromLocal and ToLocal come from different goroutines
	started bool       // the client has sent its first byte
	opaque  bool       // not LDAP in the clear: TLS from the start, or after StartTLS
	left    uint64     // bytes of the current message towards the client still to come
	head    []byte     // an incomplete tag and length
}

func newLDAPWatch(prefix []byte) *ldapWatch {
	w := &ldapWatch{head: make([]byte, 0, 10)}
	w.FromLocal(prefix)
	return w
}

// FromLocal looks at the client's first byte: an LDAP message is a SEQUENCE.
func (w *ldapWatch) FromLocal(p []byte) {
	w.mu.Lock()
	if !w.started && len(p) > 0 {
		w.started = true
		w.opaque = p[0] != 0x30
	}
	w.mu.Unlock()
}

// ToLocal follows the messages towards the client.
func (w *ldapWatch) ToLocal(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(p) > 0 && !w.opaque {
		if w.left > 0 {
			n := min(w.left, uint64(len(p)))
			w.left -= n
			p = p[n:]
			continue
		}
		w.head = append(w.head, p[0])
		p = p[1:]
		w.header()
	}
}

// header reads the tag and length in head once they are complete.
func (w *ldapWatch) header() {
	if w.head[0] != 0x30 {
		w.opaque = true // StartTLS has begun
		return
	}
	if len(w.head) < 2 {
		return
	}
	switch n := int(w.head[1]); {
	case n < 0x80:
		w.left = uint64(n)
	case n == 0x80 || n > 0x88:
		w.opaque = true // indefinite or absurd: RFC 4511 §5.1 forbids it
		return
	case len(w.head) < 2+n-0x80:
		return
	default:
		for _, b := range w.head[2:] {
			w.left = w.left<<8 | uint64(b)
		}
	}
	w.head = w.head[:0]
}

// farewell returns the notice for r if the client can understand one now.
func (w *ldapWatch) farewell(r wire.Reason) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opaque || w.left > 0 || len(w.head) > 0 {
		return nil
	}
	return notices[r]
}
