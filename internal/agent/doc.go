// Package agent owns the on-premise end of the tunnel: it dials the hub,
// keeps its links alive, and connects sessions to the targets that its own
// configuration maps.
//
// Invariants:
//
//   - It dials out and never listens, but for the health port. A connector
//     that its own configuration does not map is refused, whatever the hub
//     asks for.
//   - The hub's certificate is always verified. A plain HTTP hub that is not
//     loopback is refused unless the operator said insecure.
//   - A secret is read from its file at each connect and appears in no log
//     line, error or argument list.
//   - Each goroutine is started by a function that waits for it; Run returns
//     only when all are gone.
//
// The package knows no Caddy and no particular policy. Run walks through
// run.go (links and backoff), dial.go (TCP, proxy, TLS), upgrade.go (HTTP to
// frames), serve.go (one session) and drain.go (leaving).
package agent
