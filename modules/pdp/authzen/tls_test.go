package authzen

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// withTLS starts a server with a certificate of the authority.
func withTLS(t *testing.T, ca *testpeer.CA, clients bool) func(*httptest.Server) {
	return func(s *httptest.Server) {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1", "pdp.example.com").TLS}, MinVersion: tls.VersionTLS12}
		if clients {
			s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool
		}
		s.StartTLS()
	}
}

// patient is for what shall not fail by a slow machine.
const patient = caddy.Duration(20 * time.Second)

func TestTLS(t *testing.T) {
	ca, wrong := testpeer.NewCA(t), testpeer.NewCA(t)
	cert, stranger := ca.Issue(t, "hub-1"), wrong.Issue(t, "hub-1")
	plain := newPDP(t, answers(200, `{"decision":true}`), withTLS(t, ca, false))
	mutual := newPDP(t, answers(200, `{"decision":true}`), withTLS(t, ca, true))
	for name, c := range map[string]struct {
		p    *pdp
		tls  *TLS
		says string // empty: allowed
	}{
		"right CA":                  {plain, &TLS{CA: []string{ca.File}}, ""},
		"one of two CAs":            {plain, &TLS{CA: []string{wrong.File, ca.File}}, ""},
		"server name":               {plain, &TLS{CA: []string{ca.File}, ServerName: "pdp.example.com"}, ""},
		"wrong CA":                  {plain, &TLS{CA: []string{wrong.File}}, "certificate signed by unknown authority"},
		"the system's CAs":          {plain, nil, "certificate signed by unknown authority"},
		"wrong name":                {plain, &TLS{CA: []string{ca.File}, ServerName: "other.example.com"}, "not other.example.com"},
		"client certificate":        {mutual, &TLS{CA: []string{ca.File}, ClientCertificate: cert.CertFile, ClientKey: cert.KeyFile}, ""},
		"no client certificate":     {mutual, &TLS{CA: []string{ca.File}}, "certificate required"},
		"somebody's certificate":    {mutual, &TLS{CA: []string{ca.File}, ClientCertificate: stranger.CertFile, ClientKey: stranger.KeyFile}, "tls:"},
		"certificate not asked for": {plain, &TLS{CA: []string{ca.File}, ClientCertificate: cert.CertFile, ClientKey: cert.KeyFile}, ""},
	} {
		before := c.p.calls.Load()
		a := provision(t, &AuthZEN{Endpoint: c.p.URL, TLS: c.tls, Timeout: patient})
		d := ask(a, "192.0.2.1", 1)
		switch {
		case c.says == "" && d.Outcome != authz.Allow:
			t.Errorf("%s: %+v", name, d)
		case c.says == "":
		case d.Outcome != authz.Error || authz.KindOf(d) != authz.KindTransport || !strings.Contains(d.Err.Error(), c.says):
			t.Errorf("%s: %+v", name, d)
		case c.p.calls.Load() != before:
			t.Errorf("%s: the PDP saw the question", name)
		}
	}
}

// A renewed certificate is shown at the next handshake.
func TestClientCertificateIsRenewed(t *testing.T) {
	ca := testpeer.NewCA(t)
	var shown string
	p := newPDP(t, func(w http.ResponseWriter, r *http.Request) {
		shown = r.TLS.PeerCertificates[0].Subject.CommonName
		w.Header().Set("Connection", "close")
		answers(200, `{"decision":true}`)(w, r)
	}, withTLS(t, ca, true))
	first, second := ca.Issue(t, "first"), ca.Issue(t, "second")
	a := provision(t, &AuthZEN{Endpoint: p.URL, CacheTTL: -1, Timeout: patient,
		TLS: &TLS{CA: []string{ca.File}, ClientCertificate: first.CertFile, ClientKey: first.KeyFile}})
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow || shown != "first" {
		t.Errorf("%+v with %s", d, shown)
	}
	for from, to := range map[string]string{second.CertFile: first.CertFile, second.KeyFile: first.KeyFile} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow || shown != "second" {
		t.Errorf("%+v with %s", d, shown)
	}
}

