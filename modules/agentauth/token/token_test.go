package token

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

const (
	first  = "first-secret-of-premise-1"
	second = "second-secret-of-premise-1"
	other  = "the-only-secret-of-premise-2"
)

func provision(t *testing.T, agents map[string][]string) *Token {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	m := &Token{Agents: agents}
	if err := m.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

func usual(t *testing.T) *Token {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(first+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NC_TEST_SECOND", second)
	sum := sha256.Sum256([]byte(other))
	return provision(t, map[string][]string{
		"premise-1": {"{file." + file + "}", "{env.NC_TEST_SECOND}"},
		"premise-2": {"sha256:" + strings.ToUpper(hex.EncodeToString(sum[:]))},
	})
}

func request(hint string, authorization ...string) *http.Request {
	r, _ := http.NewRequest("GET", "http://hub/tunnel", nil)
	if hint != "" {
		r.Header.Set("Nowconnect-Agent", hint)
	}
	for _, a := range authorization {
		r.Header.Add("Authorization", a)
	}
	return r
}

func TestAuthenticate(t *testing.T) {
	m := usual(t)
	for name, c := range map[string]struct {
		r    *http.Request
		want string // agent; empty means refused
		err  error
	}{
		"file":                  {request("premise-1", "Bearer "+first), "premise-1", nil},
		"variable":              {request("premise-1", "Bearer "+second), "premise-1", nil},
		"hash":                  {request("premise-2", "Bearer "+other), "premise-2", nil},
		"no hint":               {request("", "Bearer "+other), "premise-2", nil},
		"scheme in lower case":  {request("premise-1", "bearer "+first), "premise-1", nil},
		"wrong hint":            {request("premise-2", "Bearer "+first), "", nowconnect.ErrBadCredential},
		"unknown hint":          {request("premise-3", "Bearer "+first), "", nowconnect.ErrBadCredential},
		"wrong secret":          {request("premise-1", "Bearer "+first+"x"), "", nowconnect.ErrBadCredential},
		"part of the secret":    {request("premise-1", "Bearer "+first[:20]), "", nowconnect.ErrBadCredential},
		"the hash as a secret":  {request("premise-2", "Bearer sha256:"+hex.EncodeToString(sum(other))), "", nowconnect.ErrBadCredential},
		"the placeholder":       {request("premise-1", "Bearer {env.NC_TEST_SECOND}"), "", nowconnect.ErrBadCredential},
		"empty":                 {request("premise-1", "Bearer "), "", nowconnect.ErrBadCredential},
		"nothing after bearer":  {request("premise-1", "Bearer"), "", nowconnect.ErrBadCredential},
		"no header":             {request("premise-1"), "", nowconnect.ErrNoCredential},
		"another scheme":        {request("premise-1", "Basic "+first), "", nowconnect.ErrNoCredential},
		"two headers":           {request("premise-1", "Bearer "+first, "Bearer "+first), "", nowconnect.ErrBadCredential},
		"wrong secret, no hint": {request("", "Bearer nobody-has-this-secret"), "", nowconnect.ErrBadCredential},
	} {
		id, err := m.Authenticate(c.r)
		if id.AgentID != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", name, id.AgentID, err, c.want, c.err)
		}
		if err == nil && (!m.StillValid(id) || id.Method != "token") {
			t.Errorf("%s: %+v is not valid", name, id)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error tells too much: %v", name, err)
		}
	}
}

func sum(s string) []byte { d := sha256.Sum256([]byte(s)); return d[:] }

func TestStillValidUnderAnotherConfiguration(t *testing.T) {
	m := usual(t)
	id, err := m.Authenticate(request("premise-1", "Bearer "+second))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		agents map[string][]string
		valid  bool
	}{
		"kept":              {map[string][]string{"premise-1": {second}}, true},
		"as a hash":         {map[string][]string{"premise-1": {"sha256:" + hex.EncodeToString(sum(second))}}, true},
		"rotated":           {map[string][]string{"premise-1": {"a-third-secret-of-premise-1"}}, false},
		"given to another":  {map[string][]string{"premise-2": {second}}, false},
		"agent taken out":   {map[string][]string{"premise-2": {other}}, false},
		"both in rotation":  {map[string][]string{"premise-1": {"a-third-secret-of-premise-1", second}}, true},
		"only the old one":  {map[string][]string{"premise-1": {first}}, false},
		"among many agents": {map[string][]string{"premise-0": {other}, "premise-1": {second}}, true},
	} {
		agents := make(map[string][]string)
		for agent, secrets := range c.agents {
			for i, s := range secrets {
				if !strings.HasPrefix(s, hashPrefix) {
					variable := fmt.Sprintf("NC_TEST_%x_%d", agent, i)
					t.Setenv(variable, s)
					s = "{env." + variable + "}"
				}
				agents[agent] = append(agents[agent], s)
			}
		}
		if got := provision(t, agents).StillValid(id); got != c.valid {
			t.Errorf("%s: %v", name, got)
		}
	}
	foreign := id
	foreign.Method = "jwt"
	if m.StillValid(foreign) || m.StillValid(hub.Identity{AgentID: "premise-1", Method: "token"}) {
		t.Error("an identity that this module did not make is valid")
	}
}

func TestAgentIDs(t *testing.T) {
	if ids := usual(t).AgentIDs(); !reflect.DeepEqual(ids, []string{"premise-1", "premise-2"}) {
		t.Errorf("%q", ids)
	}
}

// No field of the module holds a secret once it is provisioned.
func TestPlaintextIsNotKept(t *testing.T) {
	m := usual(t)
	var walk func(v reflect.Value) string
	walk = func(v reflect.Value) (found string) {
		switch v.Kind() {
		case reflect.String:
			return v.String() + "\n"
		case reflect.Pointer:
			return walk(v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				found += walk(v.Field(i))
			}
		case reflect.Slice:
			for i := range v.Len() {
				found += walk(v.Index(i))
			}
		case reflect.Map:
			for _, k := range v.MapKeys() {
				found += walk(k) + walk(v.MapIndex(k))
			}
		}
		return found
	}
	all := walk(reflect.ValueOf(m))
	if !strings.Contains(all, "{env.NC_TEST_SECOND}") {
		t.Fatal("the walk does not see the module's strings")
	}
	for _, s := range []string{first, second, other} {
		if strings.Contains(all, s) {
			t.Errorf("%q is kept", s)
		}
	}
}

// A secret that stands in the configuration would be on /config and in the
// autosave: it does not load, and the error does not repeat it.
func TestLiteralSecretsDoNotLoad(t *testing.T) {
	t.Setenv("NC_TEST_PART", "of-a-secret-0123456789")
	for name, s := range map[string]string{
		"plain":                   first,
		"around a placeholder":    "part-{env.NC_TEST_PART}",
		"behind a placeholder":    "{env.NC_TEST_PART}part",
		"two placeholders":        "{env.NC_TEST_PART}{env.NC_TEST_PART}",
		"an open brace":           "{" + first,
		"a digest in other words": "SHA256:" + hex.EncodeToString(sum(first)),
	} {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		err := (&Token{Agents: map[string][]string{"premise-1": {s}}}).Provision(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), `agent "premise-1": a secret stands in the configuration itself`) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), first) {
			t.Errorf("%s: the error repeats it: %v", name, err)
		}
	}
}
