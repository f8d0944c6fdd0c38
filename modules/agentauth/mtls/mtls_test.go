package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), pool: x509.NewCertPool()}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key))))
	a.pool.AddCert(a.cert)
	return a
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// issue makes a client certificate with these names, which are written as in
// the configuration; the rest of it edit changes.
func (a *authority) issue(t *testing.T, edit func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		switch kind, value, _ := strings.Cut(n, ":"); kind {
		case "cn":
			tmpl.Subject.CommonName = value
		case "dns":
			tmpl.DNSNames = append(tmpl.DNSNames, value)
		case "email":
			tmpl.EmailAddresses = append(tmpl.EmailAddresses, value)
		case "uri":
			tmpl.URIs = append(tmpl.URIs, must(url.Parse(value)))
		default:
			t.Fatal(n)
		}
	}
	if edit != nil {
		edit(tmpl)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func provision(t *testing.T, m *MTLS) *MTLS {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	if err := m.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// server is a TLS server that asks m about each request.
type server struct {
	*httptest.Server
	id  hub.Identity
	err error
}

func serve(t *testing.T, m *MTLS, mode tls.ClientAuthType, cas *x509.CertPool) *server {
	t.Helper()
	s := new(server)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s.id, s.err = m.Authenticate(r)
	}))
	s.TLS = &tls.Config{ClientAuth: mode, ClientCAs: cas}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// login makes a handshake with a certificate, or none, and returns what the
// module says; handshake is the error when it does not come to that.
func (s *server) login(t *testing.T, hint string, certs ...tls.Certificate) (id hub.Identity, err, handshake error) {
	t.Helper()
	tr := s.Client().Transport.(*http.Transport).Clone()
	tr.DisableKeepAlives = true
	tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(certs) == 0 {
			return new(tls.Certificate), nil
		}
		return &certs[0], nil // also when the server did not ask for its CA
	}
	req := must(http.NewRequest("GET", s.URL+"/tunnel", nil))
	if hint != "" {
		req.Header.Set(nowconnect.HeaderAgent, hint)
	}
	resp, handshake := (&http.Client{Transport: tr}).Do(req)
	if handshake != nil {
		return hub.Identity{}, nil, handshake
	}
	resp.Body.Close()
	return s.id, s.err, nil
}

