package jwt

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func TestAuthenticate(t *testing.T) {
	es, ed := newEC("es"), newEd("ed")
	rs := jose.JSONWebKey{Key: rsaKey(), KeyID: "rs"}
	m := config(newIDP(t, es, ed, rs))
	provision(t, m)
	exp := time.Now().Add(time.Hour).Truncate(time.Second)
	anonymous := es
	anonymous.KeyID = ""
	for name, token := range map[string]string{
		"ES256":                sign(t, es, jose.ES256, good(claimSet{"exp": exp.Unix()})),
		"EdDSA":                sign(t, ed, jose.EdDSA, good(claimSet{"exp": exp.Unix()})),
		"RS256":                sign(t, rs, jose.RS256, good(claimSet{"exp": exp.Unix()})),
		"PS256":                sign(t, rs, jose.PS256, good(claimSet{"exp": exp.Unix()})),
		"no key id":            sign(t, anonymous, jose.ES256, good(claimSet{"exp": exp.Unix()})),
		"one of its audiences": sign(t, es, jose.ES256, good(claimSet{"exp": exp.Unix(), "aud": []string{"other", audience}})),
		"no nbf":               sign(t, es, jose.ES256, good(claimSet{"exp": exp.Unix(), "nbf": nil})),
		"nbf within skew":      sign(t, es, jose.ES256, good(claimSet{"exp": exp.Unix(), "nbf": time.Now().Add(50 * time.Second).Unix()})),
		"fraction of a second": sign(t, es, jose.ES256, good(claimSet{"exp": float64(exp.Unix()) + 0.5})),
	} {
		r := request(token)
		r.Header.Set(nowconnect.HeaderAgent, "premise-1")
		id, err := m.Authenticate(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := hub.Identity{AgentID: "premise-1", Method: "jwt", Credential: sha256.Sum256([]byte(token)), Expires: exp.Add(time.Minute)}
		if id.AgentID != want.AgentID || id.Method != want.Method || id.Credential != want.Credential ||
			!id.Expires.Equal(want.Expires) || id.Connectors != nil {
			t.Errorf("%s: %+v, want %+v", name, id, want)
		}
		if !m.StillValid(id) {
			t.Errorf("%s: not valid any more", name)
		}
	}
	if ids := m.AgentIDs(); ids != nil {
		t.Errorf("agents %q; only the provider can know", ids)
	}
}

// CVE class of Ziti GHSA-4h58-w989-xgg4: what is not checked lets everybody in.
func TestRefusesTokens(t *testing.T) {
	es, other, foreign := newEC("es"), newEC("other"), newEC("es")
	rs := jose.JSONWebKey{Key: rsaKey(), KeyID: "rs"}
	m := config(newIDP(t, es, other, rs))
	m.RefreshCooldown = caddy.Duration(time.Hour)
	provision(t, m)
	now := time.Now()
	valid := sign(t, es, jose.ES256, good(nil))
	b64 := base64.RawURLEncoding.EncodeToString
	parts := strings.Split(valid, ".")
	public := must(x509.MarshalPKIXPublicKey(&rsaKey().PublicKey))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	publicJWK := must(json.Marshal(rs.Public()))
	embedded := func() string {
		s := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: foreign.Key}, &jose.SignerOptions{EmbedJWK: true}))
		return must(must(s.Sign(must(json.Marshal(good(nil))))).CompactSerialize())
	}
	for name, c := range map[string]struct{ token, says string }{
		"another issuer":          {sign(t, es, jose.ES256, good(claimSet{"iss": issuer + "/"})), "issuer"},
		"no issuer":               {sign(t, es, jose.ES256, good(claimSet{"iss": nil})), "iss"},
		"another audience":        {sign(t, es, jose.ES256, good(claimSet{"aud": "nowconnect2"})), "audience"},
		"no audience":             {sign(t, es, jose.ES256, good(claimSet{"aud": nil})), "aud"},
		"empty audience":          {sign(t, es, jose.ES256, good(claimSet{"aud": []string{}})), "audience"},
		"expired":                 {sign(t, es, jose.ES256, good(claimSet{"exp": now.Add(-61 * time.Second).Unix()})), "expired"},
		"no expiry":               {sign(t, es, jose.ES256, good(claimSet{"exp": nil})), "exp"},
		"null expiry":             {signRaw(t, es, jose.ES256, []byte(`{"iss":"`+issuer+`","aud":"nowconnect","agent_id":"premise-1","exp":null}`)), "exp"},
		"expiry in words":         {sign(t, es, jose.ES256, good(claimSet{"exp": "never"})), "exp"},
		"expiry without end":      {sign(t, es, jose.ES256, good(claimSet{"exp": 1e300})), "exp"},
		"not yet valid":           {sign(t, es, jose.ES256, good(claimSet{"nbf": now.Add(70 * time.Second).Unix()})), "nbf"},
		"nbf in words":            {sign(t, es, jose.ES256, good(claimSet{"nbf": "tomorrow"})), "nbf"},
		"no agent":                {sign(t, es, jose.ES256, good(claimSet{"agent_id": nil})), "agent_id"},
		"agent is no name":        {sign(t, es, jose.ES256, good(claimSet{"agent_id": "premise/1"})), "agent_id"},
		"agent is a number":       {sign(t, es, jose.ES256, good(claimSet{"agent_id": 1})), "agent_id"},
		"claim in another case":   {sign(t, es, jose.ES256, good(claimSet{"agent_id": nil, "Agent_ID": "premise-1"})), "agent_id"},
		"claim twice":             {signRaw(t, es, jose.ES256, []byte(`{"agent_id":"premise-2",`+string(must(json.Marshal(good(nil)))[1:]))), "unique"},
		"claims are no object":    {signRaw(t, es, jose.ES256, []byte(`["premise-1"]`)), "object"},
		"alg none":                {b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", "none"},
		"alg none, signature":     {b64([]byte(`{"alg":"none","kid":"es"}`)) + "." + parts[1] + "." + parts[2], "none"},
		"alg None":                {b64([]byte(`{"alg":"None"}`)) + "." + parts[1] + ".", "None"},
		"no alg":                  {b64([]byte(`{"kid":"es"}`)) + "." + parts[1] + "." + parts[2], "algorithm"},
		"HS256, the public PEM":   {sign(t, jose.JSONWebKey{Key: publicPEM, KeyID: "rs"}, jose.HS256, good(nil)), "HS256"},
		"HS256, the public DER":   {sign(t, jose.JSONWebKey{Key: public, KeyID: "rs"}, jose.HS256, good(nil)), "HS256"},
		"HS256, the public JWK":   {sign(t, jose.JSONWebKey{Key: publicJWK, KeyID: "rs"}, jose.HS256, good(nil)), "HS256"},
		"allowed nowhere, RS512":  {sign(t, rs, jose.RS512, good(nil)), "RS512"},
		"a stranger's key":        {sign(t, foreign, jose.ES256, good(nil)), "does not fit"},
		"a stranger's, no id":     {sign(t, jose.JSONWebKey{Key: foreign.Key}, jose.ES256, good(nil)), "no key"},
		"signed by another key":   {sign(t, jose.JSONWebKey{Key: other.Key, KeyID: "es"}, jose.ES256, good(nil)), "does not fit"},
		"unknown key":             {sign(t, jose.JSONWebKey{Key: es.Key, KeyID: "new"}, jose.ES256, good(nil)), "kid"},
		"its key in the header":   {embedded(), "no key"},
		"payload changed":         {parts[0] + "." + b64([]byte(`{"agent_id":"premise-2"}`)) + "." + parts[2], "does not fit"},
		"signature cut":           {parts[0] + "." + parts[1] + ".", "does not fit"},
		"not base64":              {"a.!.c", "not a signed JWT"},
		"header is no JSON":       {"YQ.YQ.YQ", "not a signed JWT"},
		"JSON instead of compact": {`{"payload":"a.b.c"}`, "not a signed JWT"},
		"longer than any":         {parts[0] + "." + strings.Repeat("A", maxToken) + "." + parts[2], "longer"},
	} {
		id, err := m.Authenticate(request(c.token))
		if !errors.Is(err, nowconnect.ErrBadCredential) || id.AgentID != "" {
			t.Errorf("%s: %+v, %v", name, id, err)
			continue
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q does not say %q", name, err, c.says)
		}
		for _, part := range strings.Split(c.token, ".") {
			if len(part) > 16 && strings.Contains(err.Error(), part[:16]) {
				t.Errorf("%s: the error repeats the token: %v", name, err)
			}
		}
	}
	r := request(valid)
	r.Header.Set(nowconnect.HeaderAgent, "premise-2")
	if _, err := m.Authenticate(r); !errors.Is(err, nowconnect.ErrBadCredential) {
		t.Errorf("token of another agent than announced: %v", err)
	}
	for name, token := range map[string]string{"a secret": "correct-horse-battery-staple", "encrypted": "a.b.c.d.e"} {
		if _, err := m.Authenticate(request(token)); !errors.Is(err, nowconnect.ErrNoCredential) {
			t.Errorf("%s, which is another method's affair: %v", name, err)
		}
	}
	if _, err := m.Authenticate(request(valid)); err != nil {
		t.Errorf("the good token in the end: %v", err)
	}
}

