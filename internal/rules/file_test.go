package rules

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseJSON(t *testing.T) {
	const file = `{"rules": [
  {"id": "office", "effect": "allow",
   "sources": ["10.0.0.0/8"],
   "times": [{"weekdays": ["mon"], "hours": ["08:00-18:00"]}]},
  {"effect": "deny", "sni": ["a.example"]}
]}
`
	rules, line, err := ParseJSON("rules.json", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) != 2 || rules[0].ID != "office" || rules[0].Times[0].Hours[0] != "08:00-18:00" || rules[1].SNI[0] != "a.example" {
		t.Errorf("%+v", rules)
	}
	for _, tt := range []struct {
		rule  int
		field string
		want  int
	}{{0, "", 2}, {0, "effect", 2}, {0, "sources", 3}, {0, "times", 4}, {1, "sni", 5}, {1, "sources", 5}} {
		if got := line(tt.rule, tt.field); got != tt.want {
			t.Errorf("%s of rule %d on line %d, want %d", tt.field, tt.rule, got, tt.want)
		}
	}
}

func TestParseJSONMistakes(t *testing.T) {
	for file, want := range map[string]string{
		"":                      "rules.json:1: unexpected end of JSON input",
		"[]":                    "rules.json:1: [ where",
		"{\n\"rule\": []}":      "rules.json:2: rule where",
		"{\"rules\": {}}":       "rules.json:1: { where",
		"{\"rules\": [\n\n7]}":  "rules.json:3: rule 1: not an object",
		"{\"rules\": [\nnull]}": "rules.json:2: rule 1: not an object",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"sorces\": [\"::/0\"]}]}":                       "rules.json:3: rule 1: sorces: not a word of rules",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"sources\": \"::/0\"}]}":                        "rules.json:3: rule 1: sources: a JSON string does not belong here",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"sources\": null}]}":                            "rules.json:3: rule 1: sources: null is no value",
		"{\"rules\": [{\n\"sni\": [\"a\"],\n\"SNI\": [\"b\"]}]}":                                 "rules.json:3: rule 1: SNI: twice",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"times\": [{\n\"days\": [\"mon\"]}]}]}":         "rules.json:3: rule 1: times: json: unknown field \"days\"",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"times\": [{\n\"weekdays\": null}]}]}":          "rules.json:3: rule 1: times: weekdays: null is no value",
		"{\"rules\": [\n{\"effect\": \"deny\"},\n{\"effect\": \"deny\"":                          "rules.json:3: unexpected end",
		"{\"rules\": [\n{\"effect\": \"deny\"}\n{\"effect\": \"deny\"}]}":                        "rules.json:3: ",
		"{\"rules\": [\n{\"effect\": \"deny\"}],\n\"extra\": 1}":                                 "rules.json:3: extra where",
		"{\"rules\": [\n{\"effect\": \"deny\"}]}\n{\"rules\": []}":                               "rules.json:3: invalid character",
		"{\"rules\": [\n{\"effect\": \"deny\",\n \"id\": \"a\"},\n{\"effect\": deny}\n]}":        "rules.json:4: ",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"sources\": [\"10.0.0.0/8\", 7]}]}":             "rules.json:3: rule 1: sources: a JSON number",
		"{\"rules\": [{\n\"effect\": \"deny\",\n\"times\": [\n{\"hours\": [\"08:00-9\", 7]}]}]}": "rules.json:3: rule 1: times: ",
	} {
		_, _, err := ParseJSON("rules.json", []byte(file))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", file, err, want)
		}
	}
}

// The configuration's decoder does not give its strictness to types with a
// decoder of their own, so Rule has to be strict by itself.
func TestRuleIsStrictByItself(t *testing.T) {
	for _, s := range []string{`{"sorces": []}`, `{"sources": null}`, `{"sni": ["a"], "sni": ["b"]}`, `{"times": [{"day": 1}]}`, `{"times": [null]}`, `[]`} {
		if err := json.Unmarshal([]byte(s), new(Rule)); err == nil {
			t.Errorf("%s is accepted", s)
		}
	}
}

func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`{"rules": [{"effect": "deny", "times": [{"hours": ["22:00-06:00"]}]}]}`))
	f.Add([]byte(`{"rules": [{"effect": "allow", "client_sans": ["email:*@example.com"], "expression": "sni == ''"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, line, err := ParseJSON("f", b)
		if err != nil {
			return
		}
		for i := range rules {
			if n := line(i, "effect"); n < 1 || n > 1+strings.Count(string(b), "\n") {
				t.Errorf("rule %d on line %d", i, n)
			}
		}
		if s, err := Compile(nil, Source{Rules: rules}); err == nil {
			s.Decide(request("c", "10.1.2.3", nil))
		}
	})
}