func TestDiscovery(t *testing.T) {
	var metadata, evaluations int
	var path string
	p := newPDP(t, nil, (*httptest.Server).Start)
	serve := func(document string) {
		p.set(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				metadata++
				path = r.URL.Path
				answers(200, document)(w, r)
				return
			}
			evaluations++
			answers(200, `{"decision":true}`)(w, r)
		})
	}
	document := func(id, endpoint string) string {
		return fmt.Sprintf(`{"policy_decision_point":%q,"access_evaluation_endpoint":%q,"capabilities":[]}`, id, endpoint)
	}
	for id, want := range map[string]string{
		p.URL:             "/.well-known/authzen-configuration",
		p.URL + "/tenant": "/.well-known/authzen-configuration/tenant",
	} {
		metadata, evaluations = 0, 0
		serve(document(id, p.URL+"/v2/evaluate"))
		a := provision(t, &AuthZEN{Discover: id, CacheTTL: -1, Timeout: patient})
		if metadata != 0 {
			t.Error("a load asks the PDP")
		}
		for range 3 {
			if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow {
				t.Errorf("%+v", d)
			}
		}
		if metadata != 1 || evaluations != 3 || path != want {
			t.Errorf("%d × %s, %d evaluations", metadata, path, evaluations)
		}
	}
	for name, c := range map[string]struct{ document, says string }{
		"another PDP's":  {document("https://pdp.example.com", p.URL), `that of "https://pdp.example.com"`},
		"with a slash":   {document(p.URL+"/", p.URL), "that of"},
		"nobody's":       {`{"access_evaluation_endpoint":"` + p.URL + `"}`, "that of"},
		"no endpoint":    {document(p.URL, ""), "access_evaluation_endpoint: no host"},
		"plain endpoint": {document(p.URL, "http://pdp.example.com/x"), "use https"},
		"garbage":        {"<html>", "metadata"},
	} {
		evaluations = 0
		serve(c.document)
		a := provision(t, &AuthZEN{Discover: p.URL, Timeout: patient})
		d := ask(a, "192.0.2.1", 1)
		if d.Outcome != authz.Error || authz.KindOf(d) != authz.KindDecode || !strings.Contains(d.Err.Error(), c.says) || evaluations != 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	// A batch endpoint is used if there is one, and its URL is held to the same.
	batches := 0
	withBatch := func(endpoint string) string {
		return fmt.Sprintf(`{"policy_decision_point":%q,"access_evaluation_endpoint":%q,"access_evaluations_endpoint":%q}`, p.URL, p.URL+"/one", endpoint)
	}
	two := []*authz.Request{request("192.0.2.1", 1), request("192.0.2.2", 1)}
	for name, c := range map[string]struct {
		metadata, option string
		want             int
	}{
		"there":     {withBatch(p.URL + "/many"), "", 1},
		"off":       {withBatch(p.URL + "/many"), "off", 0},
		"not there": {document(p.URL, p.URL+"/one"), "", 0},
	} {
		batches = 0
		p.set(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/many":
				batches++
				answers(200, `{"evaluations":[{"decision":true},{"decision":true}]}`)(w, r)
			case "/one":
				answers(200, `{"decision":true}`)(w, r)
			default:
				answers(200, c.metadata)(w, r)
			}
		})
		a := provision(t, &AuthZEN{Discover: p.URL, BatchEndpoint: c.option, Timeout: patient})
		for _, d := range a.DecideBatch(t.Context(), two) {
			if d.Outcome != authz.Allow {
				t.Errorf("%s: %+v", name, d)
			}
		}
		if batches != c.want {
			t.Errorf("%s: %d batches", name, batches)
		}
	}
	serve(withBatch("http://pdp.example.com/many"))
	if d := ask(provision(t, &AuthZEN{Discover: p.URL, Timeout: patient}), "192.0.2.1", 1); authz.KindOf(d) != authz.KindDecode ||
		!strings.Contains(d.Err.Error(), "access_evaluations_endpoint: http://") {
		t.Errorf("%+v", d)
	}
	// What is not there at first is found later.
	p.set(answers(404, ""))
	a := provision(t, &AuthZEN{Discover: p.URL, Timeout: patient})
	if d := ask(a, "192.0.2.1", 1); authz.KindOf(d) != authz.KindRejected {
		t.Errorf("%+v", d)
	}
	serve(document(p.URL, p.URL))
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow {
		t.Errorf("%+v", d)
	}
	// And what was found once is used on when it is gone.
	a.client.where.(*discovery).until = time.Time{}
	metadata = 0
	serve("<html>")
	if d := ask(a, "192.0.2.2", 1); d.Outcome != authz.Allow || metadata != 1 {
		t.Errorf("%+v after %d looks", d, metadata)
	}
	// Also when it only keeps us waiting: the question that looks has time left.
	a = provision(t, &AuthZEN{Discover: p.URL, Timeout: caddy.Duration(2 * time.Second)})
	serve(document(p.URL, p.URL))
	if d := ask(a, "192.0.2.1", 1); d.Outcome != authz.Allow {
		t.Errorf("%+v", d)
	}
	a.client.where.(*discovery).until = time.Time{}
	p.set(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			<-r.Context().Done()
			return
		}
		answers(200, `{"decision":true}`)(w, r)
	})
	if d := ask(a, "192.0.2.2", 1); d.Outcome != authz.Allow {
		t.Errorf("%+v", d)
	}
}
