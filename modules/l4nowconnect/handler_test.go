package l4nowconnect_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// recorder is a policy that keeps what it was asked. It also shows that a guest
// which this repository does not know fits in.
type recorder struct {
	Answer string `json:"answer"`
}

var asked struct {
	sync.Mutex
	requests []*authz.Request
}

func init() { caddy.RegisterModule(&recorder{}) }

func (*recorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "nowconnect.pdp.test_recorder", New: func() caddy.Module { return new(recorder) }}
}

func (p *recorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&p.Answer) {
		return d.ArgErr()
	}
	return nil
}

func (p *recorder) Decide(_ context.Context, r *authz.Request) authz.Decision {
	asked.Lock()
	asked.requests = append(asked.requests, r)
	asked.Unlock()
	switch p.Answer {
	case "allow":
		return authz.Decision{Outcome: authz.Allow, Reason: "rule-7", Policy: "v3"}
	case "deny":
		return authz.Decision{Outcome: authz.Deny, Reason: "rule-8"}
	case "panic":
		panic("this policy is broken")
	}
	return authz.Decision{Err: errors.New("no answer")}
}

// last returns the latest question.
func last(t *testing.T) *authz.Request {
	t.Helper()
	asked.Lock()
	defer asked.Unlock()
	if len(asked.requests) == 0 {
		t.Fatal("nobody was asked")
	}
	return asked.requests[len(asked.requests)-1]
}

// questions is how many there were.
func questions() int {
	asked.Lock()
	defer asked.Unlock()
	return len(asked.requests)
}

// start runs a hub with the recorder as its policy and a route's handlers.
func start(t *testing.T, answer, server, sites string) *hubtest.Hub {
	t.Helper()
	h := hubtest.New(t)
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_recorder "+answer, 1),
		h.Expand("\tlayer4 {\n\t\t$LDAP {\n"+server+"\n\t\t}\n\t}"), hubtest.Site+"\n"+sites))
	h.Agent(nil)
	return h
}

const route = "\t\t\troute {\n\t\t\t\tnowconnect echo\n\t\t\t}"

// halfClose ends our direction and expects the echo's rest and its end.
func halfClose(t *testing.T, c net.Conn, cw interface{ CloseWrite() error }) {
	t.Helper()
	if _, err := io.WriteString(c, "last words"); err != nil {
		t.Fatal(err)
	}
	if err := cw.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "last words" {
		t.Errorf("after our FIN: %q, %v", b, err)
	}
}

func TestPlainClient(t *testing.T) {
	h := start(t, "allow", route, "")
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello")
	halfClose(t, c, c)
	r := last(t)
	local := c.LocalAddr().(*net.TCPAddr)
	if r.Subject.ID != "127.0.0.1" || r.Resource.ID != "echo" {
		t.Errorf("asked about %+v and %+v from %v", r.Subject, r.Resource, local)
	}
	hubtest.Eventually(t, "the audit log has one line about it", func() bool {
		return strings.Contains(h.Logged(), `"msg":"session ended"`)
	})
	for _, field := range []string{`"connector":"echo"`, `"client":"` + local.String() + `"`, `"close_reason":"fin"`, `"outcome":"allow"`, `"engine":"test_recorder"`,
		`"reason":"rule-7"`, `"policy":"v3"`, `"agent":"premise-1"`, `"bytes_c2a":15`, `"bytes_a2c":15`, `"listener":"` + h.LDAP + `"`} {
		if !strings.Contains(h.Logged(), field) {
			t.Errorf("the log does not have %s", field)
		}
	}
}

// What a matcher read ahead reaches the target, once and in order.
func TestPrefetchedBytesReachTheTarget(t *testing.T) {
	h := start(t, "allow", "\t\t\t@hi regexp ^hello 5\n\t\t\troute @hi {\n\t\t\t\tnowconnect echo\n\t\t\t}", "")
	c := h.Dial()
	hubtest.RoundTrip(t, c, "hello, this was read by a matcher")
	hubtest.RoundTrip(t, c, "and this was not")
	halfClose(t, c, c)
	big := "hello" + strings.Repeat("0123456789", 100_000)
	c = h.Dial()
	go func() { _, _ = io.WriteString(c, big) }()
	got := make([]byte, len(big))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != big {
		t.Errorf("a megabyte after a matcher does not come back as it was: %v", err)
	}
}

