package ldapadmin_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// byRules allows idm to read and add below ou=groups, and nothing in "team".
const byRules = `		pdp rules {
			allow self {
				expression "subject_type == 'service' && subject_id == 'ldap_admin'"
			}
			allow reader {
				action group.members.read
				expression "subject_id == 'idm'"
			}
			allow adder {
				action group.members.add
				expression "subject_type == 'user' && subject_id == 'idm' && connector == 'directory' && group != 'cn=team,ou=groups,dc=example,dc=org'"
			}
			deny not-u7 {
				expression "members.exists(m, m.startsWith('uid=u7,'))"
			}
		}`

func TestPolicyDecidesEachAction(t *testing.T) {
	w := start(t, options{app: byRules})
	u, whole := w.d.UserDN, w.group("whole")
	w.do(request{method: "GET", path: path(whole)}).answer(t, 200)
	w.do(request{method: "PUT", path: path(whole, u(8))}).answer(t, 200)
	w.do(request{method: "PUT", path: path(whole, u(7))}).problem(t, 403, "policy_denied")
	w.do(request{method: "GET", path: path(whole, u(7))}).problem(t, 403, "policy_denied")
	w.do(request{method: "DELETE", path: path(whole, u(8))}).problem(t, 403, "policy_denied")
	// One action that is not allowed stops the whole request.
	w.do(request{method: "PATCH", path: path(whole), body: `{"add":["` + u(9) + `"],"remove":["` + u(1) + `"]}`}).problem(t, 403, "policy_denied")
	w.do(request{method: "PUT", path: path(whole) + "?force=true", body: `{"members":["` + u(9) + `"]}`}).problem(t, 403, "policy_denied")
	if got := strings.Join(w.members(whole), " "); strings.Contains(got, u(9)) || !strings.Contains(got, u(1)) {
		t.Errorf("%s", got)
	}
	if n := w.Metric(`nowconnect_pdp_decisions_total{connector="directory",result="deny"}`); n != 5 {
		t.Errorf("%v denials counted", n)
	}
	// However the group's name is written, it is the same to the rule.
	for _, name := range []string{"cn=team", "CN=TEAM", "cn = team ", `cn=\74eam`, "commonName=team", "2.5.4.3=team", "cn=te\\61m"} {
		w.do(request{method: "PUT", path: path(name+","+w.d.GroupsDN, u(8))}).problem(t, 403, "policy_denied")
	}
	if got := len(w.members(w.group("team"))); got != 3 {
		t.Errorf("%d members", got)
	}
	// Nor does a dry run, or a key, get around it.
	w.do(request{method: "DELETE", path: path(whole, u(8)) + "?dry_run=true"}).problem(t, 403, "policy_denied")
}

