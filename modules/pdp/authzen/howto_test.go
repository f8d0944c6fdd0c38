//go:build unix

package authzen_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// page is docs/how-to/authorise-with-opa.md, by fenced blocks.
type page struct {
	files  map[string]string // rego by file name, and data.json
	shell  []string          // in order
	output []string          // what they print, in order
	hub    string            // Caddyfile
}

func readHowTo(t *testing.T) page {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testpeer.ModuleRoot(t), "docs", "how-to", "authorise-with-opa.md"))
	if err != nil {
		t.Fatal(err)
	}
	p := page{files: map[string]string{}}
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```").FindAllStringSubmatch(string(b), -1) {
		switch text := m[2]; m[1] {
		case "rego":
			name, _, _ := strings.Cut(strings.TrimPrefix(text, "# "), "\n")
			p.files[name] = text
		case "json":
			p.files["data.json"] = text
		case "sh":
			p.shell = append(p.shell, text)
		case "text":
			p.output = append(p.output, text)
		case "caddyfile":
			p.hub = text
		}
	}
	if len(p.files) != 4 || len(p.shell) != 4 || len(p.output) != 2 || p.hub == "" {
		t.Fatalf("the page has %d files, %d scripts, %d outputs", len(p.files), len(p.shell), len(p.output))
	}
	return p
}

// The page is followed to the letter, but for addresses and directories.
func TestHowToOPA(t *testing.T) {
	p := readHowTo(t)
	ca, dir := testpeer.NewCA(t), t.TempDir()
	cert := ca.Issue(t, "opa.example.com", "127.0.0.1")
	addr := testpeer.FreeAddr(t)
	here := strings.NewReplacer(
		"/etc/opa/tls.pem", cert.CertFile, "/etc/opa/tls.key", cert.KeyFile, "/etc/nowconnect/opa-ca.pem", ca.File,
		"/etc/nowconnect/opa.token", filepath.Join(dir, "hub.token"), "/etc/opa", dir,
		"0.0.0.0:8181", addr, "opa.example.com:8181", addr,
	)
	if err := os.Mkdir(filepath.Join(dir, "policy"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "policy", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range p.files {
		write(name, content)
	}
	path := "PATH=" + filepath.Dir(testpeer.OPABinary(t)) + ":" + os.Getenv("PATH")
	run := func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", here.Replace(script))
		cmd.Env = append(os.Environ(), path)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s%s", script, err, out.String(), errs.String())
		}
		return out.String()
	}

	// Check and test the policy.
	if got := run(p.shell[0]); got != p.output[0] {
		t.Errorf("the policy's tests print %q, the page has %q", got, p.output[0])
	}
	if out, err := exec.Command(testpeer.OPABinary(t), "fmt", "--list", "--fail", filepath.Join(dir, "policy")).CombinedOutput(); err != nil {
		t.Errorf("opa fmt: %v: %s", err, out)
	}

	// Run OPA, and ask it.
	secret, server, ok := strings.Cut(p.shell[1], "\n")
	if !ok {
		t.Fatal("the script that runs OPA has one line")
	}
	run(secret)
	opa := testpeer.Start(t, []string{path}, "/bin/sh", "-euc", strings.Replace(here.Replace(server), "opa run", "exec opa run", 1))
	hubtest.Eventually(t, "OPA is up", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	if got := run(p.shell[2]); strings.TrimSpace(got) != strings.TrimSpace(p.output[1]) {
		t.Errorf("OPA answers %q, the page has %q", got, p.output[1])
	}
	status := func(args ...string) string {
		return run("curl -sS -o /dev/null -w '%{http_code}' --cacert /etc/nowconnect/opa-ca.pem https://" + addr + strings.Join(args, " "))
	}
	bearer := `-H "Authorization: Bearer $(cat /etc/opa/hub.token)"`
	for want, got := range map[string]string{
		"401":        status("/v0/data/nowconnect/decision -d {}"),
		"401 ":       status("/v0/data/nowconnect/decision -d {} -H 'Authorization: Bearer '"),
		"401  ":      status("/v0/data/nowconnect/permits -d {}", bearer),
		"401   ":     status("/v1/policies", bearer),
		"401    ":    status("/v0/data/nowconnect/decision -X PUT -d {}", bearer),
		"200":        status("/health"),
		"200 ":       status("/v0/data/nowconnect/decisions -d '{\"evaluations\":[]}'", bearer),
		"200      ":  status("/v0/data/nowconnect/decision -d {}", bearer), // total, whatever the question
		"200       ": status("/v0/data/nowconnect/decision -d '{\"subject\":7}'", bearer),
	} {
		if got != strings.TrimSpace(want) {
			t.Errorf("status %s, want %s", got, want)
		}
	}

	// The hub.
	h := hubtest.New(t)
	_, block, _ := strings.Cut(p.hub, "\tnowconnect {\n")
	block, layer4, ok := strings.Cut(block, "\t}\n\tlayer4 {\n")
	if !ok {
		t.Fatal("the page's Caddyfile has another form")
	}
	block = strings.ReplaceAll(here.Replace(block), "/etc/nowconnect/premise-1.token", filepath.Join(h.Dir, "token"))
	layer4 = "\tlayer4 {\n" + strings.TrimSuffix(strings.Replace(layer4, ":389", "$LDAP", 1), "}\n")
	h.Load(h.Caddyfile(block, layer4, hubtest.Site))
	h.Agent(func(c *agent.Config) {
		c.Targets = map[string]agent.Target{"addomain": c.Targets["echo"]}
	})
	series := func(result string) float64 {
		return h.Metric(fmt.Sprintf("nowconnect_pdp_decisions_total{connector=%q,result=%q}", "addomain", result))
	}
	ldapRefused := func() {
		t.Helper()
		c := h.Dial()
		b := make([]byte, 200)
		n, _ := c.Read(b)
		if !strings.Contains(string(b[:n]), "NowConnect: access denied") {
			t.Errorf("refused with %q", b[:n])
		}
	}
	ldapRefused()
	hubtest.Eventually(t, "a denial", func() bool { return series("deny") == 1 })
	if !strings.Contains(h.Logged(), `default_deny`) {
		t.Error("the reason is not in the log")
	}
	// The file changes, OPA loads it, and a hub that remembers only for seconds
	// lets the client in.
	written := time.Time{}
	again := func(content string) { // OPA answers requests a moment before it watches files
		if time.Since(written) > time.Second {
			write("data.json", content)
			written = time.Now()
		}
	}
	var c *net.TCPConn
	hubtest.Eventually(t, "the client is let in", func() bool {
		again(strings.Replace(p.files["data.json"], "10.0.0.0/8", "127.0.0.0/8", 1))
		c = h.Dial()
		if _, err := c.Write([]byte("x")); err != nil {
			return false
		}
		b := make([]byte, 1)
		_, err := c.Read(b)
		return err == nil && b[0] == 'x'
	})
	// And back: who is there is judged at once by the page's command, of which
	// the tests of the admin endpoint know that it sends this.
	if p.shell[3] != "nowconnect reevaluate\n" {
		t.Errorf("the page says %q", p.shell[3])
	}
	written = time.Time{}
	hubtest.Eventually(t, "the client is cut", func() bool {
		again(p.files["data.json"])
		if status, answer := h.AdminDo("POST", "/nowconnect/reevaluate", "application/json", "{}"); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return testpeer.IsReset(err) // it has not spoken LDAP, so there is no notice
	})
	if series("error") != 0 {
		t.Error(strconv.Itoa(int(series("error"))) + " errors")
	}
	if opa.Kill(); strings.Contains(h.Logged(), strings.TrimSpace(run("cat /etc/opa/hub.token"))) {
		t.Error("the token is in the hub's log")
	}
}
