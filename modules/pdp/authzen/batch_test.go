package authzen

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// batchPDP answers single and batch questions: clients in 192.0.2.0/24 may
// connect, and what the source 203.0.113.x gets in a batch is failing.
type batchPDP struct {
	*pdp
	mu           sync.Mutex
	single       int
	batches      []int // questions of each
	status       int   // of batches; 0 answers them
	refuseForOne bool  // 400 for a batch with a source in 203.0.113.0/24
}

func newBatchPDP(t *testing.T) *batchPDP {
	t.Helper()
	b := new(batchPDP)
	b.pdp = newPDP(t, b.handle, (*httptest.Server).Start)
	return b
}

func (b *batchPDP) handle(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	var q struct {
		authz.Request
		Evaluations []authz.Request `json:"evaluations"`
	}
	if err := json.Unmarshal(body, &q); err != nil || r.Header.Get("X-Request-ID") == "" {
		answers(400, "no question")(w, r)
		return
	}
	if r.URL.Path != "/access/v1/evaluations" {
		b.single++
		if strings.HasPrefix(q.Subject.ID, "203.") {
			answers(400, "no such client")(w, r)
			return
		}
		answers(200, verdictOn(q.Subject.ID))(w, r)
		return
	}
	b.batches = append(b.batches, len(q.Evaluations))
	var out []string
	for _, e := range q.Evaluations {
		switch {
		case e.Context["source_ip"] != e.Subject.ID:
			answers(400, "which one?")(w, r)
			return
		case b.refuseForOne && strings.HasPrefix(e.Subject.ID, "203."):
			answers(400, "one of them is wrong")(w, r)
			return
		case strings.HasPrefix(e.Subject.ID, "203."):
			out = append(out, `{"decision":false,"context":{"error":{"status":400,"message":"no such client"}}}`)
		default:
			out = append(out, verdictOn(e.Subject.ID))
		}
	}
	if b.status != 0 {
		answers(b.status, "")(w, r)
		return
	}
	answers(200, `{"evaluations":[`+strings.Join(out, ",")+`]}`)(w, r)
}

func verdictOn(ip string) string {
	return fmt.Sprintf(`{"decision":%v,"context":{"reason":%q}}`, strings.HasPrefix(ip, "192.0.2."), ip)
}

// counts returns what was asked since the last call.
func (b *batchPDP) counts() (single int, batches []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	single, batches = b.single, b.batches
	b.single, b.batches = 0, nil
	slices.Sort(batches)
	return single, batches
}

// sweep asks about these clients and checks each answer.
func sweep(t *testing.T, a *AuthZEN, ips ...string) []authz.Decision {
	t.Helper()
	rs := make([]*authz.Request, len(ips))
	for i, ip := range ips {
		rs[i] = request(ip, 1000+i)
	}
	ds := a.DecideBatch(context.Background(), rs)
	if len(ds) != len(ips) {
		t.Fatalf("%d answers to %d questions", len(ds), len(ips))
	}
	for i, ip := range ips {
		want := authz.Deny
		switch {
		case strings.HasPrefix(ip, "192.0.2."):
			want = authz.Allow
		case strings.HasPrefix(ip, "203."):
			want = authz.Error
		}
		if ds[i].Outcome != want || want != authz.Error && ds[i].Reason != ip || ds[i].Engine != "authzen" {
			t.Errorf("%s: %+v", ip, ds[i])
		}
	}
	return ds
}

// crowd is n different clients, of whom every third may not connect.
func crowd(n int) []string {
	ips := make([]string, n)
	for i := range ips {
		ips[i] = fmt.Sprintf("192.0.2.%d", i)
		if i%3 == 0 {
			ips[i] = fmt.Sprintf("198.51.100.%d", i)
		}
	}
	return ips
}

func TestBatch(t *testing.T) {
	b := newBatchPDP(t)
	a := provision(t, &AuthZEN{Endpoint: b.URL + "/access/v1/evaluation", Timeout: patient})
	ds := sweep(t, a, crowd(250)...)
	if single, batches := b.counts(); single != 0 || !slices.Equal(batches, []int{50, 100, 100}) {
		t.Errorf("%d single questions and batches of %v", single, batches)
	}
	if ds[0].ID == "" || ds[0].Cached || ds[1].Cached {
		t.Errorf("%+v", ds[0])
	}
	// What is remembered is not asked again, whoever asks.
	ds = sweep(t, a, crowd(250)...)
	if d := ask(a, "192.0.2.1", 1); !d.Cached || !ds[0].Cached {
		t.Errorf("%+v, %+v", d, ds[0])
	}
	if single, batches := b.counts(); single != 0 || batches != nil {
		t.Errorf("%d single questions and batches of %v", single, batches)
	}
	a.Flush()
	sweep(t, a, "192.0.2.1", "198.51.100.3")
	if single, batches := b.counts(); single != 0 || !slices.Equal(batches, []int{2}) {
		t.Errorf("%d single questions and batches of %v after a flush", single, batches)
	}
}

