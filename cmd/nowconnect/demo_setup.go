package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/nowconnect/nowconnect/internal/demodir"
)

// demo is one run: its files, its ports and its parts.
type demo struct {
	out io.Writer
	dir string // temporary, removed at the end; holds the secrets

	ldapAddr string // where LDAP clients connect
	httpAddr string // where agents connect; health and metrics too
	target   string // the directory, as the agent dials it
	external bool   // target came from --directory

	callerHash string // of the API's caller's password

	directory *demodir.Server // nil when external
	hub       *part
	agent     *part
	web       *webClient
}

// newDemo chooses ports and writes the files. It starts nothing.
func newDemo(o demoOptions, out io.Writer) (d *demo, err error) {
	d = &demo{out: out, target: o.directory, external: o.directory != ""}
	if d.external {
		if _, _, err := net.SplitHostPort(o.directory); err != nil {
			return nil, fmt.Errorf("--directory %q is not host:port", o.directory)
		}
	}
	if d.ldapAddr, err = choosePort(o.ldapPort, "--ldap-port"); err != nil {
		return nil, err
	}
	if d.httpAddr, err = choosePort(o.httpPort, "--http-port"); err != nil {
		return nil, err
	}
	if d.dir, err = os.MkdirTemp("", "nowconnect-demo-"); err != nil { // mode 0700
		return nil, err
	}
	defer func() {
		if err != nil {
			d.remove()
		}
	}()
	roots, err := d.writeCertificates()
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	d.web = newWebClient("https://"+d.httpAddr, roots)
	token := make([]byte, 32)
	rand.Read(token)
	if err := d.write("agent.token", []byte(base64.RawURLEncoding.EncodeToString(token)+"\n")); err != nil {
		return nil, err
	}
	if err := d.writePasswords(); err != nil {
		return nil, err
	}
	caddyfile, err := d.render(hubTemplate)
	if err != nil {
		return nil, err
	}
	return d, d.write("Caddyfile", caddyfile)
}

// writePasswords makes the password for the API's caller, of which the hub sees
// the hash, and writes down the one for the embedded directory.
func (d *demo) writePasswords() error {
	password := rand.Text()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return err
	}
	d.callerHash = string(hash)
	if err := d.write("api.password", []byte(password+"\n")); err != nil {
		return err
	}
	return d.write("ldap.password", []byte(demodir.AdminPassword+"\n"))
}

// remove takes away the files, secrets among them.
func (d *demo) remove() {
	if err := os.RemoveAll(d.dir); err != nil {
		d.say("Could not remove all files of this run: %v\n", err)
	}
}

func (d *demo) file(name string) string { return filepath.Join(d.dir, name) }

