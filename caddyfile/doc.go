// Package caddyfile is the Caddyfile form of the app: the global option
// "nowconnect". It owns the option's grammar; each guest module reads its own
// block, and everything here ends up in the fields of [nowconnect.App].
//
// Invariants:
//
//   - Every word is either understood or an error that names the file, the line
//     and the word. Nothing is taken twice.
//   - Placeholders pass through untouched, so that secrets stay where they are.
//   - A guest module that is added later works here without a change.
package caddyfile
