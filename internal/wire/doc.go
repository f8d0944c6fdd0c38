// Package wire is the tunnel protocol as pure functions on bytes: frame
// headers, frame payloads, and the closed set of reasons. It performs no I/O,
// keeps no state and imports only the standard library.
//
// Invariants:
//
//   - Nothing is allocated from a length that a peer announced before that
//     length has been checked against its cap.
//   - Every decoder accepts any input without panicking; what it accepts, the
//     encoder reproduces.
//   - All integers are unsigned and big endian.
//
// docs/protocol.md specifies the same bytes for other implementations and
// moves in step with this package.
package wire
