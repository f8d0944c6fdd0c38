package ldapadmin

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// The actions that policies see.
const (
	actionRead    = "group.members.read"
	actionAdd     = "group.members.add"
	actionRemove  = "group.members.remove"
	actionReplace = "group.members.replace"
)

// resourceConnector is the type of the resource, as for connections. The group
// is among its properties.
const resourceConnector = "connector"

// subject is who calls and from where.
type subject struct {
	authz.Entity
	ip string
}

// verdict is one answer of policy, for the audit.
type verdict struct {
	action string
	authz.Decision
}

// sent returns the members that the request names.
func (q *request) sent() (adds, removes []string) {
	if q.target.op == opTest {
		return []string{q.target.member}, nil
	}
	return q.asked.adds, q.asked.removes
}

// actions lists what the request needs to be allowed, each with its members,
// which are called adds and removes.
func (q *request) actions(adds, removes []string) (names []string, members [][]string) {
	add := func(name string, list []string) {
		names, members = append(names, name), append(members, list)
	}
	switch q.target.op {
	case opList:
		add(actionRead, nil)
	case opTest:
		add(actionRead, adds)
	case opReplace:
		add(actionReplace, adds)
	default:
		if len(adds) > 0 {
			add(actionAdd, adds)
		}
		if len(removes) > 0 {
			add(actionRemove, removes)
		}
	}
	return names, members
}

// authorize asks policy about the request as it was sent, the group being called
// group.
func (h *Handler) authorize(ctx context.Context, q *request, group string) *problem {
	adds, removes := q.sent()
	return h.authorizeMembers(ctx, q, group, adds, removes)
}

// authorizeMembers asks policy about the request, its group and members being
// called so. The first answer that is not allow ends it.
func (h *Handler) authorizeMembers(ctx context.Context, q *request, group string, adds, removes []string) *problem {
	if err := ldapgroup.ValidName(group); err != nil {
		p := engineProblem(err)
		p.Detail = "group: " + p.Detail
		return p
	}
	names, members := q.actions(adds, removes)
	for i, name := range names {
		d := h.decide(ctx, h.question(q, name, group, members[i]))
		q.verdicts = append(q.verdicts, verdict{name, d})
		switch d.Outcome {
		case authz.Allow:
		case authz.Deny:
			return newProblem(http.StatusForbidden, codePolicyDenied, "policy does not allow %s here", name)
		default:
			return newProblem(http.StatusServiceUnavailable, codePolicyError, "policy cannot be asked now").because(d.Err).again()
		}
	}
	return nil
}

// decide asks who decides now: this handler may have been replaced by a reload.
func (h *Handler) decide(ctx context.Context, r *authz.Request) authz.Decision {
	app := nowconnect.Current()
	if app == nil {
		return authz.Decision{Err: errNotInForce}
	}
	d := app.Decider(h.Connector)
	if d == nil {
		return authz.Decision{Err: errNoDecider}
	}
	asked := time.Now()
	answer := d.Decide(ctx, r)
	if h.Connector != "" { // with a URL there is no connector to count it for
		app.Hub().Metrics().Connector(h.Connector).PDP(answer.Outcome, answer.Cached, time.Since(asked))
	}
	return answer
}

// approve asks policy once more where the directory calls members other than the
// request did.
func (h *Handler) approve(q *request) ldapgroup.Approve {
	return func(ctx context.Context, adds, removes []string) error {
		sentAdds, sentRemoves := q.sent()
		if samePolicyNames(sentAdds, adds) && samePolicyNames(sentRemoves, removes) {
			return nil
		}
		if prob := h.authorizeMembers(ctx, q, q.group, adds, removes); prob != nil {
			return prob
		}
		return nil
	}
}

// samePolicyNames reports whether policy would see no difference. Those beyond
// maxListed it does not see.
func samePolicyNames(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range min(len(a), maxListed) {
		if a[i] != b[i] && policyName(a[i]) != policyName(b[i]) {
			return false
		}
	}
	return true
}

// maxListed bounds the members that a question names; a PDP that must see more
// can refuse by member_count.
const maxListed = 100

func (h *Handler) question(q *request, action, group string, members []string) *authz.Request {
	p := map[string]any{"group": policyName(group), "group_as_sent": q.target.group}
	if len(members) > 0 {
		p["member_count"] = len(members)
		list := make([]string, 0, min(len(members), maxListed))
		for _, m := range members[:min(len(members), maxListed)] {
			list = append(list, policyName(m))
		}
		p["members"] = list
	}
	r := &authz.Request{
		Subject:  q.subject.Entity,
		Action:   authz.Action{Name: action},
		Resource: authz.Entity{Type: resourceConnector, ID: h.name, Properties: p},
		Context: map[string]any{
			"time": time.Now().UTC().Format(time.RFC3339), "cid": q.id, "source_ip": q.subject.ip,
		},
	}
	if app := nowconnect.Current(); app != nil {
		r.Context["hub"] = app.Name()
	}
	if q.asked.dryRun() {
		r.Action.Properties = map[string]any{"dry_run": true}
	}
	if q.asked.replace.Force {
		r.Action.Properties = map[string]any{"dry_run": q.asked.replace.DryRun, "force": true}
	}
	return r
}

// inner writes the separators of a DN that are part of a value in hexadecimal,
// so that in the text that policies see a comma or plus always separates:
// endsWith(",ou=people,dc=example,dc=org") must not hold for a value.
var inner = strings.NewReplacer(`\\`, `\\`, `\,`, `\2c`, `\+`, `\2b`)

// policyName writes a DN in the one form that policies see: types and values in
// lower case, values with single spaces, nothing escaped that need not be. What
// is no DN stays as it is.
func policyName(s string) string {
	dn, err := ldap.ParseDN(s)
	if err != nil || len(dn.RDNs) == 0 {
		return s
	}
	rdns := make([]string, 0, len(dn.RDNs))
	for _, rdn := range dn.RDNs {
		parts := make([]string, 0, len(rdn.Attributes))
		for _, a := range rdn.Attributes {
			parts = append(parts, strings.ToLower(a.Type)+"="+
				inner.Replace(ldap.EscapeDN(strings.Join(strings.Fields(strings.ToLower(a.Value)), " "))))
		}
		slices.Sort(parts)
		rdns = append(rdns, strings.Join(parts, "+"))
	}
	return strings.Join(rdns, ",")
}

// resolve finds what the directory calls the group, and asks policy about that
// name too where it is another: aliases of attribute types and what only the
// directory knows to be equal must not lead around a rule.
func (h *Handler) resolve(ctx context.Context, q *request) *problem {
	g, known := h.names.get(q.target.group)
	if !known {
		var err error
		if g, err = h.backend.engine.Resolve(ctx, q.target.group); err != nil {
			return engineProblem(err)
		}
		h.names.put(q.target.group, g)
	}
	q.group = g
	if policyName(g) == policyName(q.target.group) {
		return nil
	}
	return h.authorize(ctx, q, g)
}
