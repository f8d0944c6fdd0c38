// Package ldapadmin is the HTTP handler "ldap_admin": an idempotent API for
// group memberships. It owns what HTTP adds to the engine of
// internal/ldapgroup: who calls, whether policy lets them, what the answer's
// status is, and the record of it.
//
// Invariants:
//
//   - Nobody unknown gets through: a request without an authenticated caller is
//     refused whatever stands in front of the handler, and a configuration
//     without authentication in front of it does not load.
//   - Policy is asked for every request and each of its actions, before the
//     directory is asked to do anything, and by the name that the directory
//     keeps the group under as well as by the one that was sent.
//   - Paths are read as they were sent and decoded once; names are judged as
//     parsed DNs.
//   - A request that was carried out, refused or lost leaves one audit record.
//   - No credential is in a log, an answer or the configuration that Caddy
//     shows.
//   - Requests in flight outlive a reload. What serves them closes when the last
//     of them is done.
package ldapadmin
