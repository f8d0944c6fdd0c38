package testpeer

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// LeakCheck runs the tests and then fails the binary, naming the culprits, if
// goroutines are still running that were not before. Call it from TestMain:
//
//	func TestMain(m *testing.M) { testpeer.LeakCheck(m) }
//
// Give options for goroutines that outlive tests by design, each with its
// reason.
//
// What is on its way out gets some seconds: on a busy machine an HTTP server
// takes longer to shut down than goleak waits by itself.
func LeakCheck(m *testing.M, allowed ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find(allowed...)
		for end := time.Now().Add(leakPatience); err != nil && time.Now().Before(end); {
			err = goleak.Find(allowed...) // which waits half a second
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "goroutines outlive the tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

const leakPatience = 10 * time.Second
