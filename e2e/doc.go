// Package e2e owns the proof that the parts work together: its tests put real
// clients in front of a real Caddy with our modules, a real agent behind it,
// and real servers behind the agent. It ships nothing.
//
// Invariants:
//
//   - Nothing of ours is replaced: connections go through layer4, the hub, the
//     agent endpoint and the agent as in production, and metrics are read from
//     /metrics over HTTP. Only clients, targets and the network between are
//     made for the test, by internal/testpeer.
//   - There is one Caddy per process, as Caddy's own state demands, so tests
//     here do not run in parallel.
//   - No test guesses how long something takes: it waits for what it expects,
//     up to a deadline that only a fault reaches.
package e2e
