package wire

import "slices"

// Reason tells why a session, or a link, ended. The set is closed: the same
// words are label values in metrics, fields in logs and bytes on the wire.
type Reason uint8

// The reasons. The numbers are part of the protocol.
const (
	ReasonUnknown        Reason = 0  // a byte that this version does not know
	ReasonFin            Reason = 1  // both directions ended in order; never on the wire
	ReasonRst            Reason = 2  // client or target reset its TCP connection
	ReasonNoAgent        Reason = 3  // no agent serves the connector now
	ReasonDenied         Reason = 4  // policy said no
	ReasonPDPError       Reason = 5  // policy could not be asked
	ReasonConnectFailed  Reason = 6  // the target refused or could not be reached
	ReasonConnectTimeout Reason = 7  // the target did not answer in time
	ReasonLimit          Reason = 8  // a configured limit was reached
	ReasonDraining       Reason = 9  // hub or agent takes no new sessions
	ReasonLinkLost       Reason = 10 // the link under the session broke
	ReasonOverflow       Reason = 11 // the peer sent more than its credit
	ReasonIdle           Reason = 12 // no byte for idle_timeout
	ReasonRevoked        Reason = 13 // a permit was taken back
	ReasonShutdown       Reason = 14 // hub or agent stopped before the session did

	// The rest end links and never sessions.
	ReasonProtocol    Reason = 32 // the peer broke the protocol
	ReasonSuperseded  Reason = 33 // a newer login took this link's place
	ReasonPingTimeout Reason = 34 // no PONG within the deadline
	ReasonRefused     Reason = 35 // the handshake was refused
)

var reasonNames = map[Reason]string{
	ReasonUnknown: "unknown", ReasonFin: "fin", ReasonRst: "rst", ReasonNoAgent: "no_agent",
	ReasonDenied: "denied", ReasonPDPError: "pdp_error", ReasonConnectFailed: "connect_failed",
	ReasonConnectTimeout: "connect_timeout", ReasonLimit: "limit", ReasonDraining: "draining",
	ReasonLinkLost: "link_lost", ReasonOverflow: "overflow", ReasonIdle: "idle",
	ReasonRevoked: "revoked", ReasonShutdown: "shutdown", ReasonProtocol: "protocol",
	ReasonSuperseded: "superseded", ReasonPingTimeout: "ping_timeout", ReasonRefused: "refused",
}

// Known reports whether r is in the set.
func (r Reason) Known() bool { _, ok := reasonNames[r]; return ok }

// String returns the word used in logs and metrics.
func (r Reason) String() string {
	if s, ok := reasonNames[r]; ok {
		return s
	}
	return "unknown"
}

// SessionReasons lists the reasons a session can end with, in numeric order.
// ReasonUnknown is not among them: a session that a peer ends for a reason
// this version does not know counts as reset.
func SessionReasons() []Reason {
	return reasons(func(r Reason) bool { return r != ReasonUnknown && r < ReasonProtocol })
}

// LinkReasons lists the reasons a link can end with, in numeric order.
func LinkReasons() []Reason {
	return reasons(func(r Reason) bool {
		return r >= ReasonProtocol || r == ReasonUnknown || r == ReasonLinkLost || r == ReasonShutdown || r == ReasonRevoked
	})
}

func reasons(keep func(Reason) bool) []Reason {
	var out []Reason
	for r := range reasonNames {
		if keep(r) {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return out
}
