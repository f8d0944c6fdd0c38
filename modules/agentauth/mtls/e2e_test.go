package mtls_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// caddyfile has an agent endpoint with TLS. auth is the body of agent_auth mtls.
func caddyfile(h *hubtest.Hub, auth, clientAuth string, server *testpeer.Cert) string {
	_, port, _ := net.SplitHostPort(h.HTTP)
	return h.Caddyfile("agent_auth mtls {\n\t\t\t"+auth+"\n\t\t}\n\t\tpdp allow_all\n\t\tconnector echo {\n\t\t\tagents premise-1\n\t\t}",
		hubtest.Layer4, fmt.Sprintf(`https://localhost:%s {
	bind 127.0.0.1
	tls "%s" "%s" {
		client_auth {
			%s
		}
	}
	nowconnect_agent /tunnel
}`, port, server.CertFile, server.KeyFile, clientAuth))
}

// sidecar takes plain connections and carries them to addr over TLS with a
// client certificate, as a local TLS proxy does for programs that have none.
func sidecar(t *testing.T, addr string, cfg *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer in.Close()
				out, err := tls.Dial("tcp", addr, cfg)
				if err != nil {
					return // the agent tries again
				}
				defer out.Close()
				wg.Go(func() { io.Copy(out, in); out.Close() })
				io.Copy(in, out)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func links() int {
	n := 0
	for _, a := range nowconnect.Current().Hub().Status().Agents {
		n += len(a.Links)
	}
	return n
}

func TestAgentWithClientCertificate(t *testing.T) {
	ca := testpeer.NewCA(t)
	server, client := ca.Issue(t, "localhost"), ca.Issue(t, "premise-1.agents.example")
	verify := "mode require_and_verify\n\t\t\ttrust_pool file \"" + ca.File + "\""
	h := hubtest.New(t)
	h.Load(caddyfile(h, "agent premise-1 dns:premise-1.agents.example", verify, server))
	via := sidecar(t, h.HTTP, &tls.Config{
		RootCAs: ca.Pool, ServerName: "localhost", Certificates: []tls.Certificate{client.TLS}, NextProtos: []string{"http/1.1"},
	})
	_, port, _ := net.SplitHostPort(via)
	h.Agent(func(c *agent.Config) { c.URL = "http://localhost:" + port + "/tunnel" })
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")

	h.Load(caddyfile(h, "template dns:*.agents.example", verify, server))
	hubtest.RoundTrip(t, session, "by a template now")

	h.Load(caddyfile(h, "agent premise-1 dns:premise-1.other.example", verify, server))
	if _, err := io.ReadFull(session, make([]byte, 1)); err == nil {
		t.Error("the session goes on")
	}
	hubtest.Eventually(t, "the agent is refused", func() bool {
		return links() == 0 && strings.Contains(h.Logged(), "none of its names is an agent's")
	})
}

// login sends an agent's request with a client certificate and returns the
// status.
func login(t *testing.T, h *hubtest.Hub, ca *testpeer.CA, cert tls.Certificate) int {
	t.Helper()
	c, err := tls.Dial("tcp", h.HTTP, &tls.Config{
		RootCAs: ca.Pool, ServerName: "localhost", NextProtos: []string{"http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /tunnel HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\nNowconnect-Version: 1\r\n"+
		"Nowconnect-Agent: premise-1\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestCaddyThatVerifiesAndThatDoesNot(t *testing.T) {
	ca, stranger := testpeer.NewCA(t), testpeer.NewCA(t)
	server := ca.Issue(t, "localhost")
	good, other := ca.Issue(t, "premise-1"), ca.Issue(t, "premise-2")
	forged := stranger.Issue(t, "premise-1")
	h := hubtest.New(t)

	h.Load(caddyfile(h, "agent premise-1 cn:premise-1", "mode verify_if_given\n\t\t\ttrust_pool file \""+ca.File+"\"", server))
	if s := login(t, h, ca, good.TLS); s != http.StatusSwitchingProtocols {
		t.Errorf("the agent's own certificate: %d", s)
	}
	if s := login(t, h, ca, tls.Certificate{}); s != http.StatusUnauthorized {
		t.Errorf("none: %d", s)
	}
	// Leaf of another, with the agent's certificate as an extra one.
	mixed := other.TLS
	mixed.Certificate = append(mixed.Certificate[:1:1], good.TLS.Certificate[0])
	if s := login(t, h, ca, mixed); s != http.StatusUnauthorized {
		t.Errorf("another's leaf with the agent's certificate: %d", s)
	}

	for _, mode := range []string{"request", "require"} {
		h.Load(caddyfile(h, "agent premise-1 cn:premise-1", "mode "+mode, server))
		if s := login(t, h, ca, forged.TLS); s != http.StatusUnauthorized {
			t.Errorf("mode %s, a certificate by anybody: %d", mode, s)
		}
	}
	if !strings.Contains(h.Logged(), "the TLS server has not verified the client certificate") {
		t.Error("the log does not say why")
	}
}
