//go:build unix

package testpeer

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// OPAOptions shape a policy server.
type OPAOptions struct {
	// Files are its policies and data by file name, such as nowconnect.rego.
	Files map[string]string
	// Cert makes it speak TLS.
	Cert *Cert
	// Env and Args add to its environment and its command line.
	Env, Args []string
}

// OPAServer is a running Open Policy Agent, the stock one. POST
// /v0/data/<package>/<rule> takes an AuthZEN question as it is and answers with
// what the rule says.
type OPAServer struct {
	URL     string // https:// with a certificate
	Dir     string // its files; it loads them again when they change
	Process *Process

	tb     testing.TB
	client *http.Client
}

// OPA starts a policy server.
func OPA(tb testing.TB, o OPAOptions) *OPAServer {
	tb.Helper()
	path, dir := OPABinary(tb), tb.TempDir()
	for name, content := range o.Files {
		writeFile(tb, filepath.Join(dir, name), []byte(content))
	}
	var last string
	for range 5 { // its port may be gone by the time it binds it
		addr, scheme := FreeAddr(tb), "http"
		args := []string{"run", "--server", "--addr", addr, "--skip-version-check", "--log-level-request", "debug", "--shutdown-grace-period", "1"}
		if o.Cert != nil {
			scheme = "https"
			args = append(args, "--tls-cert-file", o.Cert.CertFile, "--tls-private-key-file", o.Cert.KeyFile)
		}
		args = append(append(args, o.Args...), "--watch", dir)
		s := &OPAServer{URL: scheme + "://" + addr, Dir: dir, Process: Start(tb, o.Env, path, args...), tb: tb}
		s.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true,
			// What tests ask of it by themselves is no secret and proves nothing.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}}
		if eventually(30*time.Second, s.Process.Done(), s.ready) {
			return s
		}
		s.Process.Kill()
		last = s.Process.Output()
	}
	tb.Fatalf("OPA does not come up: %s", last)
	return nil
}

func (s *OPAServer) ready() bool {
	resp, err := s.client.Get(s.URL + "/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized
}

// Write puts a policy in place of the one with this name, in one step, and
// waits until OPA has loaded it. A server that wants a token does not tell; there
// the caller has to wait for what the policy changes.
func (s *OPAServer) Write(name, content string) {
	s.tb.Helper()
	next := filepath.Join(s.tb.TempDir(), name)
	var written time.Time
	loaded := func() bool {
		// Again and again: OPA answers requests a moment before it watches files.
		if time.Since(written) > 500*time.Millisecond {
			writeFile(s.tb, next, []byte(content))
			if err := os.Rename(next, filepath.Join(s.Dir, name)); err != nil {
				s.tb.Fatal(err)
			}
			written = time.Now()
		}
		return s.loaded(content)
	}
	if !eventually(30*time.Second, s.Process.Done(), loaded) {
		s.tb.Fatalf("OPA does not load %s: %s", name, s.Process.Output())
	}
}

func (s *OPAServer) loaded(policy string) bool {
	resp, err := s.client.Get(s.URL + "/v1/policies")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return true
	}
	var list struct {
		Result []struct {
			Raw string `json:"raw"`
		} `json:"result"`
	}
	if json.NewDecoder(resp.Body).Decode(&list) != nil {
		return false
	}
	for _, p := range list.Result {
		if p.Raw == policy {
			return true
		}
	}
	return false
}

// Asked is how often a rule was asked for, over /v0/data or /v1/data. A server that wants a
// token does not tell.
func (s *OPAServer) Asked() int {
	s.tb.Helper()
	resp, err := s.client.Get(s.URL + "/metrics")
	if err != nil {
		s.tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.tb.Fatalf("OPA's metrics: %s %v", resp.Status, err)
	}
	n := 0
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "http_request_duration_seconds_count{") && strings.Contains(line, `/data"`) {
			v, err := strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]))
			if err != nil {
				s.tb.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// OPABinary builds Open Policy Agent in the version of tools/opa/go.mod and
// returns its path. A binary that is there and not older than that is used as
// it is. The flags are those of make build, so that what Caddy and OPA have in
// common is compiled once.
func OPABinary(tb testing.TB) string {
	tb.Helper()
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	root := ModuleRoot(tb)
	module, dir := filepath.Join(root, "tools", "opa"), filepath.Join(root, ".cache", "testbin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	defer lockDir(tb, dir)()
	path := filepath.Join(dir, "opa")
	if newer(path, filepath.Join(module, "go.mod")) && newer(path, filepath.Join(module, "go.sum")) {
		return path
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-tags=opa_no_oci", "-o", path, "github.com/open-policy-agent/opa")
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build OPA: %v\n%s", err, out)
	}
	return path
}

// newer reports whether a file is there and not older than another one.
func newer(file, than string) bool {
	a, err := os.Stat(file)
	if err != nil {
		return false
	}
	b, err := os.Stat(than)
	return err == nil && !a.ModTime().Before(b.ModTime())
}
