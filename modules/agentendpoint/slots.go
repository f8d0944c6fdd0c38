package agentendpoint

import (
	"sync"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// maxPerAgent bounds the unfinished handshakes of one agent, so that whoever
// holds one agent's credential cannot keep the others out.
const maxPerAgent = 2 * wire.MaxLinks

// slots counts the handshakes under way in this process, over all instances of
// the handler.
var slots struct {
	sync.Mutex
	taken  int
	agents map[string]int // by authenticated id; entries above zero only
}

// slot is one handshake under way.
type slot struct {
	agent string
	once  sync.Once
}

// takeSlot returns nil when limit handshakes are under way.
func takeSlot(limit int) *slot {
	slots.Lock()
	defer slots.Unlock()
	if slots.taken >= limit {
		return nil
	}
	slots.taken++
	return new(slot)
}

// assign counts the slot as one of agent's; false when that has too many.
func (s *slot) assign(agent string) bool {
	slots.Lock()
	defer slots.Unlock()
	if slots.agents[agent] >= maxPerAgent {
		return false
	}
	if slots.agents == nil {
		slots.agents = make(map[string]int)
	}
	slots.agents[agent]++
	s.agent = agent
	return true
}

// release ends the handshake. It may be called again, cheaply.
func (s *slot) release() {
	s.once.Do(func() {
		slots.Lock()
		defer slots.Unlock()
		slots.taken--
		if s.agent == "" {
			return
		}
		if slots.agents[s.agent]--; slots.agents[s.agent] == 0 {
			delete(slots.agents, s.agent)
		}
	})
}
