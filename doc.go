// Package nowconnect brings every NowConnect module into a Caddy build:
//
//	xcaddy build --with github.com/nowconnect/nowconnect
//
// It owns nothing but the list of imports in imports.go, and has one invariant:
// a module that is not in that list is not in the build that people get.
package nowconnect