// A PDP that has no batch endpoint is asked one by one, and not asked for the
// endpoint each time.
func TestBatchEndpointMissing(t *testing.T) {
	for _, status := range []int{404, 405, 501} {
		b := newBatchPDP(t)
		b.status = status
		a := provision(t, &AuthZEN{Endpoint: b.URL + "/access/v1/evaluation", CacheTTL: -1, DenyTTL: -1, Timeout: patient})
		sweep(t, a, crowd(20)...)
		if single, batches := b.counts(); single != 20 || len(batches) != 1 {
			t.Errorf("%d: %d single questions and batches of %v", status, single, batches)
		}
		sweep(t, a, crowd(20)...)
		if single, batches := b.counts(); single != 20 || len(batches) != 0 {
			t.Errorf("%d: %d single questions and batches of %v the second time", status, single, batches)
		}
		a.client.batchless.until.Store(1) // an hour later
		b.status = 0
		sweep(t, a, crowd(20)...)
		if single, batches := b.counts(); single != 0 || len(batches) != 1 {
			t.Errorf("%d: %d single questions and batches of %v after an hour", status, single, batches)
		}
	}
}

func TestBatchIsOff(t *testing.T) {
	b := newBatchPDP(t)
	for name, a := range map[string]*AuthZEN{
		"by the configuration": {Endpoint: b.URL + "/access/v1/evaluation", BatchEndpoint: off},
		"by the path":          {Endpoint: b.URL + "/v0/data/nowconnect/decision"},
	} {
		a.Timeout = patient
		sweep(t, provision(t, a), crowd(20)...)
		if single, batches := b.counts(); single != 20 || batches != nil {
			t.Errorf("%s: %d single questions and batches of %v", name, single, batches)
		}
	}
	a := provision(t, &AuthZEN{Endpoint: b.URL + "/x", BatchEndpoint: b.URL + "/access/v1/evaluations", Timeout: patient})
	sweep(t, a, crowd(20)...)
	if single, batches := b.counts(); single != 0 || len(batches) != 1 {
		t.Errorf("an endpoint of its own: %d single questions and batches of %v", single, batches)
	}
}

// One question that the PDP cannot judge is an error, and no denial; the others
// of the batch have their answers, whether the PDP refuses one or all for it.
func TestBatchWithOneQuestionThatFails(t *testing.T) {
	for _, all := range []bool{false, true} {
		b := newBatchPDP(t)
		b.refuseForOne = all
		a := provision(t, &AuthZEN{Endpoint: b.URL + "/access/v1/evaluation", Timeout: patient})
		ips := append(crowd(20), "203.0.113.1")
		ds := sweep(t, a, ips...)
		if d := ds[20]; authz.KindOf(d) != authz.KindRejected || !strings.Contains(d.Err.Error(), "no such client") {
			t.Errorf("%+v", d)
		}
		want := 1
		if all {
			want = 21
		}
		if single, batches := b.counts(); single != want || len(batches) != 1 {
			t.Errorf("%d single questions and batches of %v", single, batches)
		}
		b.refuseForOne = false
		sweep(t, a, "192.0.2.200", "192.0.2.201") // it has not been given up for that
		if single, batches := b.counts(); single != 0 || len(batches) != 1 {
			t.Errorf("%d single questions and batches of %v", single, batches)
		}
	}
}

// Answers that cannot be told apart, or are none, are errors for all, and so is
// a PDP that fails.
func TestBatchAnswersThatAreNone(t *testing.T) {
	const yes = `{"decision":true}`
	for name, c := range map[string]struct {
		status int
		body   string
		kind   authz.Kind
		says   string
	}{
		"too few":    {200, `{"evaluations":[` + yes + `]}`, authz.KindDecode, "1 answers to 2 questions"},
		"too many":   {200, `{"evaluations":[` + yes + `,` + yes + `,` + yes + `]}`, authz.KindDecode, "3 answers to 2 questions"},
		"none":       {200, `{"evaluations":null}`, authz.KindDecode, "0 answers to 2 questions"},
		"single":     {200, yes, authz.KindDecode, "no list evaluations"},
		"other case": {200, `{"Evaluations":[` + yes + `,` + yes + `]}`, authz.KindDecode, "no list evaluations"},
		"garbage":    {200, "<html>", authz.KindDecode, "not a JSON object"},
		"no objects": {200, `{"evaluations":[true,true]}`, authz.KindDecode, "not a JSON object"},
		"huge":       {200, `{"evaluations":[` + yes + `,` + yes + `],"x":"` + strings.Repeat("x", 200<<10) + `"}`, authz.KindDecode, "larger than 131072"},
		"500":        {500, "", authz.KindUnavailable, "status 500"},
		"401":        {401, "", authz.KindRejected, "status 401"},
	} {
		p := newPDP(t, answers(c.status, c.body), (*httptest.Server).Start)
		a := provision(t, &AuthZEN{Endpoint: p.URL + "/access/v1/evaluation", Timeout: patient})
		for _, d := range a.DecideBatch(context.Background(), []*authz.Request{request("192.0.2.1", 1), request("192.0.2.2", 1)}) {
			if d.Outcome != authz.Error || authz.KindOf(d) != c.kind || !strings.Contains(d.Err.Error(), c.says) {
				t.Errorf("%s: %+v", name, d)
			}
		}
		if n := p.calls.Load(); n != 1 {
			t.Errorf("%s: asked %d times", name, n)
		}
	}
}

func TestBatchOnErrorAllow(t *testing.T) {
	p := newPDP(t, answers(500, ""), (*httptest.Server).Start)
	a := provision(t, &AuthZEN{Endpoint: p.URL + "/access/v1/evaluation", OnError: onErrorAllow, Timeout: patient})
	for _, d := range a.DecideBatch(context.Background(), []*authz.Request{request("192.0.2.1", 1), request("192.0.2.2", 1)}) {
		if d.Outcome != authz.Allow || d.Reason != "on_error allow" || d.Err == nil {
			t.Errorf("%+v", d)
		}
	}
}
