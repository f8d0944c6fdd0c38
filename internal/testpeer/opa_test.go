//go:build unix

package testpeer

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestOPAAnswersAndReloads(t *testing.T) {
	policy := func(allow string) string {
		return "package p\ndecision := {\"decision\": " + allow + ", \"context\": {\"asked\": input.subject.id}}\n"
	}
	s := OPA(t, OPAOptions{Files: map[string]string{"p.rego": policy("true")}})
	ask := func(rule string) (status int, answer string) {
		t.Helper()
		resp, err := http.Post(s.URL+"/v0/data/p/"+rule, "application/json", strings.NewReader(`{"subject":{"id":"x"}}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(b))
	}
	if status, answer := ask("decision"); status != 200 || answer != `{"context":{"asked":"x"},"decision":true}` {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := ask("undefined"); status != 404 {
		t.Errorf("an undefined rule: %d %s", status, answer)
	}
	s.Write("p.rego", policy("false"))
	if status, answer := ask("decision"); status != 200 || answer != `{"context":{"asked":"x"},"decision":false}` {
		t.Errorf("%d %s", status, answer)
	}
	if n := s.Asked(); n != 3 {
		t.Errorf("asked %d times by its own count", n)
	}
	// What is built already is used as it is.
	before, err := os.Stat(OPABinary(t))
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(OPABinary(t)); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("built again: %v", err)
	}
}
