package testpeer

import (
	"testing"

	"go.uber.org/goleak"
)

// LeakCheck runs the tests and then fails the binary, naming the culprits, if
// goroutines are still running that were not before. Call it from TestMain:
//
//	func TestMain(m *testing.M) { testpeer.LeakCheck(m) }
//
// Give options for goroutines that outlive tests by design, each with its
// reason.
func LeakCheck(m *testing.M, allowed ...goleak.Option) {
	goleak.VerifyTestMain(m, allowed...)
}
