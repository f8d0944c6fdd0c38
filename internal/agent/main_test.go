package agent

import (
	"testing"

	"go.uber.org/goleak"
)

// No test may leave a goroutine: Run waits for all it starts.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