func (d *demo) write(name string, b []byte) error { return os.WriteFile(d.file(name), b, 0o600) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// choosePort returns the loopback address with this port, or with a free one
// for 0. A port in use is found out here, where the flag to change is known.
// Somebody else can still take the port before the hub does; then the hub says
// so.
func choosePort(port int, flag string) (addr string, err error) {
	if port < 0 || port > 65535 {
		return "", fmt.Errorf("%s %d is not a port", flag, port)
	}
	ln, err := net.Listen("tcp", loopback(port))
	switch {
	case inUse(err):
		return "", fmt.Errorf("port %d on 127.0.0.1 is in use; stop what listens there or choose another port with %s (0 picks a free one)", port, flag)
	case err != nil:
		return "", fmt.Errorf("port %d cannot be used (choose another with %s): %w", port, flag, err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// The hub's Caddyfile. It differs from a real one in what keeps the demo to
// itself: loopback addresses, no admin API, no file outside of its directory.
var hubTemplate = template.Must(template.New("Caddyfile").Parse(`{
	admin off
	persist_config off
	auto_https off
	storage file_system "{{.File "storage"}}"
	servers {
		protocols h1 h2
		listener_wrappers {
			nowconnect
			tls
		}
	}
	nowconnect {
		agent_auth token {
			agent {{.Agent}} "{file.{{.File "agent.token"}}}"
		}
		connector {{.Connector}} {
			agents {{.Agent}}
			protocol ldap
		}
		pdp allow_all
		drain_timeout {{.DrainTimeout}}
	}
	layer4 {
		{{.LDAPAddr}} {
			route {
				nowconnect {{.Connector}}
			}
		}
	}
}

https://{{.HTTPAddr}} {
	tls "{{.File "hub.crt"}}" "{{.File "hub.key"}}"
	nowconnect_agent /tunnel
	nowconnect_health
	nowconnect_metrics /metrics
{{- if .Embedded}}
	basic_auth /ldap/* {
		{{.Caller}} {{.CallerHash}}
	}
	ldap_admin {
		connector {{.Connector}}
		insecure_plaintext
		bind_dn {{.AdminDN}}
		bind_password "{file.{{.File "ldap.password"}}}"
		groups_below {{.GroupsDN}}
		group {{.OwnedDN}} {
			replace
		}
		members_below {{.PeopleDN}}
	}
{{- end}}
}
`))

// The agent's file. Its health port is off so that the demo needs no third
// port.
var agentTemplate = template.Must(template.New("agent.yaml").Parse(`tunnel:
  url: https://{{.HTTPAddr}}/tunnel
  agent_id: {{.Agent}}
  auth:
    token_file: "{{.File "agent.token"}}"
  ca_bundle: "{{.File "ca.crt"}}"
targets:
  {{.Connector}}: "{{.Target}}"
limits:
  drain_timeout: {{.DrainTimeout}}
health:
  port: 0
`))

func (d *demo) render(t *template.Template) ([]byte, error) {
	var b strings.Builder
	err := t.Execute(&b, demoValues{d})
	return []byte(b.String()), err
}

// demoValues is what the templates see.
type demoValues struct{ d *demo }

func (v demoValues) Agent() string               { return demoAgent }
func (v demoValues) Connector() string           { return demoConnector }
func (v demoValues) LDAPAddr() string            { return v.d.ldapAddr }
func (v demoValues) HTTPAddr() string            { return v.d.httpAddr }
func (v demoValues) Target() string              { return v.d.target }
func (v demoValues) DrainTimeout() time.Duration { return demoDrainTimeout }

// Embedded: a directory that is not ours gets no API that could change it.
func (v demoValues) Embedded() bool     { return !v.d.external }
func (v demoValues) Caller() string     { return demoCaller }
func (v demoValues) CallerHash() string { return v.d.callerHash }
func (v demoValues) AdminDN() string    { return demodir.AdminDN }
func (v demoValues) GroupsDN() string   { return demodir.GroupsDN }
func (v demoValues) PeopleDN() string   { return demodir.PeopleDN }
func (v demoValues) OwnedDN() string    { return demodir.GroupDN("analysts") }

// File returns a path with forward slashes, which every platform takes and no
// quoting changes.
func (v demoValues) File(name string) string { return filepath.ToSlash(v.d.file(name)) }

// printConfig shows what hub and agent would run with.
func (d *demo) printConfig() error {
	if d.target == "" {
		d.target = "127.0.0.1:389" // the embedded directory gets its port when it starts
	}
	hub, err := d.render(hubTemplate)
	if err != nil {
		return err
	}
	agent, err := d.render(agentTemplate)
	if err != nil {
		return err
	}
	d.say("# hub: Caddyfile\n%s\n# agent: agent.yaml\n%s", hub, agent)
	return nil
}

// writeCertificates makes a certification authority for this run and the hub's
// certificate. The authority's key is never stored.
func (d *demo) writeCertificates() (*x509.CertPool, error) {
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "NowConnect demo CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 30),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "NowConnect demo hub"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{"ca.crt", "CERTIFICATE", caDER}, {"hub.crt", "CERTIFICATE", leafDER}, {"hub.key", "PRIVATE KEY", keyDER}} {
		if err := d.write(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, nil
}