// A key that says what it is for is used for nothing else.
func TestKeysThatMayNotVerify(t *testing.T) {
	forRS384 := jose.JSONWebKey{Key: rsaKey(), KeyID: "alg", Algorithm: "RS384"}
	encryption := newEC("enc")
	encryption.Use = "enc"
	short := jose.JSONWebKey{Key: shortKey(), KeyID: "short"}
	private, symmetric, fine := newEC("private"), jose.JSONWebKey{Key: []byte(strings.Repeat("k", 32)), KeyID: "oct"}, newEC("fine")
	p := newIDP(t)
	set := must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		forRS384.Public(), encryption.Public(), short.Public(), private, symmetric, fine.Public(),
	}}))
	set = []byte(strings.Replace(string(set), `{"keys":[`, `{"keys":[{"kty":"OKP","crv":"X448","x":"AA"},{"kty":"new"},7,`, 1))
	p.say(func(w http.ResponseWriter, _ *http.Request) { w.Write(set) })
	m := config(p)
	m.Algorithms = []string{"RS256", "ES256"}
	provision(t, m)
	for _, token := range []string{
		sign(t, forRS384, jose.RS256, good(nil)), sign(t, encryption, jose.ES256, good(nil)),
		sign(t, private, jose.ES256, good(nil)), shortToken(t),
	} {
		if id, err := m.Authenticate(request(token)); err == nil {
			t.Errorf("%+v was let in", id)
		}
	}
	if _, err := m.Authenticate(request(sign(t, fine, jose.ES256, good(nil)))); err != nil {
		t.Errorf("the one good key: %v", err)
	}
}

