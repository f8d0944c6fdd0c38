// Package l4nowconnect is the layer-4 handler "nowconnect": it takes a client's
// accepted connection and gives it, with what is known about the client, to the
// hub. It owns the connection until both directions have ended.
//
// Invariants:
//
//   - Handle returns only when nobody reads or writes the connection any more,
//     because caddy-l4 then closes it and reuses its buffer.
//   - No panic leaves Handle: caddy-l4 does not recover, and the process would end.
//   - An identity comes from a certificate that TLS verified, or it is the
//     source address. Nothing that a client merely says becomes one.
//   - A handler instance may be stale, so hub, policy and loggers are those of
//     the configuration in force when the connection comes.
package l4nowconnect
