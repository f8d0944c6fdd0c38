// Package demodir is a small LDAP directory in memory: people, three groups,
// an administrator and a reader. `nowconnect demo` puts it behind the agent,
// so that the tunnel can be tried without a directory server at hand, and
// tests use it where they need a target that speaks LDAP. It is not a
// directory to keep anything in.
//
// Invariants:
//
//   - It listens on loopback addresses only. Its passwords are printed in the
//     documentation, so nothing else may reach it.
//   - The set of entries is fixed when the server starts; only the member and
//     description attributes of groups change. A Modify is applied whole or
//     not at all.
//   - The requests of one connection are answered in the order they arrived.
//   - Close ends every connection and returns when every goroutine is gone.
//
// It is written on go-asn1-ber alone because github.com/jimlambrt/gldap
// v0.1.14, tried first, joins the values of a Modify into one string (adding
// two members arrives as one value), drops the connection on a Compare, runs
// the requests of one connection side by side (a search may overtake its own
// bind), and waits in Stop for as long as any client stays connected.
package demodir
