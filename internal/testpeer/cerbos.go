//go:build unix

package testpeer

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// CerbosServer is a running Cerbos, a PDP that speaks AuthZEN by itself.
type CerbosServer struct {
	URL     string // its identifier; the endpoints are in its metadata
	Process *Process

	tb     testing.TB
	dir    string
	client *http.Client
}

// Cerbos starts a policy server with policies by file name. The test is skipped
// where Cerbos is not installed: it comes as a binary by npm, which not every
// machine has. scripts/deps.sh installs it where npm is.
func Cerbos(tb testing.TB, policies map[string]string) *CerbosServer {
	tb.Helper()
	path := cerbosBinary(tb)
	dir := tb.TempDir()
	s := &CerbosServer{tb: tb, dir: filepath.Join(dir, "policies"), client: &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	for name, content := range policies {
		writeFile(tb, filepath.Join(s.dir, name), []byte(content))
	}
	var last string
	for range 5 { // its ports may be gone by the time it binds them
		addr := FreeAddr(tb)
		config := fmt.Sprintf(`server:
  httpListenAddr: %q
  grpcListenAddr: %q
  adminAPI: {enabled: true}
telemetry: {disabled: true}
storage: {driver: disk, disk: {directory: %q, watchForChanges: false}}
`, addr, FreeAddr(tb), s.dir)
		file := writeFile(tb, filepath.Join(dir, "cerbos.yaml"), []byte(config))
		s.URL, s.Process = "http://"+addr, Start(tb, nil, path, "server", "--config", file)
		if eventually(30*time.Second, s.Process.Done(), s.ready) {
			return s
		}
		s.Process.Kill()
		last = s.Process.Output()
	}
	tb.Fatalf("Cerbos does not come up: %s", last)
	return nil
}

func (s *CerbosServer) ready() bool {
	resp, err := s.client.Get(s.URL + "/_cerbos/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Write puts a policy in place of the one with this name and has Cerbos load it.
func (s *CerbosServer) Write(name, content string) {
	s.tb.Helper()
	writeFile(s.tb, filepath.Join(s.dir, name), []byte(content))
	req, err := http.NewRequestWithContext(s.tb.Context(), http.MethodGet, s.URL+"/admin/store/reload?wait=true", nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	req.SetBasicAuth("cerbos", "cerbosAdmin") // what it has when nobody says otherwise
	resp, err := s.client.Do(req)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		s.tb.Fatalf("Cerbos does not load %s: %s %s", name, resp.Status, body)
	}
}

func cerbosBinary(tb testing.TB) string {
	tb.Helper()
	found, _ := filepath.Glob(filepath.Join(ModuleRoot(tb), ".cache", "cerbos", "node_modules", "@cerbos", "cerbos-*", "cerbos-*"))
	for _, path := range found {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && !strings.HasSuffix(path, ".json") {
			return path
		}
	}
	tb.Skip("Cerbos is not installed: scripts/deps.sh installs it where there is npm")
	return ""
}