// shortToken is signed by a key that is too short for crypto/rsa to make new.
func shortToken(t *testing.T) string {
	return sign(t, jose.JSONWebKey{Key: shortKey(), KeyID: "short"}, jose.RS256, good(nil))
}

func TestConnectorScopes(t *testing.T) {
	k := newEC("k")
	m := config(newIDP(t, k))
	m.RequireConnectorScopes = true
	provision(t, m)
	for name, c := range map[string]struct {
		claims claimSet
		want   []string // nil means refused
	}{
		"connectors":              {claimSet{"connectors": []string{"b", "a", "a"}}, []string{"a", "b"}},
		"connectors as words":     {claimSet{"connectors": "a b"}, []string{"a", "b"}},
		"scp as a list":           {claimSet{"scp": []string{"a"}}, []string{"a"}},
		"scp as words":            {claimSet{"scp": "a b"}, []string{"a", "b"}},
		"scope":                   {claimSet{"scope": "a https://graph.example.com/.default"}, []string{"a"}},
		"connectors beats scope":  {claimSet{"connectors": []string{"a"}, "scope": "b", "scp": "c"}, []string{"a"}},
		"scp beats scope":         {claimSet{"scope": "b", "scp": "c"}, []string{"c"}},
		"none":                    {nil, nil},
		"empty list":              {claimSet{"connectors": []string{}}, nil},
		"empty list, scope too":   {claimSet{"connectors": []string{}, "scope": "a"}, nil},
		"null, scope too":         {signNull("connectors", "a"), nil},
		"empty words":             {claimSet{"scp": " "}, nil},
		"number":                  {claimSet{"connectors": 7}, nil},
		"a number among the list": {claimSet{"connectors": []any{"a", 7}}, nil},
		"no proper name":          {claimSet{"connectors": []string{"a/b", "*"}}, nil},
	} {
		id, err := m.Authenticate(request(sign(t, k, jose.ES256, good(c.claims))))
		if !slices.Equal(id.Connectors, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %q, %v; want %q", name, id.Connectors, err, c.want)
		}
	}
}

