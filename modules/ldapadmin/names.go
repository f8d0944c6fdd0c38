package ldapadmin

import (
	"sync"
	"time"
)

// Bounds of remembered names.
const (
	nameTime = 10 * time.Second
	maxNames = 1000
)

// names remembers for a moment what the directory calls groups, which saves a
// round trip for each request about a group that is in use. A name that is
// remembered wrongly, because entries were renamed in that moment, gets by no
// allow-list: the engine looks for itself. Safe for concurrent use.
type names struct {
	mu    sync.Mutex
	known map[string]knownName
}

type knownName struct {
	canonical string
	until     time.Time
}

func (n *names) get(given string) (canonical string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k, ok := n.known[given]
	return k.canonical, ok && time.Now().Before(k.until)
}

func (n *names) put(given, canonical string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil || len(n.known) >= maxNames {
		n.known = make(map[string]knownName)
	}
	n.known[given] = knownName{canonical, time.Now().Add(nameTime)}
}
