package hub

import (
	"testing"

	"github.com/nowconnect/nowconnect/internal/obs"
)

// A reload queues the few sessions of each of many connectors at once. As many
// goroutines start as there are batches, and not four for each connector.
func TestAsManyJudgesAsBatches(t *testing.T) {
	h := New(nil, obs.New(obs.Options{}))
	h.Apply(&Config{Connectors: map[string]*Connector{}})
	for queued, want := range map[int]int{1: 1, 18: 1, judgeAtOnce: 1, judgeAtOnce + 1: 2, 10 * judgeAtOnce: judgesPerConnector} {
		h.mu.Lock()
		c := h.connectorLocked("addomain")
		for range queued {
			// They end as soon as somebody looks: the connector is not configured.
			h.queueLocked(&session{conn: c, client: &Client{}, cancel: func() {}}, causePolicy)
		}
		got := c.judges
		h.mu.Unlock()
		if got != want {
			t.Errorf("%d judges for %d sessions, want %d", got, queued, want)
		}
		h.judging.Wait()
		if c.judges != 0 || c.coming != 0 {
			t.Errorf("%d judges, %d of them coming, after all is done", c.judges, c.coming)
		}
	}
}
