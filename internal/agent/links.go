package agent

import (
	"strconv"

	"github.com/nowconnect/nowconnect/internal/tunnel"
)

// How many links an agent holds when its configuration leaves that to it.
//
// All sessions on a link share its losses: where a packet is lost, everything
// behind it waits a round trip, and a loss-based congestion control slows down
// for all of them. Near by that costs nothing, and two links are there for the
// case that one breaks. Far away each further link keeps more sessions out of
// a bulk transfer's way, and one that does not use BBR gets at best some
// hundred KB/s through a network that loses packets: there bulk needs many.
// docs/performance.md has figures.
const (
	nearLinks  = 2
	farLinks   = 4
	lossyLinks = 8 // far away, and congestion control is loss-based or not known
)

// linksAuto is how a configuration says it.
const linksAuto = "auto"

func linksText(n int) string {
	if n == 0 {
		return linksAuto
	}
	return strconv.Itoa(n)
}

// worthLinks returns how many links are worth having to the hub that l leads
// to. Through a proxy only the way to the proxy can be seen.
func (l *login) worthLinks() int {
	if l.proxy != "" {
		return lossyLinks
	}
	return linksFor(tunnel.Near(l.carrier), tunnel.CongestionControl(l.carrier))
}

func linksFor(near bool, congestion string) int {
	switch {
	case near:
		return nearLinks
	case congestion == "bbr":
		return farLinks
	}
	return lossyLinks
}

// useLinks sees to it that at least n links are kept up. It is called by Run
// and by the goroutines of links, so that Run still waits for what it starts.
func (a *Agent) useLinks(n int) {
	for _, s := range a.links[:min(max(n, 0), len(a.links))] {
		if s.used.CompareAndSwap(false, true) {
			a.metrics.LinkUp(s.n, false)
			a.keepSlot(s)
		}
	}
}
