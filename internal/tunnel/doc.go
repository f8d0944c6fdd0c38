// Package tunnel runs one link between an agent and a hub and the sessions on
// it, for both ends. It owns framing, scheduling, flow control and liveness;
// it knows no Caddy, no policy and no configuration file.
//
// Invariants:
//
//   - The goroutine that reads a link never blocks on anything but that read:
//     bytes for a local socket that is full wait in the session's own queue,
//     and what it has to answer goes to the writer.
//   - A session's queue never holds more than the credit we granted. A peer
//     that sends more has its session reset with [wire.ReasonOverflow].
//   - Bytes of one direction keep their order; FIN follows the last of them;
//     RST may overtake them, as TCP's does.
//   - An idle session holds no buffer and, beside the goroutine that called
//     Run or Accept, no goroutine.
//
// Where the time goes, and why it is built this way: docs/performance.md.
package tunnel
