// Package testpeer owns the real counterparts that tests run against: OpenLDAP,
// Samba as an Active Directory domain controller, 389 Directory Server,
// an LDAP server that follows a script for what those will not do on demand,
// Prometheus, policy servers, proxies that misbehave on demand, TCP targets, and
// our own binaries. It is used by tests only.
//
// Invariants:
//
//   - Everything listens on loopback, on ports or addresses that were free, and
//     keeps its files in the test's own temporary directory, so that packages
//     can be tested at the same time.
//   - Everything ends with the test that asked for it: goroutines and sockets
//     through t.Cleanup, processes also when the test binary is killed.
//   - What is missing fails the test and says how to install it. Nothing skips,
//     as a test that did not run must not look like one that passed, but what
//     needs Cerbos, which not every machine can have; OPA stands for it there.
//
// It alone of the internal packages may import Caddy, and it imports none of
// our engine rooms, so that their own tests can use it.
package testpeer