// signNull gives claims with a null, which good takes for an absent one.
func signNull(name, scope string) claimSet {
	return claimSet{name: json.RawMessage("null"), "scope": scope}
}

func TestStillValidUnderAnotherConfiguration(t *testing.T) {
	k, second := newEC("k"), newEC("second")
	p := newIDP(t, k, second)
	m := config(p)
	cleanup := provision(t, m)
	id, err := m.Authenticate(request(sign(t, k, jose.ES256, good(claimSet{"sub": "premise-1", "connectors": []string{"a"}}))))
	if err != nil {
		t.Fatal(err)
	}
	without := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(without, must(json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{second.Public()}})), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit  func(*JWT)
		valid bool
	}{
		"the same":                {func(*JWT) {}, true},
		"one more audience":       {func(m *JWT) { m.Audience = append(m.Audience, "other") }, true},
		"another audience":        {func(m *JWT) { m.Audience = []string{"other"} }, false},
		"another issuer":          {func(m *JWT) { m.Issuer = "https://other.example.com" }, false},
		"algorithm taken out":     {func(m *JWT) { m.Algorithms = []string{"RS256"} }, false},
		"key gone":                {func(m *JWT) { m.JWKSURL, m.JWKSFile = "", without }, false},
		"the same by another URL": {func(m *JWT) { m.JWKSURL += "?x" }, true},
		"nobody answers":          {func(m *JWT) { m.JWKSURL = "http://127.0.0.1:1/" }, false},
		"claim, same name in it":  {func(m *JWT) { m.AgentClaim = "sub" }, true},
		"claim that is not there": {func(m *JWT) { m.AgentClaim = "azp" }, false},
		"scopes now required":     {func(m *JWT) { m.RequireConnectorScopes = true }, false},
	} {
		next := config(p)
		c.edit(next)
		provision(t, next)
		if got := next.StillValid(id); got != c.valid {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, edit := range map[string]func(*hub.Identity){
		"another agent":  func(i *hub.Identity) { i.AgentID = "premise-2" },
		"another method": func(i *hub.Identity) { i.Method = "token" },
		"never seen":     func(i *hub.Identity) { i.Credential[0]++ },
		"with scopes":    func(i *hub.Identity) { i.Connectors = []string{"b"} },
	} {
		forged := id
		if edit(&forged); m.StillValid(forged) {
			t.Errorf("%s: valid", name)
		}
	}
	cleanup()
	if !m.StillValid(id) {
		t.Error("not valid after Cleanup, when the next configuration is not in force yet")
	}
}

// A link does not outlive its token's expiry through a reload.
func TestStillValidEndsWithTheToken(t *testing.T) {
	k := newEC("k")
	m := config(newIDP(t, k))
	m.Skew = 1
	provision(t, m)
	id, err := m.Authenticate(request(sign(t, k, jose.ES256, good(claimSet{"exp": time.Now().Add(2 * time.Second).Unix()}))))
	if err != nil || !m.StillValid(id) {
		t.Fatal(err)
	}
	eventually(t, "it expires", func() bool { return !m.StillValid(id) })
	if time.Now().Before(id.Expires) {
		t.Errorf("at %v, it expires at %v", time.Now(), id.Expires)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := &memory{bound: 3}
	d := func(n byte) (d [32]byte) { d[0] = n; return d }
	in := func(s time.Duration) time.Time { return time.Now().Add(s) }
	m.put(d(1), proof{}, in(3*time.Hour))
	m.put(d(2), proof{}, in(time.Hour))
	m.put(d(3), proof{}, in(2*time.Hour))
	m.put(d(3), proof{}, in(2*time.Hour)) // no new one
	m.put(d(4), proof{}, in(4*time.Hour)) // in the place of what expires first
	m.put(d(5), proof{}, in(-time.Hour))  // in the place of 3
	m.put(d(6), proof{}, in(time.Hour))   // in the place of what has expired
	for n, want := range map[byte]bool{1: true, 2: false, 3: false, 4: true, 5: false, 6: true} {
		if _, got := m.get(d(n)); got != want {
			t.Errorf("%d: %v", n, got)
		}
	}
	if len(m.held) != 3 {
		t.Errorf("%d held", len(m.held))
	}
}

func TestRefusesConfigurations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, []byte(`{"keys":"none"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		m    JWT
		says string
	}{
		"no issuer":        {JWT{JWKSURL: "https://idp.example.com/", Audience: []string{"a"}}, "issuer"},
		"no audience":      {JWT{JWKSURL: "https://idp.example.com/", Issuer: "i"}, "audience"},
		"empty audience":   {JWT{JWKSURL: "https://idp.example.com/", Issuer: "i", Audience: []string{""}}, "audience"},
		"no keys":          {JWT{Issuer: "i", Audience: []string{"a"}}, "jwks_url and jwks_file"},
		"both":             {JWT{JWKSURL: "https://idp.example.com/", JWKSFile: file, Issuer: "i", Audience: []string{"a"}}, "jwks_url and jwks_file"},
		"plain http":       {JWT{JWKSURL: "http://idp.example.com/", Issuer: "i", Audience: []string{"a"}}, "https"},
		"http to 10/8":     {JWT{JWKSURL: "http://10.0.0.1/", Issuer: "i", Audience: []string{"a"}}, "https"},
		"looks like local": {JWT{JWKSURL: "http://localhost.example.com/", Issuer: "i", Audience: []string{"a"}}, "https"},
		"another scheme":   {JWT{JWKSURL: "file:///etc/passwd", Issuer: "i", Audience: []string{"a"}}, "URL"},
		"ftp":              {JWT{JWKSURL: "ftp://idp.example.com/", Issuer: "i", Audience: []string{"a"}}, "https"},
		"password":         {JWT{JWKSURL: "https://u:hidden@idp.example.com/", Issuer: "i", Audience: []string{"a"}}, "password"},
		"alg none":         {JWT{JWKSURL: "https://idp.example.com/", Issuer: "i", Audience: []string{"a"}, Algorithms: []string{"none"}}, "none"},
		"alg HS256":        {JWT{JWKSURL: "https://idp.example.com/", Issuer: "i", Audience: []string{"a"}, Algorithms: []string{"HS256"}}, "HS256"},
		"no file":          {JWT{JWKSFile: file + "x", Issuer: "i", Audience: []string{"a"}}, "jwks_file"},
		"no key set":       {JWT{JWKSFile: file, Issuer: "i", Audience: []string{"a"}}, "JWK set"},
		"no such variable": {JWT{JWKSURL: "https://idp.example.com/", Issuer: "{env.NC_TEST_UNSET}", Audience: []string{"a"}}, "issuer"},
	} {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		err := c.m.Provision(ctx)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.m.Cleanup(); err != nil {
			t.Errorf("%s: after half a Provision: %v", name, err)
		}
		cancel()
	}
	for name, m := range map[string]JWT{
		"skew":             {Skew: caddy.Duration(11 * time.Minute)},
		"negative skew":    {Skew: -1},
		"refresh_interval": {RefreshInterval: 1},
		"refresh_cooldown": {RefreshCooldown: 1},
		"fetch_timeout":    {FetchTimeout: caddy.Duration(time.Hour)},
		"max_stale":        {MaxStale: caddy.Duration(time.Minute)},
	} {
		m.setDefaults()
		if err := m.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var m JWT
	if m.setDefaults(); m.Validate() != nil {
		t.Error("the defaults are not valid")
	}
}

// Nothing that the module keeps can be used to log in.
func TestTokenIsNotKept(t *testing.T) {
	k := newEC("k")
	m := config(newIDP(t, k))
	provision(t, m)
	token := sign(t, k, jose.ES256, good(nil))
	id, err := m.Authenticate(request(token))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := proofs.get(id.Credential)
	signature := must(base64.RawURLEncoding.DecodeString(token[strings.LastIndex(token, ".")+1:]))
	if !ok || strings.Contains(string(p.claims), string(signature)) || !json.Valid(p.claims) {
		t.Errorf("kept: %q, %v", p.claims, ok)
	}
}
