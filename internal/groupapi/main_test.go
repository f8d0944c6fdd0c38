package groupapi

import (
	"testing"

	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func TestMain(m *testing.M) { testpeer.LeakCheck(m) }
