package run

import (
	"context"
	"fmt"
	"time"

	"github.com/nowconnect/nowconnect/bench/load"
	"github.com/nowconnect/nowconnect/bench/systems"
)

// away is how long a killed process stays away: long enough that the other
// side has noticed, and is waiting to try again.
const away = time.Second

// recoverBoth kills the agent, then the hub, and times each from its restart
// to the first answered request.
func recoverBoth(ctx context.Context, o *Options, site *systems.Site, y *systems.System, s load.Spec) (load.Result, error) {
	res := load.Result{}
	for name, p := range map[string]**systems.Process{"after agent kill, ms": &y.Agent, "after hub kill, ms": &y.Hub} {
		ms, err := o.recoverOne(ctx, site, p, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		res[name] = ms
		time.Sleep(settle)
	}
	return res, nil
}

func (o *Options) recoverOne(ctx context.Context, site *systems.Site, p **systems.Process, s load.Spec) (float64, error) {
	(*p).Stop()
	time.Sleep(away - 200*time.Millisecond)
	type answer struct {
		r   load.Result
		err error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := o.load(ctx, site, s)
		got <- answer{r, err}
	}()
	time.Sleep(200 * time.Millisecond) // the tries are under way
	began := time.Now()
	fresh, err := (*p).Again()
	if err != nil {
		return 0, err
	}
	*p = fresh
	a := <-got
	if a.err != nil {
		return 0, a.err
	}
	return (a.r[load.At] - float64(began.UnixNano())) / 1e6, nil
}
