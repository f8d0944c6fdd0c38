// Package nowconnect is the Caddy app "nowconnect". It owns the configuration
// and the process-wide hub, and is the only module package that its siblings
// import.
//
// Invariants:
//
//   - There is one hub per process. It outlives reloads and closes when the app
//     has left the configuration.
//   - A configuration takes effect when all of it has started, never before,
//     and one that fails to load changes nothing.
//   - What holds for a new connection is asked of [Current], per connection: a
//     handler instance that Caddy has long replaced still sees today's policy.
//   - Nothing loads without somebody having decided who agents are (agent_auth)
//     and who may connect (pdp).
package nowconnect
