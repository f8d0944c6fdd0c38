package nowconnect

import (
	"context"
	"sync"
	"time"
)

// Finding is one thing that a check looked at.
type Finding struct {
	Place  string `json:"place"`            // the connector, or another name of what was looked at
	What   string `json:"what"`             // such as "agent" or "group"
	Target string `json:"target,omitempty"` // such as the group's DN
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// checkTime bounds what Diagnose waits for a check.
const checkTime = 30 * time.Second

// checks are what modules of one configuration have to look at. It is filled
// while they are provisioned.
type checks struct {
	mu   sync.Mutex
	list []func(context.Context) []Finding // guarded by mu
}

// AddCheck adds a check to what Diagnose looks at. It belongs to this
// configuration and goes with it; modules call it in Provision. It may be
// called several times at once, and ends when its context does.
func (a *App) AddCheck(check func(context.Context) []Finding) {
	a.checks.mu.Lock()
	defer a.checks.mu.Unlock()
	a.checks.list = append(a.checks.list, check)
}

// Diagnose looks whether what this configuration leads to is as it says: first
// whether each connector has an agent, then what modules have added, in the order
// in which they did.
func (a *App) Diagnose(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	found := a.checkAgentsConnected()
	a.checks.mu.Lock()
	list := a.checks.list
	a.checks.mu.Unlock()
	each := make([][]Finding, len(list))
	var wg sync.WaitGroup
	for i, check := range list {
		wg.Go(func() { each[i] = check(ctx) })
	}
	wg.Wait()
	for _, f := range each {
		found = append(found, f...)
	}
	return found
}

func (a *App) checkAgentsConnected() []Finding {
	found := []Finding{}
	for _, c := range a.Hub().Status().Connectors {
		if len(c.Agents) == 0 {
			found = append(found, Finding{Place: c.Name, What: "agent", Detail: "no agent that may serve it is connected"})
		}
		for _, id := range c.Agents {
			found = append(found, Finding{Place: c.Name, What: "agent", Target: id, OK: true})
		}
	}
	return found
}
