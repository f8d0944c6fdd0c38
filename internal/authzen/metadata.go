package authzen

import (
	"encoding/json"
	"fmt"
)

// Metadata is what a PDP tells of itself under
// /.well-known/authzen-configuration.
type Metadata struct {
	Evaluation  string // URL for one question; not checked
	Evaluations string // URL for several at once; empty when it has none; not checked
}

// ReadMetadata reads the metadata of the PDP with this identifier. That of
// another one is an error: else a PDP could speak for it.
func ReadMetadata(body []byte, identifier string) (Metadata, error) {
	var m struct {
		PDP         string `json:"policy_decision_point"`
		Evaluation  string `json:"access_evaluation_endpoint"`
		Evaluations string `json:"access_evaluations_endpoint"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return Metadata{}, err
	}
	if m.PDP != identifier {
		return Metadata{}, fmt.Errorf("it is that of %q and not of %q", Clean(m.PDP), identifier)
	}
	return Metadata{Evaluation: m.Evaluation, Evaluations: m.Evaluations}, nil
}
