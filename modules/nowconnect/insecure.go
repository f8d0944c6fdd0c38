package nowconnect

import (
	"context"
	"errors"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// insecure is shared by all configurations, so that a reload leaves no gap.
var insecure = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "nowconnect_insecure",
	Help: "Places in the configuration that do without a protection, by module and option.",
}, []string{"module", "option"})

// insecureUses counts what insecure shows: a series goes with its last use.
var insecureUses = struct {
	sync.Mutex
	of map[[2]string]int
}{of: make(map[[2]string]int)}

// TellInsecure says that an option gives up a protection: in the log at once,
// and in the metric nowconnect_insecure until ctx ends, as nobody reads the log
// of a start weeks later. Modules call it at the end of Provision; danger says
// what can happen.
func TellInsecure(ctx caddy.Context, module caddy.Module, option, danger string) error {
	ctx.Logger().Warn("INSECURE: "+option+": "+danger, zap.String("option", option))
	if reg := ctx.GetMetricsRegistry(); reg != nil {
		if err := reg.Register(insecure); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return err
		}
	}
	use := [2]string{string(module.CaddyModule().ID), option}
	countInsecure(use, 1)
	// Not ctx.OnCancel, which forgets what a copy of the context was told.
	context.AfterFunc(ctx, func() { countInsecure(use, -1) })
	return nil
}

func countInsecure(use [2]string, n int) {
	insecureUses.Lock()
	defer insecureUses.Unlock()
	insecureUses.of[use] += n
	if insecureUses.of[use] > 0 {
		insecure.WithLabelValues(use[:]...).Set(float64(insecureUses.of[use]))
		return
	}
	delete(insecureUses.of, use)
	insecure.DeleteLabelValues(use[:]...)
}
