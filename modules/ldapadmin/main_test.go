package ldapadmin

import (
	"testing"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func TestMain(m *testing.M) { hubtest.LeakCheck(m) }
