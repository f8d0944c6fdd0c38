package rules

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// request is what the hub asks about a plain client, with changes to the
// context; a nil value takes the key away.
func request(connector, source string, changes map[string]any) *authz.Request {
	r := &authz.Request{
		Subject:  authz.Entity{Type: "ip", ID: source},
		Action:   authz.Action{Name: authz.ActionConnect},
		Resource: authz.Entity{Type: "connector", ID: connector},
		Context: map[string]any{
			"time": "2026-03-04T12:00:00Z", "cid": "s-1", "source_ip": source, "source_port": 40000, // a Wednesday
			"listener": "127.0.0.1:389", "hub": "hub-1",
		},
	}
	maps.Copy(r.Context, changes)
	maps.DeleteFunc(r.Context, func(_ string, v any) bool { return v == nil })
	return r
}

// certified makes the subject one with a verified certificate.
func certified(r *authz.Request, properties map[string]any) *authz.Request {
	r.Subject = authz.Entity{Type: "certificate", ID: "app.example.com", Properties: properties}
	return r
}

func mustCompile(tb testing.TB, rules ...Rule) *Set {
	tb.Helper()
	s, err := Compile(nil, Source{Rules: rules})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

var (
	everywhere = []string{"0.0.0.0/0", "::/0"}
	private    = []string{"10.0.0.0/8", "2001:db8::/32"}
)

func allow(id string, r Rule) Rule { r.ID, r.Effect = id, EffectAllow; return r }
func deny(id string, r Rule) Rule  { r.ID, r.Effect = id, EffectDeny; return r }

func TestDecisions(t *testing.T) {
	sni := func(s any) map[string]any { return map[string]any{"sni": s} }
	san := func(key string, names ...string) map[string]any { return map[string]any{key: names} }
	plain := func(source string) *authz.Request { return request("addomain", source, nil) }
	tests := []struct {
		name    string
		rules   []Rule
		request *authz.Request
		want    string // outcome and reason
	}{
		{"no rule", nil, plain("10.1.2.3"), "deny default_deny"},
		{"allowed", []Rule{allow("a", Rule{Sources: private})}, plain("10.1.2.3"), "allow a"},
		{"default deny", []Rule{allow("a", Rule{Sources: private})}, plain("192.0.2.1"), "deny default_deny"},
		{"first of two allows", []Rule{allow("a", Rule{Sources: private}), allow("b", Rule{Sources: private})}, plain("10.1.2.3"), "allow a"},
		{"deny before allow", []Rule{deny("d", Rule{Sources: private}), allow("a", Rule{Sources: everywhere})}, plain("10.1.2.3"), "deny d"},
		{"deny after allow", []Rule{allow("a", Rule{Sources: everywhere}), deny("d", Rule{Sources: private})}, plain("10.1.2.3"), "deny d"},
		{"deny of another", []Rule{allow("a", Rule{Sources: everywhere}), deny("d", Rule{Sources: private})}, plain("192.0.2.1"), "allow a"},
		{"deny without a condition", []Rule{allow("a", Rule{Sources: everywhere}), deny("d", Rule{})}, plain("192.0.2.1"), "deny d"},

		{"connector", []Rule{allow("a", Rule{Connectors: []string{"x", "addomain"}, Sources: private})}, plain("10.1.2.3"), "allow a"},
		{"other connector", []Rule{allow("a", Rule{Connectors: []string{"x"}, Sources: private})}, plain("10.1.2.3"), "deny default_deny"},
		{"connector in another case", []Rule{allow("a", Rule{Connectors: []string{"ADDOMAIN"}, Sources: private})}, plain("10.1.2.3"), "deny default_deny"},
		{"deny for all connectors, allow for one", []Rule{allow("a", Rule{Connectors: []string{"addomain"}, Sources: private}), deny("d", Rule{Sources: []string{"10.1.0.0/16"}})}, plain("10.1.2.3"), "deny d"},

		{"one address", []Rule{allow("a", Rule{Sources: []string{"10.1.2.3"}})}, plain("10.1.2.3"), "allow a"},
		{"neighbour of one address", []Rule{allow("a", Rule{Sources: []string{"10.1.2.3"}})}, plain("10.1.2.4"), "deny default_deny"},
		{"IPv6", []Rule{allow("a", Rule{Sources: private})}, plain("2001:db8::7"), "allow a"},
		{"IPv4-mapped IPv6 is IPv4", []Rule{allow("a", Rule{Sources: private})}, plain("::ffff:10.1.2.3"), "allow a"},
		{"IPv4-mapped IPv6 does not evade", []Rule{allow("a", Rule{Sources: everywhere}), deny("d", Rule{Sources: private})}, plain("::ffff:10.1.2.3"), "deny d"},
		{"IPv4 is not in ::/0", []Rule{allow("a", Rule{Sources: []string{"::/0"}})}, plain("10.1.2.3"), "deny default_deny"},
		{"a zone does not evade", []Rule{allow("a", Rule{Sources: everywhere}), deny("d", Rule{Sources: []string{"fe80::/10"}})}, plain("fe80::1%eth0"), "deny d"},
		{"no source to allow", []Rule{allow("a", Rule{Sources: everywhere})}, request("addomain", "", nil), "error a"},
		{"no source to deny", []Rule{allow("a", Rule{SNI: []string{"x"}}), deny("d", Rule{Sources: private})}, request("addomain", "", sni("x")), "error d"},
		{"no source, and it does not matter", []Rule{allow("a", Rule{SNI: []string{"x"}}), allow("b", Rule{Sources: private})}, request("addomain", "", sni("x")), "allow a"},
		{"garbage for a source", []Rule{allow("a", Rule{Sources: everywhere})}, plain("10.1.2.3.4"), "error a"},
		{"a number for a source", []Rule{allow("a", Rule{Sources: everywhere})}, request("addomain", "", map[string]any{"source_ip": 7}), "error a"},

		{"SNI", []Rule{allow("a", Rule{SNI: []string{"ldap.example.com"}})}, request("addomain", "", sni("LDAP.example.com")), "allow a"},
		{"SNI with a dot at its end", []Rule{allow("a", Rule{SNI: []string{"ldap.example.com"}})}, request("addomain", "", sni("ldap.example.com.")), "allow a"},
		{"SNI of one label more", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni("ldap.Example.com")), "allow a"},
		{"SNI of two labels more", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni("a.ldap.example.com")), "deny default_deny"},
		{"SNI without the label", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni("example.com")), "deny default_deny"},
		{"SNI with an empty label", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni(".example.com")), "deny default_deny"},
		{"SNI that ends alike", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni("evilexample.com")), "deny default_deny"},
		{"no SNI", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, plain("10.1.2.3"), "deny default_deny"},
		{"SNI that is none", []Rule{allow("a", Rule{SNI: []string{"*.example.com"}})}, request("addomain", "", sni(7)), "error a"},

		{"DNS name", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, certified(plain("10.1.2.3"), san("dns_names", "x", "App.example.com")), "allow a"},
		{"DNS wildcard", []Rule{allow("a", Rule{ClientSANs: []string{"dns:*.example.com"}})}, certified(plain("10.1.2.3"), san("dns_names", "app.example.com")), "allow a"},
		{"other DNS name", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, certified(plain("10.1.2.3"), san("dns_names", "app.example.org")), "deny default_deny"},
		{"a URI is no DNS name", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, certified(plain("10.1.2.3"), san("uris", "app.example.com")), "deny default_deny"},
		{"a common name is no DNS name", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, certified(plain("10.1.2.3"), map[string]any{"common_name": "app.example.com"}), "deny default_deny"},
		{"URI", []Rule{allow("a", Rule{ClientSANs: []string{"uri:spiffe://corp/app"}})}, certified(plain("10.1.2.3"), san("uris", "spiffe://corp/app")), "allow a"},
		{"URI that goes on", []Rule{allow("a", Rule{ClientSANs: []string{"uri:spiffe://corp/app"}})}, certified(plain("10.1.2.3"), san("uris", "spiffe://corp/app2")), "deny default_deny"},
		{"URI below", []Rule{allow("a", Rule{ClientSANs: []string{"uri:spiffe://corp/*"}})}, certified(plain("10.1.2.3"), san("uris", "spiffe://corp/ns/app")), "allow a"},
		{"URI of another domain", []Rule{allow("a", Rule{ClientSANs: []string{"uri:spiffe://corp/*"}})}, certified(plain("10.1.2.3"), san("uris", "spiffe://corp.evil/app")), "deny default_deny"},
		{"email", []Rule{allow("a", Rule{ClientSANs: []string{"email:Ann@example.com"}})}, certified(plain("10.1.2.3"), san("emails", "Ann@EXAMPLE.com")), "allow a"},
		{"email of another person", []Rule{allow("a", Rule{ClientSANs: []string{"email:ann@example.com"}})}, certified(plain("10.1.2.3"), san("emails", "bob@example.com")), "deny default_deny"},
		{"email of the domain", []Rule{allow("a", Rule{ClientSANs: []string{"email:*@example.com"}})}, certified(plain("10.1.2.3"), san("emails", "bob@example.com")), "allow a"},
		{"email of a domain below", []Rule{allow("a", Rule{ClientSANs: []string{"email:*@example.com"}})}, certified(plain("10.1.2.3"), san("emails", "bob@a.example.com")), "deny default_deny"},
		{"names of who has no certificate", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, func() *authz.Request {
			r := certified(plain("10.1.2.3"), san("dns_names", "app.example.com"))
			r.Subject.Type = "user"
			return r
		}(), "deny default_deny"},
		{"names that are none", []Rule{allow("a", Rule{ClientSANs: []string{"dns:app.example.com"}})}, certified(plain("10.1.2.3"), map[string]any{"dns_names": "app.example.com"}), "error a"},

		{"agent", []Rule{allow("a", Rule{Agents: []string{"p-1"}})}, request("addomain", "", map[string]any{"agent": "p-1"}), "allow a"},
		{"other agent", []Rule{allow("a", Rule{Agents: []string{"p-1"}})}, request("addomain", "", map[string]any{"agent": "p-2"}), "deny default_deny"},
		{"agent not told to allow", []Rule{allow("a", Rule{Agents: []string{"p-1"}})}, plain("10.1.2.3"), "error a"},
		{"agent not told to deny", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Agents: []string{"p-1"}})}, plain("10.1.2.3"), "error d"},
		{"agent not told, deny settled by the source", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Agents: []string{"p-1"}, Sources: []string{"192.0.2.1"}})}, plain("10.1.2.3"), "allow a"},
		{"agent not told, deny settled by the time", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Agents: []string{"p-1"}, Times: []Time{{Weekdays: []string{"sun"}}}})}, plain("10.1.2.3"), "allow a"},
		{"agent not told, denied anyway", []Rule{deny("d", Rule{Agents: []string{"p-1"}}), deny("e", Rule{Sources: private})}, plain("10.1.2.3"), "deny e"},

		{"time", []Rule{allow("a", Rule{Times: []Time{{Weekdays: []string{"mon-fri"}, Hours: []string{"12:00-13:00"}}}})}, plain("10.1.2.3"), "allow a"},
		{"other day", []Rule{allow("a", Rule{Times: []Time{{Weekdays: []string{"thu-tue"}}}})}, plain("10.1.2.3"), "deny default_deny"},
		{"no time", []Rule{allow("a", Rule{Times: []Time{{Weekdays: []string{"mon-sun"}}}})}, request("addomain", "", map[string]any{"time": nil}), "error a"},
		{"garbage for a time", []Rule{allow("a", Rule{Times: []Time{{Weekdays: []string{"mon-sun"}}}})}, request("addomain", "", map[string]any{"time": "noon"}), "error a"},

		{"expression", []Rule{allow("a", Rule{Expression: `connector == "addomain" && cidr("10.0.0.0/8").containsIP(source_ip) && source_port > 1024 && hub == "hub-1" && time.getHours("Europe/Berlin") == 13`})}, plain("::ffff:10.1.2.3"), "allow a"},
		{"expression is false", []Rule{allow("a", Rule{Expression: `connector == "x"`})}, plain("10.1.2.3"), "deny default_deny"},
		{"expression denies", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Expression: `subject_type == "ip"`})}, plain("10.1.2.3"), "deny d"},
		{"expression on names", []Rule{allow("a", Rule{Expression: `cert_dns_names.exists(n, n.endsWith(".example.com")) && cert_uris.size() == 0 && cert_common_name == "" && sni == ""`})}, certified(plain("10.1.2.3"), san("dns_names", "app.example.com")), "allow a"},
		{"expression on who has no certificate", []Rule{allow("a", Rule{Expression: `cert_dns_names.exists(n, n.endsWith(".example.com"))`})}, plain("10.1.2.3"), "deny default_deny"},
		{"expression misses the agent to allow", []Rule{allow("a", Rule{Expression: `agent == "p-1"`})}, plain("10.1.2.3"), "error a"},
		{"expression misses the agent to deny", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Expression: `agent != "p-1"`})}, plain("10.1.2.3"), "error d"},
		{"expression is not reached", []Rule{allow("a", Rule{Sources: private}), deny("d", Rule{Connectors: []string{"x"}, Expression: `agent != "p-1"`})}, plain("10.1.2.3"), "allow a"},
		{"expression divides by zero", []Rule{allow("a", Rule{Expression: `1 / (source_port - 40000) == 1`})}, plain("10.1.2.3"), "error a"},

		{"another action is not allowed", []Rule{allow("a", Rule{Sources: private})}, func() *authz.Request {
			r := plain("10.1.2.3")
			r.Action.Name = "group.members.add"
			return r
		}(), "deny default_deny"},
		{"another action is denied", []Rule{deny("d", Rule{Sources: private})}, func() *authz.Request {
			r := plain("10.1.2.3")
			r.Action.Name = "group.members.add"
			return r
		}(), "deny d"},
		{"another resource", []Rule{allow("a", Rule{Sources: private})}, func() *authz.Request {
			r := plain("10.1.2.3")
			r.Resource.Type = "printer"
			return r
		}(), "deny default_deny"},
		{"an empty request", []Rule{allow("a", Rule{Sources: private}), allow("b", Rule{Expression: `sni == ""`})}, &authz.Request{}, "deny default_deny"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := mustCompile(t, tt.rules...)
			d := s.Decide(tt.request)
			if got := d.Outcome.String() + " " + d.Reason; got != tt.want {
				t.Errorf("%s, want %s (%v)", got, tt.want, d.Err)
			}
			if d.Policy != s.Hash() || len(d.Policy) != 12 {
				t.Errorf("policy %q", d.Policy)
			}
			if (d.Err != nil) != (d.Outcome == authz.Error) {
				t.Errorf("outcome %s with error %v", d.Outcome, d.Err)
			}
		})
	}
}

