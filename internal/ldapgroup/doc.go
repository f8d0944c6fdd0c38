// Package ldapgroup changes and reads group memberships in LDAP directories so
// that every request may be repeated: [Engine.Change] makes members present or
// absent and says, member by member, what it found and what it did. It knows
// OpenLDAP, 389 Directory Server, Samba and Active Directory, and speaks to
// the rest by the rules they share. It knows no HTTP.
//
// Invariants:
//
//   - A directory's "already there" or "not there" (20, 16; on Active
//     Directory 68, 53) counts as success only for a request that carried one
//     value. A refused request with more has written nothing: its members are
//     looked up and the rest is sent again, halved where need be.
//   - Nothing is reported as done that the directory did not confirm. A request
//     whose answer was lost is followed by a look at the group; where that is
//     impossible the outcome is [Unknown]. Changed is [ChangedUnknown] when the
//     state is right but the change may have been somebody else's.
//   - Members that nobody named are never touched: no replace, no delete of a
//     whole attribute.
//   - Names are compared, matched against the configuration and put into
//     filters as parsed names, never as strings. What the directory calls an
//     entry is checked again after the lookup.
//   - A request carries no value twice, at most [MaxChunkValues] values and
//     [MaxChunkBytes] bytes; adds go before removes.
//   - Credentials go over TLS, or over what the configuration calls safe. They
//     are in no error and no event. Referrals are not followed.
//   - Everything ends: each operation has a deadline, a cancelled context closes
//     the connection it was using, no answer above the configured size is read
//     into memory, and [Engine.Close] waits for what it stopped.
package ldapgroup
