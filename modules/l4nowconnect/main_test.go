package l4nowconnect_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func TestMain(m *testing.M) {
	hubtest.LeakCheck(m,
		// TestLeakedListenerObeysThePolicyInForce makes caddy-l4 leak one.
		goleak.IgnoreAnyFunction("github.com/mholt/caddy-l4/layer4.(*Server).serve"),
	)
}
