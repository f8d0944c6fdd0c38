package hub

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// Match selects live sessions. All that is given must hold; what is empty, or
// the zero Prefix, holds for every session. The zero Match selects none.
type Match struct {
	Session   string // the hub's name for it, its cid
	Connector string
	Agent     string // that serves it, or that policy is being asked about for it
	Source    netip.Prefix
}

// Zero reports whether m selects nothing.
func (m Match) Zero() bool { return m == Match{} }

func (m Match) selects(s *session) bool {
	return (m.Session == "" || m.Session == s.name) &&
		(m.Connector == "" || m.Connector == s.conn.name) &&
		(m.Agent == "" || m.Agent == s.meant()) &&
		(!m.Source.IsValid() || m.Source.Contains(s.client.Addr.Addr().Unmap()))
}

// String tells what is selected, for the audit.
func (m Match) String() string {
	var words []string
	for _, w := range [][2]string{{"cid", m.Session}, {"connector", m.Connector}, {"agent", m.Agent}} {
		if w[1] != "" {
			words = append(words, w[0]+" "+w[1])
		}
	}
	if m.Source.IsValid() {
		words = append(words, "source "+m.Source.String())
	}
	return strings.Join(words, ", ")
}

// Revoke takes back the permits of all sessions that m selects, also of those
// that policy is still being asked about, and returns the names of those that
// it ended. No further byte is taken from either side of them. why is for the
// audit. A client that comes again is judged anew: to keep it out, change the
// policy first.
func (h *Hub) Revoke(m Match, why string) []string {
	ended := []string{}
	if m.Zero() {
		return ended
	}
	message := fmt.Sprintf("revoked by an operator (%s)", m)
	if why != "" {
		message += ": " + why
	}
	for _, s := range h.sessionsNow() {
		if m.selects(s) && s.end(wire.ReasonRevoked, message) {
			ended = append(ended, s.name)
			h.auditRevoked(s, message)
		}
	}
	return ended
}