func TestProxyProtocolTellsTheClient(t *testing.T) {
	h := start(t, "allow", "\t\t\troute {\n\t\t\t\tproxy_protocol {\n\t\t\t\t\tallow 127.0.0.1/32\n\t\t\t\t}\n\t\t\t\tnowconnect echo {\n\t\t\t\t\ttrusted_proxies 127.0.0.1\n\t\t\t\t}\n\t\t\t}", "")
	c := h.Dial()
	hubtest.RoundTripAfter(t, c, "PROXY TCP4 203.0.113.7 198.51.100.1 5555 389\r\n", "hello")
	if r := last(t); r.Subject.ID != "203.0.113.7" {
		t.Errorf("asked about %+v", r.Subject)
	}
	_, sessions := h.AdminDo("GET", "/nowconnect/sessions", "", "")
	if !strings.Contains(sessions, `"client": "203.0.113.7:5555"`) {
		t.Errorf("sessions: %s", sessions)
	}
	halfClose(t, c, c)
}

// pki makes a server certificate for the hub and a client certificate.
func pki(t *testing.T, h *hubtest.Hub, client *x509.Certificate) (roots *x509.CertPool, cert tls.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey := key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	issue := func(c *x509.Certificate, pub *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &pub.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caDER := issue(ca, caKey)
	ca, _ = x509.ParseCertificate(caDER)
	leaf := func(c *x509.Certificate, serial int64, use x509.ExtKeyUsage) ([]byte, *ecdsa.PrivateKey) {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(serial), ca.NotBefore, ca.NotAfter
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{use}
		k := key()
		return issue(c, k), k
	}
	server, serverKey := leaf(&x509.Certificate{DNSNames: []string{"hub.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, 2, x509.ExtKeyUsageServerAuth)
	clientDER, clientKey := leaf(client, 0xabc, x509.ExtKeyUsageClientAuth)
	der, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) {
		h.Write(name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})))
	}
	write("ca.crt", "CERTIFICATE", caDER)
	write("hub.crt", "CERTIFICATE", server)
	write("hub.key", "PRIVATE KEY", der)
	roots = x509.NewCertPool()
	roots.AddCert(ca)
	return roots, tls.Certificate{Certificate: [][]byte{clientDER}, PrivateKey: clientKey}
}

// startTLS runs a hub that ends TLS and asks clients for certificates.
func startTLS(t *testing.T, mode string, client *x509.Certificate) (*hubtest.Hub, *tls.Config) {
	t.Helper()
	h := hubtest.New(t)
	roots, cert := pki(t, h, client)
	trust := ""
	if strings.Contains(mode, "verify") {
		trust = "\n\t\t\t\t\t\t\ttrust_pool file $DIR/ca.crt"
	}
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_recorder allow", 1), `	layer4 {
		$LDAP {
			@tls tls
			route @tls {
				tls {
					connection_policy {
						client_auth {
							mode `+mode+trust+`
						}
					}
				}
				nowconnect echo
			}
		}
	}`, hubtest.Site+`
