//go:build unix

package docs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/nowconnect/nowconnect/internal/demodir"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// TestForeignAgent runs the real hub with an agent that was written from
// protocol.md alone, in another language.
func TestForeignAgent(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is not installed: run scripts/deps.sh")
	}
	dir, err := demodir.Start("127.0.0.1:0", demodir.Example())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const size = 3 << 20 // many times the window
	targets := map[string]string{
		"directory": dir.Addr(),
		"echo":      testpeer.Echo(t).Addr,
		"late":      testpeer.SendAfterFIN(t, size).Addr,
		"resetter":  testpeer.Resetter(t, 3).Addr,
		"refused":   testpeer.Refuse(t),
		"unmapped":  "", // known to the hub alone
	}
	addrs, agentEndpoint, hub := startHub(t, targets)
	args := []string{"examples/agent.py", "http://" + agentEndpoint + "/tunnel", "premise-1", filepath.Join(hub.dir, "agent-token")}
	for name, addr := range targets {
		if addr != "" {
			args = append(args, name+"="+addr)
		}
	}
	agent := testpeer.Start(t, nil, python, args...)
	await(t, agent, "link is up, accepted: ")

	t.Run("LDAP", func(t *testing.T) {
		c, err := ldap.DialURL("ldap://" + addrs["directory"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetTimeout(10 * time.Second)
		if err := c.Bind(demodir.ReaderDN, demodir.ReaderPassword); err != nil {
			t.Fatal(err)
		}
		r, err := c.Search(ldap.NewSearchRequest(demodir.PeopleDN, ldap.ScopeSingleLevel, 0, 0, 0, false, "(objectClass=person)", nil, nil))
		if err != nil || len(r.Entries) != demodir.NumPeople() {
			t.Errorf("search: %v, %v", r, err)
		}
	})
	t.Run("both ways at once", func(t *testing.T) {
		c := dial(t, addrs["echo"])
		data := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("sent %d bytes, got %d: %v", len(data), len(got), err)
		}
	})
	t.Run("half-close", func(t *testing.T) {
		c := dial(t, addrs["late"])
		_, _ = c.Write([]byte("question"))
		_ = c.CloseWrite()
		got, err := io.ReadAll(c)
		want, _ := io.ReadAll(testpeer.Pattern(size))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes after FIN, want %d: %v", len(got), len(want), err)
		}
	})
	for _, name := range []string{"resetter", "refused", "unmapped"} {
		t.Run("reset by "+name, func(t *testing.T) {
			c, err := net.Dial("tcp", addrs[name])
			if err == nil {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				if _, err = c.Write([]byte("abc")); err == nil {
					_, err = c.Read(make([]byte, 1))
				}
			}
			if !testpeer.IsReset(err) { // which may come before Dial or Write has returned, and is told once
				t.Errorf("%v, not a reset", err)
			}
		})
	}
	t.Run("renewal", func(t *testing.T) {
		c := dial(t, addrs["echo"])
		for token, answer := range map[string]string{"no-token-of-this-hub": "token renewed: refused ", secondToken: "token renewed: ok "} {
			if err := os.WriteFile(filepath.Join(hub.dir, "agent-token"), []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
			await(t, agent, answer)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("a session did not outlive the renewal: %v", err)
		}
	})
	hub.Signal(syscall.SIGTERM)
	await(t, agent, "link is closed: reason 14 ")
	if code := agent.Wait(10 * time.Second); code != 0 {
		t.Errorf("agent.py ends with %d", code)
	}
	for _, reason := range []string{`"close_reason":"connect_failed"`, `"close_reason":"no_agent"`, `"close_reason":"rst"`, `"close_reason":"fin"`} {
		if !strings.Contains(hub.Output(), reason) {
			t.Errorf("no session ended with %s", reason)
		}
	}
}

const firstToken, secondToken = "a-token-for-this-test-alone", "another-one-for-this-test"

type hubProcess struct {
	*testpeer.Process
	dir string
}

// startHub runs the real hub with one listener per connector. It returns their
// addresses and that of the agent endpoint.
func startHub(t *testing.T, connectors map[string]string) (clients map[string]string, agents string, hub hubProcess) {
	t.Helper()
	dir := t.TempDir()
	for name, token := range map[string]string{"token": firstToken, "second": secondToken, "agent-token": firstToken} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	clients, agents = map[string]string{}, testpeer.FreeAddr(t)
	var conns, routes strings.Builder
	for name := range connectors {
		clients[name] = testpeer.FreeAddr(t)
		fmt.Fprintf(&conns, "\t\tconnector %s {\n\t\t\tagents premise-1\n\t\t}\n", name)
		fmt.Fprintf(&routes, "\t\t%s {\n\t\t\troute {\n\t\t\t\tnowconnect %s\n\t\t\t}\n\t\t}\n", clients[name], name)
	}
	config := fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system "%[1]s/storage"
	nowconnect {
		agent_auth token {
			agent premise-1 "{file.%[1]s/token}" "{file.%[1]s/second}"
		}
%[2]s		pdp allow_all
		drain_timeout 2s
	}
	layer4 {
%[3]s	}
}

http://%[4]s {
	bind 127.0.0.1
	nowconnect_agent /tunnel
}
`, dir, conns.String(), routes.String(), agents)
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := testpeer.BuildBinary(t, "./cmd/nowconnect", false)
	hub = hubProcess{testpeer.Start(t, nil, bin, "run", "--config", file), dir}
	await(t, hub.Process, "serving initial configuration")
	return clients, agents, hub
}

// await waits until a process has written text.
func await(t *testing.T, p *testpeer.Process, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.Output(), text); time.Sleep(10 * time.Millisecond) {
		select {
		case <-p.Done():
			if !strings.Contains(p.Output(), text) {
				t.Fatalf("ended without %q:\n%s", text, p.Output())
			}
		default:
			if time.Now().After(deadline) {
				t.Fatalf("no %q within 20 s:\n%s", text, p.Output())
			}
		}
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}
