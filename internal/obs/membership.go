package obs

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Closed sets of the membership series' labels.
var (
	// membershipActions are what is done to a member.
	membershipActions = []string{"add", "remove"}
	// membershipBatches are what became of a modify request: carried out;
	// refused as having nothing to do, in part or in whole; refused otherwise;
	// or not answered.
	membershipBatches = []string{"ok", "noop", "refused", "lost"}
	// membershipOutcomes are what became of one member.
	membershipOutcomes = []string{"added", "already_member", "removed", "not_member", "failed", "unknown", "skipped"}
	// membershipCodes are the LDAP result codes with a series of their own.
	// Others count as "other", a lost answer as "none".
	membershipCodes = []uint16{1, 8, 10, 16, 17, 19, 20, 21, 32, 34, 49, 50, 51, 52, 53, 65, 68, 80, 122}
)

const (
	codeOther = "other"
	codeNone  = "none"
)

// Membership records what is done to group memberships in one directory. Its
// methods may be called concurrently; none allocates or blocks.
type Membership struct {
	add, remove membershipAction
}

// membershipAction has the series of one action.
type membershipAction struct {
	batches map[string]*counter // fixed keys
	values  map[string]*counter // fixed keys
	errors  map[uint16]*counter // fixed keys
	other   *counter
	none    *counter
	seconds prometheus.Observer
}

func newMembership(f *hubFamilies, name string) *Membership {
	return &Membership{add: newMembershipAction(f, name, membershipActions[0]), remove: newMembershipAction(f, name, membershipActions[1])}
}

func newMembershipAction(f *hubFamilies, name, action string) membershipAction {
	a := membershipAction{
		batches: make(map[string]*counter), values: make(map[string]*counter),
		errors:  make(map[uint16]*counter),
		other:   f.membershipErrors.counter(name, action, codeOther),
		none:    f.membershipErrors.counter(name, action, codeNone),
		seconds: f.membershipSeconds.observer(name, action),
	}
	for _, o := range membershipBatches {
		a.batches[o] = f.membershipBatches.counter(name, action, o)
	}
	for _, o := range membershipOutcomes {
		a.values[o] = f.membershipValues.counter(name, action, o)
	}
	for _, c := range membershipCodes {
		a.errors[c] = f.membershipErrors.counter(name, action, strconv.Itoa(int(c)))
	}
	return a
}

func (m *Membership) action(remove bool) *membershipAction {
	if remove {
		return &m.remove
	}
	return &m.add
}

// Batch records one modify request that was answered with an LDAP result code.
func (m *Membership) Batch(remove bool, code uint16, d time.Duration) {
	a := m.action(remove)
	a.seconds.Observe(d.Seconds())
	switch code {
	case 0:
		a.batches["ok"].Inc()
		return
	case 16, 20, 53, 68: // what directories answer when there is nothing to do
		a.batches["noop"].Inc()
	default:
		a.batches["refused"].Inc()
	}
	if c := a.errors[code]; c != nil {
		c.Inc()
		return
	}
	a.other.Inc()
}

// BatchLost records a modify request without an answer.
func (m *Membership) BatchLost(remove bool, d time.Duration) {
	a := m.action(remove)
	a.seconds.Observe(d.Seconds())
	a.batches["lost"].Inc()
	a.none.Inc()
}

// Value counts one member's outcome, one of the words of the API. Others are
// not counted.
func (m *Membership) Value(remove bool, outcome string) {
	if c := m.action(remove).values[outcome]; c != nil {
		c.Inc()
	}
}
