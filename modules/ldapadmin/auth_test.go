package ldapadmin_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// loadable is the part of ldap_admin that has nothing to do with who calls.
const loadable = `ldap_admin {
		connector echo
		insecure_plaintext
		groups_below ou=groups,dc=example,dc=org
		members_below ou=people,dc=example,dc=org
		$MORE
	}`

const basicAuth = "basic_auth /ldap/* {\n\t\t" + caller + " " + callerHash + "\n\t}"

// A configuration loads only if something in front can tell who calls.
func TestRefusesToLoadWithoutAuthentication(t *testing.T) {
	h := hubtest.New(t)
	cert := testpeer.NewCA(t).Issue(t, "localhost")
	ca := testpeer.NewCA(t)
	tlsSite := func(clientAuth string) string {
		return "https://localhost {\n\tbind 127.0.0.1\n\ttls " + cert.CertFile + " " + cert.KeyFile + " {\n\t\t" + clientAuth + "\n\t}\n\t" + loadable + "\n}"
	}
	site := func(body string) string { return "http://$HTTP {\n\tbind 127.0.0.1\n\t" + body + "\n}" }
	for _, tt := range []struct {
		name, sites, more string
		refused           bool
	}{
		{"nothing", site(loadable), "", true},
		{"said so", site(loadable), "insecure_no_auth", false},
		{"basic_auth", site(basicAuth + "\n\t" + loadable), "", false},
		{"written after, ordered before", site(loadable + "\n\t" + basicAuth), "", false},
		{"in a route, after it", site("route {\n" + loadable + "\n" + basicAuth + "\n}"), "", true},
		{"in a route, before it", site("route {\n" + basicAuth + "\n" + loadable + "\n}"), "", false},
		{"in a handle of its own", site("handle /ldap/* {\n" + basicAuth + "\n" + loadable + "\n}"), "", false},
		{"on another site", site(loadable) + "\nhttp://other.example:$PORT {\n\tbind 127.0.0.1\n\t" + basicAuth + "\n}", "", true},
		{"on another site too", site(basicAuth+"\n\t"+loadable) + "\nhttp://other.example:$PORT {\n\tbind 127.0.0.1\n\t" + basicAuth + "\n\t" + loadable + "\n}", "", false},
		{"in another handle", site("handle /a/* {\n" + basicAuth + "\n}\nhandle /ldap/* {\n" + loadable + "\n}"), "", true},
		{"before the handle", site(basicAuth + "\nhandle /a/* {\nrespond 200\n}\nhandle /ldap/* {\n" + loadable + "\n}"), "", false},
		{"in handle_path", site("handle_path /x/* {\n" + loadable + "\n}"), "", true},
		{"for errors", site(basicAuth + "\n\thandle_errors {\n" + loadable + "\n}"), "", true},
		{"around what another answers", site("reverse_proxy 127.0.0.1:1 {\n\t@x status 401\n\thandle_response @x {\n" + loadable + "\n}\n}"), "", true},
		{"named, invoked behind it", "&(api) {\n" + loadable + "\n}\n" + site("route {\n"+basicAuth+"\ninvoke api\n}"), "", false},
		{"named, invoked before it", "&(api) {\n" + loadable + "\n}\n" + site("route {\ninvoke api\n"+basicAuth+"\n}"), "", true},
		{"named, with its own", "&(api) {\nroute {\n" + basicAuth + "\n" + loadable + "\n}\n}\n" + site("invoke api"), "", false},
		{"on another server", site(loadable) + "\nhttp://127.0.0.1:1 {\n\tbind 127.0.0.1\n\t" + basicAuth + "\n}", "", true},
		{"respond is no authentication", site("respond /x 200\n\t" + loadable), "", true},
		{"client certificates", tlsSite("client_auth {\n\t\t\ttrust_pool file " + ca.File + "\n\t\t}"), "", false},
		{"client certificates, optional", tlsSite("client_auth {\n\t\t\tmode verify_if_given\n\t\t\ttrust_pool file " + ca.File + "\n\t\t}"), "", false},
		{"client certificates on trust", tlsSite("client_auth {\n\t\t\tmode require\n\t\t}"), "", true},
		{"no client certificates", tlsSite("protocols tls1.3"), "", true},
	} {
		_, port, _ := strings.Cut(h.HTTP, ":")
		sites := strings.NewReplacer("$MORE", tt.more, "$PORT", port).Replace(tt.sites)
		err := h.Validate(h.Caddyfile(hubtest.Basic, "", sites))
		refused := err != nil && strings.Contains(err.Error(), "no authentication in front of it")
		if refused != tt.refused || err != nil && !refused {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// What gets by the authentication that is there is refused when it comes.
func TestRefusesUnknownCallers(t *testing.T) {
	w := start(t, options{front: "basic_auth /elsewhere/* {\n\t\t" + caller + " " + callerHash + "\n\t}"})
	r := w.do(request{method: "GET", path: path(w.group("team"))})
	p := r.problem(t, 401, "unauthenticated")
	if r.header.Get("WWW-Authenticate") == "" || !strings.HasPrefix(p.Instance, "urn:uuid:") {
		t.Errorf("%v %+v", r.header, p)
	}
	w.do(request{method: "PUT", path: path(w.group("team"), w.d.UserDN(4)), nobody: true}).problem(t, 401, "unauthenticated")
	w.do(request{method: "GET", path: "/ldap/openapi.json"}).problem(t, 401, "unauthenticated")
	if got := len(w.members(w.group("team"))); got != 3 {
		t.Errorf("%d members", got)
	}
	// And with the right matcher the wrong password.
	w.reload(func(o *options) { o.front = "" })
	if r := w.do(request{method: "GET", path: path(w.group("team")), nobody: true}); r.status != 401 {
		t.Errorf("without a password: %d", r.status)
	}
}

// A verified client certificate is a caller; policy sees its names.
func TestCertificateCallers(t *testing.T) {
	ca := testpeer.NewCA(t)
	server := ca.Issue(t, "localhost", "127.0.0.1")
	w := start(t, options{
		app: `		pdp rules {
			allow self {
				expression "subject_type == 'service' && subject_id == 'ldap_admin'"
			}
			allow app {
				action group.members.read
				client_san dns:app.example.com
			}
		}`,
	})
	https := testpeer.FreeAddr(t)
	_, port, _ := strings.Cut(https, ":")
	config := w.caddyfile()
	at := strings.Index(config, "ldap_admin {")
	admin := config[at:strings.LastIndex(config, "}")]
	config += "\nhttps://localhost:" + port + " {\n\tbind 127.0.0.1\n\ttls " + server.CertFile + " " + server.KeyFile + " {\n\t\tclient_auth {\n\t\t\tmode verify_if_given\n\t\t\ttrust_pool file " + ca.File + "\n\t\t}\n\t}\n\t" + admin + "}"
	w.Load(config)

	get := func(certs ...tls.Certificate) int {
		t.Helper()
		c := http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", Certificates: certs},
		}}
		resp, err := c.Get("https://localhost:" + port + path(w.group("team")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(ca.Issue(t, "app.example.com").TLS); got != 200 {
		t.Errorf("with the right certificate: %d", got)
	}
	if got := get(ca.Issue(t, "other.example.com").TLS); got != 403 {
		t.Errorf("with another: %d", got)
	}
	if got := get(); got != 401 {
		t.Errorf("without: %d", got)
	}
}
