package authzen

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// Dialect is the form of questions and answers.
type Dialect interface {
	// Question writes r.
	Question(r *authz.Request) ([]byte, error)
	// Answer reads what a PDP answered. An error means that it is no answer.
	Answer(body []byte) (authz.Decision, error)
}

// Standard is the OpenID Authorization API 1.0. authz.Request has its form, and
// nothing that it does not name: some PDPs refuse what they do not know.
type Standard struct{}

// Question implements Dialect.
func (Standard) Question(r *authz.Request) ([]byte, error) { return json.Marshal(r) }

// Answer implements Dialect.
func (Standard) Answer(body []byte) (authz.Decision, error) {
	allowed, rest, err := verdict(body, "decision")
	if err != nil {
		return authz.Decision{}, err
	}
	var context map[string]json.RawMessage
	if raw := rest["context"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &context); err != nil {
			return authz.Decision{}, errors.New("the member context of the answer is not an object")
		}
	}
	d := authz.Decision{Outcome: authz.Deny, Reason: reason(context), Policy: text(context["policy"])}
	if !allowed {
		return d, nil
	}
	permit := d
	permit.Outcome = authz.Allow
	if unmet := oblige(&permit, context["obligations"]); unmet != "" {
		d.Reason = "permitted under an obligation that the hub cannot fulfil: " + unmet
		return d, nil
	}
	permit.Lease, err = lease(context["ttl"])
	return permit, err
}

// Original is the form of the first NowConnect. Its subject is the agent.
type Original struct {
	Agent    string // empty: the one that the question names
	Audience string // empty: not sent
}

type originalQuestion struct {
	Subject struct {
		AgentID string `json:"agent_id"`
	} `json:"subject"`
	Action   string `json:"action"`
	Resource struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	} `json:"resource"`
	Context struct {
		ReplicaID string `json:"replica_id,omitempty"`
		Audience  string `json:"aud,omitempty"`
	} `json:"context"`
}

var errNoAgent = errors.New("no agent to ask about")

// Question implements Dialect.
func (o Original) Question(r *authz.Request) ([]byte, error) {
	var q originalQuestion
	if q.Subject.AgentID = o.Agent; o.Agent == "" {
		q.Subject.AgentID, _ = r.Context["agent"].(string)
	}
	if q.Subject.AgentID == "" {
		return nil, errNoAgent
	}
	q.Action = r.Action.Name
	q.Resource.Type, q.Resource.ID = "connector", r.Resource.ID
	q.Context.ReplicaID, _ = r.Context["hub"].(string)
	q.Context.Audience = o.Audience
	return json.Marshal(q)
}

// Answer implements Dialect.
func (Original) Answer(body []byte) (authz.Decision, error) {
	allowed, rest, err := verdict(body, "allow")
	if err != nil || !allowed {
		return authz.Decision{Outcome: authz.Deny}, err
	}
	l, err := lease(rest["ttl_sec"])
	return authz.Decision{Outcome: authz.Allow, Lease: l}, err
}

var errNoObject = errors.New("the answer is not a JSON object")

// verdict reads the one boolean that counts. A map keeps encoding/json from
// taking "Decision" for "decision".
func verdict(body []byte, member string) (bool, map[string]json.RawMessage, error) {
	var answer map[string]json.RawMessage
	if err := json.Unmarshal(body, &answer); err != nil {
		return false, nil, errNoObject
	}
	switch string(answer[member]) {
	case "true":
		return true, answer, nil
	case "false":
		return false, answer, nil
	case "":
		return false, nil, fmt.Errorf("the answer has no member %s", member)
	default:
		return false, nil, fmt.Errorf("the member %s of the answer is neither true nor false", member)
	}
}

// lease reads a number of seconds for which a permit holds. What is not even a
// second is one; 0 would mean for ever.
func lease(raw json.RawMessage) (time.Duration, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return 0, nil
	}
	var seconds float64
	if err := json.Unmarshal(raw, &seconds); err != nil {
		return 0, errors.New("the answer's time to live is not a number")
	}
	return time.Duration(min(max(seconds, 1), 86400) * float64(time.Second)), nil
}

// reason finds the words that PDPs give under various names: a text, or an
// object of texts by language or status.
func reason(context map[string]json.RawMessage) string {
	for _, name := range []string{"reason_admin", "reason", "reason_user", "id"} {
		var v any
		if json.Unmarshal(context[name], &v) != nil {
			continue
		}
		if texts, ok := v.(map[string]any); ok {
			for _, key := range slices.Sorted(maps.Keys(texts)) {
				if text, ok := texts[key].(string); ok {
					v = text
					break
				}
			}
		}
		if text, ok := v.(string); ok && text != "" {
			return Clean(text)
		}
	}
	return ""
}
