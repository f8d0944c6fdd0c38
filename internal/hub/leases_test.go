package hub

import "time"

func graced(k *Connector, d time.Duration) *Connector {
	k.Grace = d
	return k
}
