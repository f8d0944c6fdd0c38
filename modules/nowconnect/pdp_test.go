package nowconnect

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// A list and a single module are both read; the short form is written where it
// is enough.
func TestPDPsInJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"pdp":{"engine":"a"}}`:                    `{"pdp":{"engine":"a"}}`,
		`{"pdp":[{"engine":"a"}]}`:                  `{"pdp":{"engine":"a"}}`,
		`{"pdp": [{"engine":"a"}, {"engine":"b"}]}`: `{"pdp":[{"engine":"a"},{"engine":"b"}]}`,
		`{"pdp":[]}`:                                `{}`,
		`{}`:                                        `{}`,
	} {
		var app App
		if err := json.Unmarshal([]byte(in), &app); err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if b, err := json.Marshal(struct {
			P PDPs `json:"pdp,omitempty"`
		}{app.PDPRaw}); err != nil || string(b) != want {
			t.Errorf("%s becomes %s, %v", in, b, err)
		}
	}
}

type broken struct{}

func (broken) Decide(_ context.Context, r *authz.Request) authz.Decision {
	if r.Subject.ID == "1" {
		panic("no reason")
	}
	return authz.Decision{Outcome: authz.Allow, Engine: "of its own"}
}

func (broken) Flush() { panic("no flush") }

type brokenBatch struct{ broken }

func (brokenBatch) DecideBatch(context.Context, []*authz.Request) []authz.Decision {
	panic("no reason")
}

// Whatever a policy module does, the hub's goroutines survive it.
func TestEnginesThatPanic(t *testing.T) {
	rs := []*authz.Request{{}, {Subject: authz.Entity{ID: "1"}}, {}}
	e := &engine{decider: broken{}, name: "broken", logger: zap.NewNop()}
	e.flush()
	out := e.DecideBatch(t.Context(), rs)
	for i, want := range []authz.Outcome{authz.Allow, authz.Error, authz.Allow} {
		if out[i].Outcome != want {
			t.Errorf("%d: %+v", i, out[i])
		}
	}
	if authz.KindOf(out[1]) != authz.KindPanic || out[1].Engine != "broken" || out[0].Engine != "of its own" {
		t.Errorf("%+v", out)
	}
	e = &engine{decider: brokenBatch{}, name: "broken", logger: zap.NewNop()}
	for _, d := range e.DecideBatch(t.Context(), rs) {
		if authz.KindOf(d) != authz.KindPanic || d.Engine != "broken" || !strings.Contains(d.Err.Error(), "no reason") {
			t.Errorf("%+v", d)
		}
	}
}