func TestAuthenticate(t *testing.T) {
	ca := newAuthority(t)
	m := provision(t, &MTLS{
		Agents: map[string][]string{
			"premise-1": {"uri:spiffe://corp.example/agent/one", "cn:Agent No. 1"},
			"premise-2": {"dns:Two.agents.corp.example", "email:two@corp.example"},
		},
		Templates: []string{"uri:spiffe://corp.example/agents/*", "dns:*.Dyn.corp.example", "cn:agent *"},
	})
	s := serve(t, m, tls.VerifyClientCertIfGiven, ca.pool)
	for name, c := range map[string]struct {
		names []string
		want  string // empty: refused
	}{
		"uri":                      {[]string{"uri:spiffe://corp.example/agent/one"}, "premise-1"},
		"common name":              {[]string{"cn:Agent No. 1"}, "premise-1"},
		"dns in another case":      {[]string{"dns:TWO.agents.corp.example"}, "premise-2"},
		"email":                    {[]string{"email:two@corp.example"}, "premise-2"},
		"two names of one agent":   {[]string{"cn:Agent No. 1", "uri:spiffe://corp.example/agent/one"}, "premise-1"},
		"among others":             {[]string{"cn:x", "dns:y.example", "email:two@corp.example"}, "premise-2"},
		"uri template":             {[]string{"uri:spiffe://corp.example/agents/premise-3"}, "premise-3"},
		"dns template":             {[]string{"dns:premise-4.dyn.corp.example"}, "premise-4"},
		"cn template":              {[]string{"cn:agent premise-5"}, "premise-5"},
		"two agents":               {[]string{"cn:Agent No. 1", "email:two@corp.example"}, ""},
		"table and template":       {[]string{"cn:Agent No. 1", "dns:premise-4.dyn.corp.example"}, ""},
		"both say the same":        {[]string{"cn:Agent No. 1", "dns:premise-1.dyn.corp.example"}, "premise-1"},
		"no name":                  {nil, ""},
		"uri in another case":      {[]string{"uri:spiffe://corp.example/agent/One"}, ""},
		"uri, longer":              {[]string{"uri:spiffe://corp.example/agent/one/more"}, ""},
		"uri, encoded":             {[]string{"uri:spiffe://corp.example/agent/%6fne"}, ""},
		"email in another case":    {[]string{"email:Two@corp.example"}, ""},
		"dns as common name":       {[]string{"cn:two.agents.corp.example"}, ""},
		"common name as dns":       {[]string{"dns:Agent"}, ""},
		"uri as common name":       {[]string{"cn:spiffe://corp.example/agents/premise-3"}, ""},
		"template, deeper":         {[]string{"uri:spiffe://corp.example/agents/a/b"}, ""},
		"template, empty":          {[]string{"uri:spiffe://corp.example/agents/"}, ""},
		"template, query":          {[]string{"uri:spiffe://corp.example/agents/a?b"}, ""},
		"template, other domain":   {[]string{"uri:spiffe://corp.example.evil.example/agents/a"}, ""},
		"template, two labels":     {[]string{"dns:a.b.dyn.corp.example"}, ""},
		"template, wildcard":       {[]string{"dns:*.dyn.corp.example"}, ""},
		"template, no label":       {[]string{"dns:dyn.corp.example"}, ""},
		"template, dns suffix":     {[]string{"dns:a.dyn.corp.example.evil.example"}, ""},
		"template, cn with spaces": {[]string{"cn:agent premise 5"}, ""},
	} {
		cert := ca.issue(t, nil, c.names...)
		id, err, handshake := s.login(t, c.want, cert)
		if handshake != nil {
			t.Errorf("%s: %v", name, handshake)
			continue
		}
		if id.AgentID != c.want || (c.want == "") != errors.Is(err, nowconnect.ErrBadCredential) {
			t.Errorf("%s: %q, %v; want %q", name, id.AgentID, err, c.want)
		}
		if c.want == "" {
			continue
		}
		leaf := must(x509.ParseCertificate(cert.Certificate[0]))
		want := hub.Identity{AgentID: c.want, Method: "mtls", Credential: sha256.Sum256(leaf.Raw), Expires: leaf.NotAfter, Bound: true}
		if !reflect.DeepEqual(id, want) || !m.StillValid(id) {
			t.Errorf("%s: %+v, want %+v", name, id, want)
		}
	}
	if _, err, _ := s.login(t, "premise-2", ca.issue(t, nil, "cn:Agent No. 1")); !errors.Is(err, nowconnect.ErrBadCredential) {
		t.Errorf("certificate of another agent than announced: %v", err)
	}
	if _, err, _ := s.login(t, ""); !errors.Is(err, nowconnect.ErrNoCredential) {
		t.Errorf("no certificate: %v", err)
	}
	if _, err := m.Authenticate(httptest.NewRequest("GET", "http://hub/", nil)); !errors.Is(err, nowconnect.ErrNoCredential) {
		t.Errorf("no TLS: %v", err)
	}
}

