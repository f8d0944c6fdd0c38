package rules_test

import (
	"testing"
	_ "time/tzdata" // the tests' zones, also where the host has none

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func TestMain(m *testing.M) { hubtest.LeakCheck(m) }