// Policy is asked again by the names that the directory has for the members, so
// that no other name of an entry leads around a rule, in whatever request.
func TestPolicySeesTheMembersOfTheDirectory(t *testing.T) {
	w := start(t, options{app: strings.ReplaceAll(byRules, "action group.members.add", "action group.members.add group.members.remove group.members.replace")})
	u, whole := w.d.UserDN, w.group("whole")
	before := len(w.members(whole))
	other := func(name string) string { return name + "," + w.d.PeopleDN }
	for _, plain := range []string{other("userid=u7"), other("0.9.2342.19200300.100.1.1=u7"), other(`userid=\75\37`)} {
		name := strings.ReplaceAll(plain, `\`, `\\`) // in JSON
		for _, r := range []request{
			{method: "PUT", path: path(whole, plain)},
			{method: "PUT", path: path(whole, plain) + "?dry_run=true"},
			{method: "DELETE", path: path(whole, plain)},
			{method: "GET", path: path(whole, plain)},
			{method: "PATCH", path: path(whole), body: `{"add":["` + u(9) + `","` + name + `"]}`},
			{method: "PATCH", path: path(whole), body: `{"add":["` + u(9) + `"],"remove":["` + name + `"]}`},
			{method: "PUT", path: path(whole) + "?force=true", body: `{"members":["` + u(1) + `","` + name + `"]}`},
			{method: "PUT", path: path(whole) + "?force=true&dry_run=true", body: `{"members":["` + u(1) + `","` + name + `"]}`},
		} {
			w.do(r).problem(t, 403, "policy_denied")
		}
	}
	if got := len(w.members(whole)); got != before {
		t.Errorf("%d members", got)
	}
	// What needs no second question has none.
	asked := w.Metric(`nowconnect_pdp_decisions_total{connector="directory",result="allow"}`)
	w.do(request{method: "PATCH", path: path(whole), body: `{"add":["` + strings.ToUpper(u(9)) + `"]}`}).answer(t, 200)
	if n := w.Metric(`nowconnect_pdp_decisions_total{connector="directory",result="allow"}`); n != asked+1 {
		t.Errorf("%v questions", n-asked)
	}
	w.do(request{method: "PATCH", path: path(whole), body: `{"add":["` + other("userid=u10") + `"]}`}).answer(t, 200)
}

func TestPolicyThatFailsClosesTheDoor(t *testing.T) {
	w := start(t, options{app: `		pdp rules {
			allow self {
				expression "subject_type == 'service'"
			}
			allow sometimes {
				action group.members.read
				agent premise-1
			}
		}`})
	w.do(request{method: "GET", path: path(w.group("team"))}).problem(t, 503, "policy_unavailable")
}

// The policy that decides is the one in force, also over the answers kept for
// repetitions.
func TestPolicyInForceCounts(t *testing.T) {
	w := start(t, options{})
	r := request{method: "PUT", path: path(w.group("team"), w.d.UserDN(4)), header: []string{"Idempotency-Key", "once"}}
	if got := outcomes(w.do(r).answer(t, 200)); got[0] != "added true" {
		t.Errorf("%q", got)
	}
	again := w.do(r)
	if got := outcomes(again.answer(t, 200)); got[0] != "added true" || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%q %v", got, again.header)
	}
	w.reload(func(o *options) { o.lines = append(o.lines, "timeout 30s") })
	if again := w.do(r); again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("after a reload: %v %s", again.header, again.body)
	}
	other := r
	other.path = path(w.group("team"), w.d.UserDN(5))
	w.do(other).problem(t, 422, "idempotency_key_reused")
	w.reload(func(o *options) { o.lines = append(o.lines, "groups_below cn=whole,"+w.d.GroupsDN) })
	w.do(r).problem(t, 403, "forbidden") // no answer from when the group was allowed
	w.reload(func(o *options) {
		o.app = "\t\tpdp rules {\n\t\t\tallow self {\n\t\t\t\texpression \"subject_type == 'service'\"\n\t\t\t}\n\t\t}"
	})
	w.do(r).problem(t, 403, "policy_denied")
}

// One record joins who called, what policy said, and what became of it.
func TestAudit(t *testing.T) {
	w := start(t, options{app: byRules})
	u, whole := w.d.UserDN, w.group("whole")
	w.do(request{method: "PATCH", path: path(whole), body: `{"add":["` + u(6) + `","` + u(1) + `"]}`}).answer(t, 200)
	p := w.do(request{method: "DELETE", path: path(whole, u(1))}).problem(t, 403, "policy_denied")
	records := w.logged("group membership request")
	if len(records) != 2 {
		t.Fatalf("%d records: %v", len(records), records)
	}
	for i, want := range []map[string]any{
		{
			"level": "info", "logger": "nowconnect.audit", "method": "PATCH", "connector": "directory", "subject_type": "user", "subject": caller,
			"client": "127.0.0.1", "group": whole, "canonical_group": whole, "status": 200.0, "outcome": "allow", "reason": "adder",
			"added": 1.0, "already_member": 1.0, "actions": []any{"group.members.add"},
			"members": []any{
				map[string]any{"member": u(6), "action": "add", "outcome": "added", "changed": "true"},
				map[string]any{"member": u(1), "action": "add", "outcome": "already_member", "changed": "false"},
			},
		},
		{
			"level": "warn", "logger": "nowconnect.audit", "method": "DELETE", "status": 403.0, "outcome": "deny", "reason": "default_deny",
			"code": "policy_denied", "actions": []any{"group.members.remove"},
		},
	} {
		for key, value := range want {
			got, _ := json.Marshal(records[i][key])
			expected, _ := json.Marshal(value)
			if key == "members" { // the code of a no-op depends on what the engine had to send
				got = []byte(strings.ReplaceAll(string(got), `,"ldap_code":20`, ""))
				got = []byte(strings.ReplaceAll(string(got), `"ldap_code":20,`, ""))
			}
			if string(got) != string(expected) {
				t.Errorf("record %d: %s is %s, want %s", i, key, got, expected)
			}
		}
	}
	if p.Instance != "urn:uuid:"+records[1]["request"].(string) {
		t.Errorf("instance %s, request %v", p.Instance, records[1]["request"])
	}
	// Each member has a line of its own, no-ops too, of the same request.
	for _, outcome := range []string{"added", "already_member"} {
		lines := w.logged("group member " + outcome)
		if len(lines) != 1 || lines[0]["level"] != "info" || lines[0]["request"] != records[0]["request"] || lines[0]["attempts"] == nil {
			t.Errorf("%s: %v", outcome, lines)
		}
	}
}

// logged returns the log's records with this message.
func (w *world) logged(message string) []map[string]any {
	w.t.Helper()
	var out []map[string]any
	for line := range strings.Lines(w.Logged()) {
		if r := hubtest.JSON[map[string]any](w.t, line); r["msg"] == message {
			out = append(out, r)
		}
	}
	return out
}