// What a permit is given under is that of the rule that gives it.
func TestObligations(t *testing.T) {
	s := mustCompile(t, allow("a", Rule{Sources: []string{"10.0.0.0/16"}, MaxDuration: "8h", MaxBytes: 5}),
		allow("b", Rule{Sources: private, MaxDuration: "1h"}), deny("d", Rule{Sources: []string{"10.0.0.1"}}))
	for addr, want := range map[string]authz.Decision{
		"10.0.0.2": {Outcome: authz.Allow, Reason: "a", MaxDuration: 8 * time.Hour, MaxBytes: 5},
		"10.1.0.1": {Outcome: authz.Allow, Reason: "b", MaxDuration: time.Hour},
		"10.0.0.1": {Outcome: authz.Deny, Reason: "d"},
	} {
		want.Policy = s.Hash()
		if d := s.Decide(request("c", addr, nil)); d != want {
			t.Errorf("%s: %+v", addr, d)
		}
	}
}

// A rule without actions allows to connect and nothing else, and denies
// everything.
func TestActions(t *testing.T) {
	ask := func(s *Set, action, group string, members ...string) authz.Decision {
		r := request("addomain", "10.1.2.3", nil)
		r.Action.Name = action
		if group != "" {
			r.Resource.Properties = map[string]any{"group": group, "members": members, "member_count": len(members)}
		}
		return s.Decide(r)
	}
	s := mustCompile(t,
		allow("all", Rule{Sources: everywhere}),
		allow("adds", Rule{Sources: private, Actions: []string{"group.members.add"}, Expression: "group.endsWith(',ou=apps') && member_count < 2"}),
		deny("boss", Rule{Expression: "'uid=boss' in members"}),
		deny("no-replace", Rule{Actions: []string{"group.members.replace"}}))
	for _, tt := range []struct {
		action, group, member string
		outcome               authz.Outcome
		reason                string
	}{
		{"connect", "", "", authz.Allow, "all"},
		{"group.members.add", "cn=a,ou=apps", "uid=u", authz.Allow, "adds"},
		{"group.members.add", "cn=a,ou=other", "uid=u", authz.Deny, ReasonDefault},
		{"group.members.add", "cn=a,ou=apps", "uid=boss", authz.Deny, "boss"},
		{"group.members.remove", "cn=a,ou=apps", "uid=u", authz.Deny, ReasonDefault},
		{"group.members.replace", "cn=a,ou=apps", "uid=u", authz.Deny, "no-replace"},
		{"something.else", "", "", authz.Deny, ReasonDefault},
	} {
		if d := ask(s, tt.action, tt.group, tt.member); d.Outcome != tt.outcome || d.Reason != tt.reason {
			t.Errorf("%s %s %s: %v %s %v", tt.action, tt.group, tt.member, d.Outcome, d.Reason, d.Err)
		}
	}
	for _, actions := range [][]string{{}, {"add"}, {"connect", "connect"}} {
		if err := Check(Rule{Effect: EffectDeny, Actions: actions}); err == nil {
			t.Errorf("%q is taken", actions)
		}
	}
}