// Ziti GHSA-mrpr-756c-xm47: who proves to be A and sends B's certificate along,
// which anybody can have, is A.
func TestIdentityFromTheVerifiedLeafOnly(t *testing.T) {
	ca := newAuthority(t)
	m := provision(t, &MTLS{Agents: map[string][]string{"premise-1": {"cn:a"}, "premise-2": {"cn:b"}}})
	s := serve(t, m, tls.RequireAndVerifyClientCert, ca.pool)
	a, b, nobody := ca.issue(t, nil, "cn:a"), ca.issue(t, nil, "cn:b"), ca.issue(t, nil, "cn:c")
	with := func(leaf tls.Certificate, extra ...[]byte) tls.Certificate {
		leaf.Certificate = append(leaf.Certificate[:1:1], extra...)
		return leaf
	}
	for name, c := range map[string]struct {
		cert tls.Certificate
		want string
	}{
		"A, then B":            {with(a, b.Certificate[0]), "premise-1"},
		"A, then the CA and B": {with(a, ca.cert.Raw, b.Certificate[0]), "premise-1"},
		"nobody, then B":       {with(nobody, b.Certificate[0]), ""},
	} {
		for _, hint := range []string{"", "premise-2"} {
			want := c.want
			if hint != "" {
				want = ""
			}
			id, err, handshake := s.login(t, hint, c.cert)
			if handshake != nil || id.AgentID != want || (want == "") != (err != nil) {
				t.Errorf("%s, announced as %q: %q, %v, %v; want %q", name, hint, id.AgentID, err, handshake, want)
			}
		}
	}
	// B first, without its key: TLS itself refuses.
	stolen := a
	stolen.Certificate = [][]byte{b.Certificate[0], a.Certificate[0]}
	if id, _, handshake := s.login(t, "", stolen); handshake == nil {
		t.Errorf("B's certificate with A's key: %+v", id)
	}
}

// A server that asks for a certificate and verifies nothing lets everybody make
// their own.
func TestRefusesWhenTheServerDoesNotVerify(t *testing.T) {
	ca, own := newAuthority(t), newAuthority(t)
	m := provision(t, &MTLS{Agents: map[string][]string{"premise-1": {"cn:a"}}})
	for name, mode := range map[string]tls.ClientAuthType{"request": tls.RequestClientCert, "require": tls.RequireAnyClientCert} {
		s := serve(t, m, mode, ca.pool)
		for from, cert := range map[string]tls.Certificate{"a stranger's CA": own.issue(t, nil, "cn:a"), "the CA": ca.issue(t, nil, "cn:a")} {
			id, err, handshake := s.login(t, "", cert)
			if handshake != nil || !errors.Is(err, errUnverified) || !errors.Is(err, nowconnect.ErrBadCredential) {
				t.Errorf("%s, by %s: %+v, %v, %v", name, from, id, err, handshake)
			}
		}
	}
	s := serve(t, m, tls.VerifyClientCertIfGiven, ca.pool)
	for name, cert := range map[string]tls.Certificate{
		"a stranger's CA": own.issue(t, nil, "cn:a"),
		"expired":         ca.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "cn:a"),
		"not yet valid":   ca.issue(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "cn:a"),
		"a server's":      ca.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "cn:a"),
	} {
		if id, err, handshake := s.login(t, "", cert); handshake == nil && err == nil {
			t.Errorf("%s: %+v", name, id)
		}
	}
	if _, err, handshake := s.login(t, "", ca.issue(t, nil, "cn:a")); err != nil || handshake != nil {
		t.Errorf("the good one: %v, %v", err, handshake)
	}
}

