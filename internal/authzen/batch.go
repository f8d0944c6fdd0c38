package authzen

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// ErrAskAlone is the Err of an answer in a batch that is none: the PDP could not
// judge this question together with the others.
var ErrAskAlone = errors.New("the PDP could not judge this question in a batch")

// BatchQuestion writes several questions in the form of the Access Evaluations
// API. No member is put in front of the brackets, as a default for all: PDPs
// differ in what they merge.
func BatchQuestion(rs []*authz.Request) ([]byte, error) {
	return json.Marshal(map[string]any{"evaluations": rs})
}

// BatchAnswers reads the answers to n questions, in their order. Each stands for
// itself; an error means that they cannot be told apart or are none.
func BatchAnswers(body []byte, n int) ([]authz.Decision, error) {
	var answer map[string]json.RawMessage
	if json.Unmarshal(body, &answer) != nil {
		return nil, errNoObject
	}
	var items []json.RawMessage
	if json.Unmarshal(answer["evaluations"], &items) != nil {
		return nil, errors.New("the answer has no list evaluations")
	}
	if len(items) != n { // whose is which?
		return nil, fmt.Errorf("%d answers to %d questions", len(items), n)
	}
	ds := make([]authz.Decision, n)
	for i, item := range items {
		ds[i] = batchAnswer(item)
	}
	return ds, nil
}

// batchAnswer reads one answer. In a batch, "decision": false also stands for a
// question that the PDP could not judge; its context then has an error. That
// must not end a session as a denial does, so the question is to be asked again
// by itself, where an error is a status.
func batchAnswer(item []byte) authz.Decision {
	var failure struct {
		Context struct {
			Error json.RawMessage `json:"error"`
		} `json:"context"`
	}
	if json.Unmarshal(item, &failure) == nil && len(failure.Context.Error) > 0 && string(failure.Context.Error) != "null" {
		return authz.Fail(authz.KindRejected, ErrAskAlone)
	}
	d, err := Standard{}.Answer(item)
	if err != nil {
		return authz.Fail(authz.KindDecode, err)
	}
	return d
}
