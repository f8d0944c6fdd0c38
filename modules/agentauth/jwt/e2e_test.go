package jwt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// provider is an identity provider, which can go down.
type provider struct {
	url       string
	key       jose.JSONWebKey // that it signs with
	down      atomic.Bool
	published atomic.Pointer[jose.JSONWebKeySet]
}

func newKey(t *testing.T, kid string) jose.JSONWebKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return jose.JSONWebKey{Key: k, KeyID: kid}
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{key: newKey(t, "k1")}
	p.publish(p.key)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if p.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		json.NewEncoder(w).Encode(p.published.Load())
	}))
	t.Cleanup(s.Close)
	p.url = s.URL + "/jwks.json"
	return p
}

// publish makes these the key set.
func (p *provider) publish(keys ...jose.JSONWebKey) {
	set := new(jose.JSONWebKeySet)
	for _, k := range keys {
		set.Keys = append(set.Keys, k.Public())
	}
	p.published.Store(set)
}

func (p *provider) token(t *testing.T, connectors ...string) string {
	t.Helper()
	return p.sign(t, time.Hour, map[string]any{"connectors": connectors})
}

// sign makes a token for connector echo that is good for so long, rounded up to
// whole seconds, with changed claims.
func (p *provider) sign(t *testing.T, life time.Duration, edits map[string]any) string {
	t.Helper()
	claims := map[string]any{
		"iss": "https://idp.example.com", "aud": "nowconnect", "agent_id": "premise-1",
		"exp": time.Now().Add(life + time.Second - 1).Unix(), "connectors": []string{"echo"},
	}
	maps.Copy(claims, edits)
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: p.key}, payload)
}

func signWith(t *testing.T, key jose.SigningKey, payload []byte) string {
	t.Helper()
	s, err := jose.NewSigner(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// caddyfile is the usual one with this provider instead of the token.
func caddyfile(h *hubtest.Hub, p *provider, audience, also string) string {
	return h.Caddyfile(also+`agent_auth jwt {
			jwks_url `+p.url+`
			issuer https://idp.example.com
			audience `+audience+`
			require_connector_scopes
			refresh_cooldown 1s
		}
		pdp allow_all
		connector echo {
			agents premise-1
		}`, hubtest.Layer4, hubtest.Site)
}

func links() int {
	n := 0
	for _, a := range nowconnect.Current().Hub().Status().Agents {
		n += len(a.Links)
	}
	return n
}

func TestAgentWithJWT(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Load(caddyfile(h, p, "nowconnect", ""))
	token := p.token(t, "echo")
	h.Write("token", token+"\n")
	h.Agent(nil)
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")

	// While the provider is down, a reload loses nothing and the agent's next
	// login works too.
	p.down.Store(true)
	h.Load(caddyfile(h, p, "nowconnect other", ""))
	hubtest.RoundTrip(t, session, "after a reload")
	h.Load(caddyfile(h, p, "nowconnect", "max_sessions 100\n\t\t"))
	hubtest.RoundTrip(t, session, "after another")

	// Another audience: the live link is not valid any more, nor is its token.
	h.Load(caddyfile(h, p, "elsewhere", ""))
	if _, err := io.ReadFull(session, make([]byte, 1)); err == nil {
		t.Error("the session goes on")
	}
	hubtest.Eventually(t, "the agent is refused", func() bool {
		return links() == 0 && strings.Contains(h.Logged(), "it is for another audience")
	})

	// The way back.
	h.Load(caddyfile(h, p, "nowconnect", ""))
	hubtest.Eventually(t, "the agent is back", func() bool { return links() == 1 })
	hubtest.RoundTrip(t, h.Dial(), "again")

	_, config := h.AdminDo(http.MethodGet, "/config/", "", "")
	signature := token[strings.LastIndex(token, ".")+1:]
	if strings.Contains(h.Logged(), signature) || strings.Contains(config, signature) {
		t.Error("the token is in the log or in the configuration")
	}
}

// The configuration and the token must both give the agent a connector.
func TestConnectorThatTheTokenDoesNotList(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Load(caddyfile(h, p, "nowconnect", ""))
	a, err := agent.New(agent.Config{
		URL: "http://" + h.HTTP + "/tunnel", AgentID: "premise-1", TokenFile: h.Write("token", p.token(t, "files")),
		Targets: map[string]agent.Target{"echo": {Host: "127.0.0.1", Port: 1}}, Links: 1,
	}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	hubtest.Eventually(t, "the hub refuses the connector", func() bool {
		return strings.Contains(h.Logged(), `"refused":["echo"],"accepted":[]`)
	})
	h.Refused()
}

// Several methods stand side by side; one must pass.
func TestTokenBesideJWT(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Write("secret", hubtest.Token)
	h.Load(caddyfile(h, p, "nowconnect", "agent_auth token {\n\t\t\tagent premise-1 {file.$DIR/secret}\n\t\t}\n\t\t"))
	stop := h.Agent(nil) // the token file holds the secret
	hubtest.RoundTrip(t, h.Dial(), "with the secret")
	stop()
	hubtest.Eventually(t, "the hub has noticed", func() bool { return links() == 0 })
	h.Write("token", p.token(t, "echo"))
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "with the JWT")
}

// The hub starts without its provider, refuses logins, says why, and finds it.
func TestProviderOfflineAtStart(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	p.down.Store(true)
	h.Load(caddyfile(h, p, "nowconnect", ""))
	h.Write("token", p.token(t, "echo"))
	if !strings.Contains(h.Logged(), "agents with a JWT cannot log in until they can be fetched") {
		t.Error("the log does not say that there are no keys")
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+h.HTTP+"/tunnel", nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(h.Dir + "/token")
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{
		"Authorization": {"Bearer " + string(token)}, "Connection": {"Upgrade"}, "Upgrade": {"nowconnect"}, "Nowconnect-Version": {"1"},
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d", resp.StatusCode)
	}
	p.down.Store(false)
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "hello")
}
