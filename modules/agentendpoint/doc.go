// Package agentendpoint is the HTTP handler "nowconnect_agent", the place where
// agents connect. It owns a request from its first header to the moment when
// its connection is a link, and then lends its goroutine to that link.
//
// Invariants:
//
//   - Nobody is trusted before [nowconnect.App.Authenticate] has answered; no
//     other header says who an agent is.
//   - Every answer carries Nowconnect-Version, so that an agent can tell this
//     hub's refusal from one by something in between.
//   - What a stranger can make us hold is bounded in number, time and bytes,
//     and what a stranger can make us log is bounded too.
//   - The connection, once a link, outlives the configuration it came in under.
package agentendpoint