func TestErrorsSayWhatIsMissing(t *testing.T) {
	for want, r := range map[string]Rule{
		`rule "r" cannot be decided: the request does not tell the agent`:        {Agents: []string{"p-1"}},
		`rule "r" cannot be decided: the request has no usable context.time`:     {Times: []Time{{Weekdays: []string{"mon"}}}},
		`rule "r" cannot be decided: the request has no usable context.source_i`: {Sources: private},
		`rule "r" cannot be decided: expression: no such attribute`:              {Expression: `agent == "x"`},
	} {
		d := mustCompile(t, allow("r", r)).Decide(request("c", "", map[string]any{"time": nil}))
		if d.Err == nil || !strings.HasPrefix(d.Err.Error(), want) {
			t.Errorf("%v, want %s", d.Err, want)
		}
	}
}

// An expression that never ends within reason is stopped, and that is an error.
func TestExpressionCostIsLimited(t *testing.T) {
	list := "[" + strings.Repeat("1,", 60) + "1]"
	s := mustCompile(t, deny("d", Rule{Expression: list + ".all(a, " + list + ".all(b, " + list + ".all(c, a + b + c == source_port - 39997)))"}),
		allow("a", Rule{Sources: private}))
	began := time.Now()
	d := s.Decide(request("c", "10.1.2.3", nil))
	if d.Outcome != authz.Error || d.Err == nil || !strings.Contains(d.Err.Error(), "cost limit") {
		t.Errorf("%+v", d)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestMistakes(t *testing.T) {
	for want, r := range map[string]Rule{
		"effect: ":          {Effect: "permit", Sources: private},
		"effect: allow wit": {Effect: "allow", Connectors: []string{"c"}},
		"id: ":              {Effect: "deny", ID: "a b"},
		"id: default_deny":  {Effect: "deny", ID: "default_deny"},
		"connectors: empty": {Effect: "deny", Connectors: []string{}},
		"connectors: \"x\"": {Effect: "deny", Connectors: []string{"x", "x"}},
		"connectors: there": {Effect: "deny", Connectors: []string{"nobody"}},
		"sources: empty":    {Effect: "deny", Sources: []string{}},
		"sources: \"ten\"":  {Effect: "deny", Sources: []string{"ten"}},
		"sources: \"fe80:":  {Effect: "deny", Sources: []string{"fe80::1%eth0"}},
		"times: empty":      {Effect: "deny", Times: []Time{}},
		"times: neither":    {Effect: "deny", Times: []Time{{}}},
		"times: weekdays":   {Effect: "deny", Times: []Time{{Weekdays: []string{}}}},
		"times: hours":      {Effect: "deny", Times: []Time{{Hours: []string{}}}},
		"times: \"24:00-":   {Effect: "deny", Times: []Time{{Hours: []string{"24:00-01:00"}}}},
		"times: \"10:60-":   {Effect: "deny", Times: []Time{{Hours: []string{"10:60-11:00"}}}},
		"times: \"10:00\"":  {Effect: "deny", Times: []Time{{Hours: []string{"10:00"}}}},
		"times: \"Mon\"":    {Effect: "deny", Times: []Time{{Weekdays: []string{"Mon"}}}},
		"time_zone: unknow": {Effect: "deny", Times: []Time{{Weekdays: []string{"mon"}}}, TimeZone: "Europe/Atlantis"},
		"sni: empty":        {Effect: "deny", SNI: []string{}},
		"sni: \"\" is":      {Effect: "deny", SNI: []string{""}},
		"sni: \"*\" is":     {Effect: "deny", SNI: []string{"*"}},
		"client_sans: empt": {Effect: "deny", ClientSANs: []string{}},
		"client_sans: \"*.": {Effect: "deny", ClientSANs: []string{"dns:*.*.com"}},
		"client_sans: \"sp": {Effect: "deny", ClientSANs: []string{"uri:spiffe://*"}},
		"client_sans: \"*@": {Effect: "deny", ClientSANs: []string{"email:*@*.com"}},
		"client_sans: \"ip": {Effect: "deny", ClientSANs: []string{"ip:10.0.0.1"}},
		"max_duration: \"a": {Effect: "allow", Sources: private, MaxDuration: "a day"},
		"max_duration: \"0": {Effect: "allow", Sources: private, MaxDuration: "0.5s"},
		"max_duration: a r": {Effect: "deny", MaxDuration: "1h"},
		"max_bytes: -1 is ": {Effect: "allow", Sources: private, MaxBytes: -1},
		"max_bytes: a rule": {Effect: "deny", MaxBytes: 1},
		"agents: empty":     {Effect: "deny", Agents: []string{}},
		"expression: colum": {Effect: "deny", Expression: "connector =="},
		"expression: line ": {Effect: "deny", Expression: "true &&\n conector == 'a'"},
		"expression: is a ": {Effect: "deny", Expression: "1"},
		"expression: 4097 ": {Effect: "deny", Expression: strings.Repeat(" ", 4093) + "true"},
	} {
		_, err := Compile(func(c string) bool { return c != "nobody" }, Source{Rules: []Rule{{Effect: "deny", ID: "first"}, r}})
		var re *RuleError
		var fe *FieldError
		if !errors.As(err, &re) || re.Index != 1 || !errors.As(err, &fe) || !strings.HasPrefix(fe.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	// CEL itself would notice these only when it evaluates them.
	for _, x := range []string{
		`ip("10.0.0.256") == source_ip`, `ip("::ffff:10.0.0.1") == source_ip`, `cidr("10.0.0.0/33").containsIP(source_ip)`,
		`cidr("10.0.0.0/8").containsIP("nowhere")`, `cidr("10.0.0.0/8").containsCIDR("10/8")`, `sni.matches("(")`, `time > timestamp("yesterday")`,
	} {
		if err := Check(Rule{Effect: "deny", Expression: x}); err == nil {
			t.Errorf("%s compiles", x)
		} else if !strings.Contains(err.Error(), "column ") {
			t.Errorf("%s: %v, without a place", x, err)
		}
	}
}

func TestIDs(t *testing.T) {
	unnamed := []Rule{{Effect: "allow", Sources: private}, {Effect: "deny", Sources: []string{"192.0.2.1"}}}
	s, err := Compile(nil, Source{Rules: unnamed}, Source{Prefix: "file-", Rules: unnamed})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.ids); got != "[allow-1 deny-2 file-allow-1 file-deny-2]" {
		t.Errorf("ids %s", got)
	}
	if unnamed[0].ID != "" {
		t.Error("the caller's rule was changed")
	}
	var re *RuleError
	if _, err := Compile(nil, Source{Rules: unnamed}, Source{Prefix: "file-", Rules: []Rule{deny("allow-1", Rule{})}}); !errors.As(err, &re) || re.Prefix != "file-" {
		t.Errorf("an id in both sources: %v", err)
	}
}

func TestHash(t *testing.T) {
	base := []Rule{allow("a", Rule{Sources: private, Times: []Time{{Weekdays: []string{"mon"}}}})}
	h := mustCompile(t, base...).Hash()
	if again := mustCompile(t, base...).Hash(); again != h {
		t.Errorf("the same rules: %s, then %s", h, again)
	}
	others := []Rule{base[0], base[0], base[0], base[0]}
	others[0].ID = "b"
	others[1].Sources = everywhere
	others[2].Times = []Time{{Weekdays: []string{"tue"}}}
	others[3].Expression = "true"
	for _, r := range others {
		if mustCompile(t, r).Hash() == h {
			t.Errorf("%+v has the same hash", r)
		}
	}
}

func TestLease(t *testing.T) {
	noon := []Time{{Hours: []string{"11:00-13:00"}}}
	evening := []Time{{Hours: []string{"12:30-20:00"}}}
	for name, tt := range map[string]struct {
		rules []Rule
		want  time.Duration
	}{
		"no time":                    {[]Rule{allow("a", Rule{Sources: private})}, 0},
		"the window closes":          {[]Rule{allow("a", Rule{Times: noon})}, time.Hour},
		"a deny begins before":       {[]Rule{deny("d", Rule{Times: evening}), allow("a", Rule{Times: noon})}, 30 * time.Minute},
		"a deny begins":              {[]Rule{deny("d", Rule{Times: evening}), allow("a", Rule{Sources: private})}, 30 * time.Minute},
		"a deny for others begins":   {[]Rule{deny("d", Rule{Times: evening, Sources: []string{"192.0.2.1"}}), allow("a", Rule{Times: noon})}, time.Hour},
		"an expression on time":      {[]Rule{allow("a", Rule{Expression: "time.getHours() < 13"})}, time.Minute},
		"an expression without time": {[]Rule{allow("a", Rule{Expression: "source_port > 1"})}, 0},
		"always":                     {[]Rule{allow("a", Rule{Times: []Time{{Weekdays: []string{"mon-sun"}}}})}, 0},
	} {
		d := mustCompile(t, tt.rules...).Decide(request("c", "10.1.2.3", nil))
		if d.Outcome != authz.Allow || d.Lease != tt.want {
			t.Errorf("%s: %s for %v, want %v (%v)", name, d.Outcome, d.Lease, tt.want, d.Err)
		}
	}
}

func TestConcurrentDecisions(t *testing.T) {
	s := mustCompile(t, deny("d", Rule{Times: []Time{{Hours: []string{"13:00-14:00"}}}}), allow("a", Rule{Sources: private, Expression: "source_port > 1"}))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				hour := 12 + (i+g)%2
				r := request("c", "10.1.2.3", map[string]any{"time": fmt.Sprintf("2026-03-04T%d:30:00Z", hour)})
				want := map[int]authz.Outcome{12: authz.Allow, 13: authz.Deny}[hour]
				if d := s.Decide(r); d.Outcome != want {
					t.Errorf("at %d: %+v", hour, d)
					return
				}
			}
		})
	}
	wg.Wait()
}

