package hub

import (
	"fmt"
	"testing"
)

// crowd is a hub with many agents of two links each, two of which serve dir.
func crowd(t testing.TB, agents int) (*Hub, *connector, *Connector) {
	k := dir("a0", "a1")
	cfg := config(k)
	w := newWorld(t, cfg)
	for i := range agents {
		for slot := range 2 {
			w.agent(login{id: fmt.Sprintf("a%d", i), slot: slot})
		}
	}
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	return w.h, w.h.connectorLocked(k.Name), w.h.cfg.Connectors[k.Name]
}

// What a new session costs before policy is asked. Nothing of it is done per frame.
func place(h *Hub, c *connector, k *Connector) *link {
	links := h.choose(c, k)
	if len(links) != 2 {
		return nil
	}
	defer h.chosen(links[0])
	return h.best(links[0].agent, c)
}

func TestLookupDoesNotAllocateMuch(t *testing.T) {
	h, c, k := crowd(t, 3)
	if n := testing.AllocsPerRun(1000, func() {
		if place(h, c, k) == nil {
			t.Fatal("no link")
		}
	}); n > 4 { // the lists of choices and of links
		t.Errorf("%.1f allocations", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{2, 100} {
		b.Run(fmt.Sprintf("%d agents", n), func(b *testing.B) {
			h, c, k := crowd(b, n)
			b.ReportAllocs()
			for b.Loop() {
				if place(h, c, k) == nil {
					b.Fatal("no link")
				}
			}
		})
	}
}