func TestStillValidUnderAnotherConfiguration(t *testing.T) {
	ca := newAuthority(t)
	m := provision(t, &MTLS{Agents: map[string][]string{"premise-1": {"cn:a"}}})
	s := serve(t, m, tls.RequireAndVerifyClientCert, ca.pool)
	id, err, handshake := s.login(t, "", ca.issue(t, nil, "cn:a", "uri:spiffe://x/premise-1", "dns:b.example"))
	if err != nil || handshake != nil {
		t.Fatal(err, handshake)
	}
	for name, c := range map[string]struct {
		m     MTLS
		valid bool
	}{
		"the same":             {MTLS{Agents: map[string][]string{"premise-1": {"cn:a"}}}, true},
		"by another name":      {MTLS{Agents: map[string][]string{"premise-1": {"dns:b.example"}}}, true},
		"by a template":        {MTLS{Templates: []string{"uri:spiffe://x/*"}}, true},
		"name taken out":       {MTLS{Agents: map[string][]string{"premise-1": {"cn:z"}}}, false},
		"name given to others": {MTLS{Agents: map[string][]string{"premise-2": {"cn:a"}}}, false},
		"now two agents'":      {MTLS{Agents: map[string][]string{"premise-1": {"cn:a"}, "premise-2": {"dns:b.example"}}}, false},
	} {
		if got := provision(t, &c.m).StillValid(id); got != c.valid {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, edit := range map[string]func(*hub.Identity){
		"another agent":  func(i *hub.Identity) { i.AgentID = "premise-2" },
		"another method": func(i *hub.Identity) { i.Method = "token" },
		"never seen":     func(i *hub.Identity) { i.Credential[0]++ },
	} {
		forged := id
		if edit(&forged); m.StillValid(forged) {
			t.Errorf("%s: valid", name)
		}
	}
	leaf := ca.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Second) }, "cn:a")
	if id, err, handshake = s.login(t, "", leaf); err != nil || handshake != nil || !m.StillValid(id) {
		t.Fatal(err, handshake)
	}
	for end := time.Now().Add(20 * time.Second); m.StillValid(id); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an expired certificate stays valid")
		}
	}
	if time.Now().Before(id.Expires) {
		t.Error("the certificate ended before its time")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := &memory{bound: 3}
	d := func(n byte) (d [32]byte) { d[0] = n; return d }
	put := func(n byte, in time.Duration) { m.put(d(n), &x509.Certificate{NotAfter: time.Now().Add(in)}) }
	put(1, 3*time.Hour)
	put(2, time.Hour)
	put(3, 2*time.Hour)
	put(3, 2*time.Hour) // no new one
	put(4, 4*time.Hour) // in the place of what expires first
	put(5, -time.Hour)  // in the place of 3
	put(6, time.Hour)   // in the place of what has expired
	for n, want := range map[byte]bool{1: true, 2: false, 3: false, 4: true, 5: false, 6: true} {
		if _, got := m.get(d(n)); got != want {
			t.Errorf("%d: %v", n, got)
		}
	}
}

func TestAgentIDs(t *testing.T) {
	m := provision(t, &MTLS{Agents: map[string][]string{"b": {"cn:b"}, "a": {"cn:a"}}})
	if ids := m.AgentIDs(); !reflect.DeepEqual(ids, []string{"a", "b"}) {
		t.Errorf("%q", ids)
	}
	m = provision(t, &MTLS{Agents: map[string][]string{"b": {"cn:b"}}, Templates: []string{"cn:x*"}})
	if ids := m.AgentIDs(); ids != nil {
		t.Errorf("%q; only the CA can know", ids)
	}
}

func TestRefusesConfigurations(t *testing.T) {
	one := func(names ...string) MTLS { return MTLS{Agents: map[string][]string{"a": names}} }
	for name, c := range map[string]struct {
		m    MTLS
		says string
	}{
		"nothing":            {MTLS{}, "no agents"},
		"agent is no name":   {MTLS{Agents: map[string][]string{"a/b": {"cn:a"}}}, "a/b"},
		"no names":           {one(), "no names"},
		"no kind":            {one("a.example"), "uri:"},
		"unknown kind":       {one("ip:10.0.0.1"), "uri:"},
		"empty":              {one("cn:"), "colon"},
		"placeholder":        {one("cn:{env.A}"), "placeholder"},
		"no URI":             {one("uri:corp.example/a"), "URI"},
		"another form":       {one("uri:SPIFFE://corp.example/a"), `write "uri:spiffe://corp.example/a"`},
		"two agents":         {MTLS{Agents: map[string][]string{"a": {"dns:X.example"}, "b": {"dns:x.example"}}}, "already"},
		"template without *": {MTLS{Templates: []string{"cn:a"}}, "exactly one *"},
		"template with two":  {MTLS{Templates: []string{"cn:**"}}, "exactly one *"},
		"template, no URI":   {MTLS{Templates: []string{"uri:*"}}, "URI"},
		"* in the kind":      {MTLS{Templates: []string{"c*n:a"}}, "uri:"},
	} {
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		if err := c.m.Provision(ctx); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}
