// Package groupapi is the HTTP API for group memberships as its two ends see
// it: the shapes of its requests and answers, how what arrives is decoded, and
// a client. The server is modules/ldapadmin; the client serves the command line.
//
// Invariants:
//
//   - The shapes are those of the OpenAPI document at /ldap/openapi.json; a
//     test of the server holds its live answers against it.
//   - A credential goes into a header or the TLS handshake, never into a URL, an
//     error or a log.
//   - The client repeats a request only when that is harmless: every request of
//     this API is idempotent, and one that changes something carries the same
//     Idempotency-Key each time.
package groupapi