// typical are rules of every kind but expressions, n of them, the last of which
// allows.
func typical(n int) []Rule {
	rules := []Rule{
		deny("lockdown", Rule{Sources: []string{"192.0.2.66", "2001:db8:bad::/48"}}),
		deny("maintenance", Rule{Times: []Time{{Weekdays: []string{"sun"}, Hours: []string{"02:00-04:00"}}}, TimeZone: "Europe/Berlin"}),
	}
	for i := len(rules); i < n-1; i++ {
		rules = append(rules, allow(fmt.Sprintf("site-%d", i), Rule{Sources: []string{fmt.Sprintf("172.%d.%d.0/24", 16+i/256, i%256)}, SNI: []string{"*.example.com"}}))
	}
	return append(rules, allow("office", Rule{
		Connectors: []string{"addomain"}, Sources: private, SNI: []string{"ldap.example.com"}, ClientSANs: []string{"dns:*.example.com"},
		Times: []Time{{Weekdays: []string{"mon-fri"}, Hours: []string{"08:00-18:00"}}}, TimeZone: "Europe/Berlin",
	}))
}

func typicalRequest() *authz.Request {
	return certified(request("addomain", "10.1.2.3", map[string]any{"sni": "ldap.example.com"}), map[string]any{"dns_names": []string{"app.example.com"}})
}

func TestDecideDoesNotAllocate(t *testing.T) {
	s := mustCompile(t, typical(20)...)
	other := request("addomain", "172.30.0.1", nil)
	for _, r := range []*authz.Request{typicalRequest(), other, request("x", "192.0.2.66", nil)} {
		s.Decide(r) // the schedules look ahead once
		if n := testing.AllocsPerRun(100, func() { s.Decide(r) }); n != 0 {
			t.Errorf("%v allocations for %s", n, s.Decide(r).Reason)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	withExpression := append(typical(4), deny("cel", Rule{Expression: `cidr("192.0.2.0/24").containsIP(source_ip) || source_port < 1024`}))
	for _, bm := range []struct {
		name  string
		rules []Rule
	}{{"rules=4", typical(4)}, {"rules=200", typical(200)}, {"rules=4+cel", withExpression}} {
		b.Run(bm.name, func(b *testing.B) {
			s, r := mustCompile(b, bm.rules...), typicalRequest()
			if d := s.Decide(r); d.Outcome != authz.Allow {
				b.Fatalf("%+v", d)
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Decide(r)
			}
		})
	}
}
