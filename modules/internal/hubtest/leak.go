package hubtest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// LeakCheck is testpeer.LeakCheck for packages that run a Caddy.
func LeakCheck(m *testing.M, allowed ...goleak.Option) {
	testpeer.LeakCheck(m, append(allowed,
		// The tls app cleans its storage under a lock whose keeper notices only
		// every few seconds that the lock is gone.
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
	)...)
}