https://hub.example:1 {
	bind 127.0.0.1
	tls $DIR/hub.crt $DIR/hub.key
}`))
	h.Agent(nil)
	return h, &tls.Config{RootCAs: roots, ServerName: "hub.example", Certificates: []tls.Certificate{cert}}
}

func TestVerifiedCertificateIsTheSubject(t *testing.T) {
	u, _ := url.Parse("spiffe://example.org/reader")
	for name, c := range map[string]struct {
		cert       x509.Certificate
		id, source string
	}{
		"uri":         {x509.Certificate{URIs: []*url.URL{u}, DNSNames: []string{"reader.example"}, Subject: pkix.Name{CommonName: "reader"}}, "spiffe://example.org/reader", "uri"},
		"dns":         {x509.Certificate{DNSNames: []string{"reader.example", "b.example"}, EmailAddresses: []string{"r@example.org"}, Subject: pkix.Name{CommonName: "reader"}}, "reader.example", "dns"},
		"email":       {x509.Certificate{EmailAddresses: []string{"r@example.org"}, Subject: pkix.Name{CommonName: "reader"}}, "r@example.org", "email"},
		"common name": {x509.Certificate{Subject: pkix.Name{CommonName: "reader", Organization: []string{"Example"}, OrganizationalUnit: []string{"IT"}}}, "reader", "common_name"},
		"address":     {x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}, Subject: pkix.Name{CommonName: "reader"}}, "reader", "common_name"},
	} {
		t.Run(name, func(t *testing.T) {
			h, cfg := startTLS(t, "require_and_verify", &c.cert)
			conn, err := h.DialTLS(cfg)
			if err != nil {
				t.Fatal(err)
			}
			hubtest.RoundTrip(t, conn, "hello over TLS")
			s := last(t).Subject
			if s.Type != "certificate" || s.ID != c.id || s.Properties["id_source"] != c.source {
				t.Errorf("asked about %+v", s)
			}
			if s.Properties["serial"] != "abc" || s.Properties["issuer_dn"] != "CN=test CA" ||
				!strings.HasPrefix(s.Properties["fingerprint"].(string), "sha256:") {
				t.Errorf("properties %v", s.Properties)
			}
			if list, _ := s.Properties["ip_addresses"].([]string); len(list) != len(c.cert.IPAddresses) || len(list) > 0 && list[0] != "192.0.2.7" {
				t.Errorf("addresses %v", list)
			}
			if s.Properties["sni"] != "hub.example" || s.Properties["source_ip"] != "127.0.0.1" || s.Properties["listener"] != h.LDAP {
				t.Errorf("properties of the connection %v", s.Properties)
			}
			halfClose(t, conn, conn)
			hubtest.Eventually(t, "the log names the subject", func() bool {
				return strings.Contains(h.Logged(), `"sni":"hub.example"`) && strings.Contains(h.Logged(), `"subject":"`+c.id+`"`)
			})
		})
	}
}

// A certificate that nobody verified is what the client says of itself.
func TestUnverifiedCertificateIsNoIdentity(t *testing.T) {
	h, cfg := startTLS(t, "request", &x509.Certificate{Subject: pkix.Name{CommonName: "admin"}})
	conn, err := h.DialTLS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	hubtest.RoundTrip(t, conn, "hello")
	if s := last(t).Subject; s.Type == "certificate" || s.ID != "127.0.0.1" {
		t.Errorf("asked about %+v", s)
	}
}

func TestRefusedClients(t *testing.T) {
	for answer, want := range map[string]string{
		"deny":  `"close_reason":"denied"`,
		"error": `"close_reason":"pdp_error"`,
	} {
		t.Run(answer, func(t *testing.T) {
			h := start(t, answer, route, "")
			for range 200 {
				h.Refused()
			}
			hubtest.Eventually(t, "refusals are logged", func() bool { return strings.Contains(h.Logged(), want) })
			if n := strings.Count(h.Logged(), `"msg":"connection refused"`); n > 120 {
				t.Errorf("%d lines about 200 refusals", n)
			}
			time.Sleep(150 * time.Millisecond) // a line may pass again
			h.Refused()
			hubtest.Eventually(t, "a line tells how many were held back", func() bool { return strings.Contains(h.Logged(), `"suppressed":`) })
		})
	}
}

// A policy that panics refuses, for new connections and for live sessions, and
// the hub's books stay right.
func TestPolicyThatPanics(t *testing.T) {
	h := start(t, "allow", route, "")
	live := h.Dial()
	hubtest.RoundTrip(t, live, "hello")
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_recorder panic", 1), hubtest.Layer4, hubtest.Site))
	h.Refused()
	hubtest.Eventually(t, "the panic is logged with its stack", func() bool {
		return strings.Contains(h.Logged(), "policy module panicked") && strings.Contains(h.Logged(), "recorder).Decide")
	})
	_ = live.Close()
	hubtest.Eventually(t, "no session is left", func() bool {
		return h.Metric(`nowconnect_tcp_active_connections{connector="echo"}`) == 0
	})
	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4, hubtest.Site))
	hubtest.RoundTrip(t, h.Dial(), "the process lives")
}

// When caddy-l4 v0.1.2 fails to start on one address, the listeners that it had
// already opened stay for good and take a share of the connections, with the
// handlers of the configuration that was given up.
func TestLeakedListenerObeysThePolicyInForce(t *testing.T) {
	h := start(t, "allow", route, "")
	err := h.TryLoad(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_recorder deny", 1),
		"\tlayer4 {\n\t\t$LDAP 203.0.113.1:1 {\n"+route+"\n\t\t}\n\t}", hubtest.Site))
	if err == nil {
		t.Fatal("loads")
	}
	for range 60 {
		c := h.Dial()
		hubtest.RoundTrip(t, c, "hello")
		_ = c.Close()
	}
	h.Load(h.Caddyfile(strings.Replace(hubtest.Basic, "allow_all", "test_recorder deny", 1), hubtest.Layer4, hubtest.Site))
	for range 60 {
		h.Refused()
	}
}

// A client cannot choose the address by which it is judged: a PROXY header of
// somebody who is no trusted proxy is refused, whatever the handler of caddy-l4
// makes of it. Without that handler its bytes go to the target like any others.
func TestProxyHeaderOfAStrangerIsNotBelieved(t *testing.T) {
	const header = "PROXY TCP4 203.0.113.7 198.51.100.1 5555 389\r\n"
	const v2local = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	const elsewhere = "{\n\t\t\t\t\ttrusted_proxies 192.0.2.0/24 2001:db8::1\n\t\t\t\t}"
	for name, handlers := range map[string]string{
		"from elsewhere":         "proxy_protocol {\n\t\t\t\t\tallow 192.0.2.0/24\n\t\t\t\t}\n\t\t\t\tnowconnect echo " + elsewhere,
		"only caddy-l4 trusts":   "proxy_protocol {\n\t\t\t\t\tallow 127.0.0.0/8\n\t\t\t\t}\n\t\t\t\tnowconnect echo",
		"no list at all":         "proxy_protocol\n\t\t\t\tnowconnect echo",
		"behind the throttle":    "throttle\n\t\t\t\tproxy_protocol\n\t\t\t\tnowconnect echo {\n\t\t\t\t\ttrusted_proxies 127.0.0.1\n\t\t\t\t}",
		"two, the first trusted": "proxy_protocol\n\t\t\t\tproxy_protocol\n\t\t\t\tnowconnect echo {\n\t\t\t\t\ttrusted_proxies 203.0.113.7\n\t\t\t\t}",
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, "allow", "\t\t\troute {\n\t\t\t\t"+handlers+"\n\t\t\t}", "")
			before := questions()
			c := h.Dial()
			if _, err := io.WriteString(c, header+header+"hello"); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil && !testpeer.IsReset(err) {
				t.Errorf("it gets %q, %v", b, err)
			}
			hubtest.Eventually(t, "the refusal is logged", func() bool { return strings.Contains(h.Logged(), "PROXY header from") })
			if n := questions(); n != before {
				t.Errorf("policy was asked about %+v", last(t))
			}
		})
	}
	t.Run("LOCAL says nothing about anybody", func(t *testing.T) {
		h := start(t, "allow", "\t\t\troute {\n\t\t\t\tproxy_protocol\n\t\t\t\tnowconnect echo\n\t\t\t}", "")
		hubtest.RoundTripAfter(t, h.Dial(), v2local, "hello")
		if r := last(t); r.Subject.ID != "127.0.0.1" {
			t.Errorf("asked about %+v", r.Subject)
		}
	})
	t.Run("without the handler", func(t *testing.T) {
		h := start(t, "allow", "\t\t\troute {\n\t\t\t\tnowconnect echo\n\t\t\t}", "")
		hubtest.RoundTrip(t, h.Dial(), header+"hello")
		if r := last(t); r.Subject.ID != "127.0.0.1" || r.Context["source_ip"] != "127.0.0.1" {
			t.Errorf("asked about %+v with %v", r.Subject, r.Context)
		}
	})
}

// Half a PROXY header holds up the one who sent it, and for a time only.
func TestUnfinishedProxyHeaderIsBounded(t *testing.T) {
	h := start(t, "allow", "\t\t\troute {\n\t\t\t\tproxy_protocol {\n\t\t\t\t\tallow 127.0.0.1/32\n\t\t\t\t\ttimeout 200ms\n\t\t\t\t}\n\t\t\t\tnowconnect echo {\n\t\t\t\t\ttrusted_proxies 127.0.0.1\n\t\t\t\t}\n\t\t\t}", "")
	stuck := h.Dial()
	if _, err := io.WriteString(stuck, "PROXY TCP4 203.0.113.7 "); err != nil {
		t.Fatal(err)
	}
	hubtest.RoundTripAfter(t, h.Dial(), "PROXY TCP4 203.0.113.8 198.51.100.1 5555 389\r\n", "hello")
	if _, err := io.ReadAll(stuck); err != nil && !testpeer.IsReset(err) {
		t.Errorf("half a header: %v, want the end", err)
	}
}

func TestUDPIsRefused(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, strings.Replace(hubtest.Layer4, "$LDAP", "udp/$LDAP", 1), hubtest.Site))
	c, err := net.Dial("udp", h.LDAP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	hubtest.Eventually(t, "the log says why", func() bool { return strings.Contains(h.Logged(), "only TCP can be tunnelled") })
	if n := h.Metric(`nowconnect_listener_accept_errors_total{connector="echo"}`); n != 1 {
		t.Errorf("%v accept errors", n)
	}
}
