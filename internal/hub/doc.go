// Package hub knows which agent serves what: it takes in agents, admits and
// places client connections, and keeps both while configurations come and go.
// It owns limits, drain and the judging of live sessions; it knows no Caddy.
//
// Invariants:
//
//   - A session exists in the hub before policy is asked about it, so that a
//     change of policy cannot slip between the answer and the first byte.
//   - A connector reaches an agent only if the configuration names that agent
//     for it and the agent announced it: two keys.
//   - Who an agent is comes from its credential, never from what it says.
//   - Nothing but [Hub.Apply] changes the configuration, and a connection is
//     always judged by the one in force, whichever listener accepted it.
package hub
