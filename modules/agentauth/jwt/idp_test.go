package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// idp is an identity provider: it publishes keys over HTTP and signs with them.
type idp struct {
	addr  string
	asked atomic.Int32 // requests for the keys

	mu     sync.Mutex
	set    jose.JSONWebKeySet
	answer http.HandlerFunc // instead of the set
	server *httptest.Server
}

func newIDP(t *testing.T, keys ...jose.JSONWebKey) *idp {
	t.Helper()
	p := &idp{addr: "127.0.0.1:0"}
	p.publish(keys...)
	p.start(t)
	t.Cleanup(p.stop)
	return p
}

func (p *idp) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: p}}
	s.Start()
	p.mu.Lock()
	p.server = s
	p.mu.Unlock()
}

func (p *idp) stop() {
	p.mu.Lock()
	s := p.server
	p.server = nil
	p.mu.Unlock()
	if s != nil {
		s.CloseClientConnections()
		s.Close()
	}
}

func (p *idp) url() string { return "http://" + p.addr + "/jwks.json" }

// publish makes these the key set: their public halves.
func (p *idp) publish(keys ...jose.JSONWebKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set.Keys = []jose.JSONWebKey{}
	for _, k := range keys {
		p.set.Keys = append(p.set.Keys, k.Public())
	}
}

// say makes this the answer, whatever the keys.
func (p *idp) say(f http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = f
}

func (p *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	p.mu.Lock()
	answer := p.answer
	b, _ := json.Marshal(p.set)
	p.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	w.Write(b)
}

// Keys take long to make: each kind is made once.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	shortKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newEC(kid string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), KeyID: kid, Algorithm: "ES256", Use: "sig"}
}

func newEd(kid string) jose.JSONWebKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	return jose.JSONWebKey{Key: must(k, err), KeyID: kid}
}

const (
	issuer   = "https://idp.example.com"
	audience = "nowconnect"
)

type claimSet map[string]any

// good returns the claims of a good token, changed by edits; nil removes one.
func good(edits claimSet) claimSet {
	c := claimSet{
		"iss": issuer, "aud": audience, "agent_id": "premise-1",
		"exp": time.Now().Add(time.Hour).Unix(), "nbf": time.Now().Unix(),
	}
	for k, v := range edits {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

// sign makes a token. The key's id goes into the header if it has one.
func sign(t testing.TB, k jose.JSONWebKey, alg jose.SignatureAlgorithm, claims claimSet) string {
	t.Helper()
	return signRaw(t, k, alg, must(json.Marshal(claims)))
}

func signRaw(t testing.TB, k jose.JSONWebKey, alg jose.SignatureAlgorithm, payload []byte) string {
	t.Helper()
	k.Use, k.Algorithm = "", ""
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: k}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	return must(o.CompactSerialize())
}

// config is a module whose timing lets a test decide when keys are fetched.
func config(p *idp) *JWT {
	return &JWT{
		JWKSURL: p.url(), Issuer: issuer, Audience: []string{audience},
		RefreshInterval: caddy.Duration(time.Hour), RefreshCooldown: 1, FetchTimeout: caddy.Duration(5 * time.Second),
	}
}

// provision takes the module into use until the test ends or the returned
// function is called.
func provision(t *testing.T, m *JWT) (cleanup func()) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	if err := m.Provision(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	cleanup = sync.OnceFunc(func() {
		if err := m.Cleanup(); err != nil {
			t.Error(err)
		}
		cancel()
	})
	t.Cleanup(cleanup)
	return cleanup
}

func request(token string) *http.Request {
	r, _ := http.NewRequest("GET", "http://hub/tunnel", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// watch runs a key set by itself and collects what it logs.
func watch(t *testing.T, src source) (*keySet, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	s, err := startKeySet(src, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Destruct() })
	s.waitFirst(t.Context())
	return s, logs
}

func thumbOf(t *testing.T, k jose.JSONWebKey) thumbprint {
	t.Helper()
	return thumbprint(must(k.Thumbprint(crypto.SHA256)))
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}
