// Package obs owns the Prometheus series of hub and agent: their names, their
// labels, and how they are recorded and read.
//
// Invariants:
//
//   - Recording costs no allocation and no lookup: a connector's series are
//     resolved once, by [Metrics.Connector], and kept in its struct.
//   - Every series of a connector or agent exists, at zero, from the moment it
//     is configured, and nothing resets while the process lives. A reload
//     registers a new collector over the same values.
//   - What is a state and not an event (live sessions, queues, links) is not
//     recorded at all: it is read from its owner when somebody scrapes, so it
//     cannot drift from the truth.
//   - Label values are configured names and closed sets. Nothing that a client
//     or an agent sends becomes a label.
//
// docs/reference/metrics.md lists the hub's names; they are a contract with dashboards
// and alerts.
package obs
