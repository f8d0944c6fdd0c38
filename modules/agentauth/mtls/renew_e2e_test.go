package mtls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

const requireAndVerify = "mode require_and_verify\n\t\t\ttrust_pool file \""

// install puts a certificate where the agent looks for it. Key and certificate
// change one after the other, as they do in life.
func install(t *testing.T, h *hubtest.Hub, c *testpeer.Cert) {
	t.Helper()
	for from, to := range map[string]string{c.KeyFile: "client.key", c.CertFile: "client.crt"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(h.Write(to+".new", string(b)), filepath.Join(h.Dir, to)); err != nil {
			t.Fatal(err)
		}
	}
}

// withCert makes the agent log in with those files and without a token.
func withCert(h *hubtest.Hub, ca *testpeer.CA) func(*agent.Config) {
	return func(c *agent.Config) {
		_, port, _ := net.SplitHostPort(h.HTTP)
		c.URL, c.CABundle, c.TokenFile = "https://localhost:"+port+"/tunnel", ca.File, ""
		c.ClientCert, c.ClientKey = filepath.Join(h.Dir, "client.crt"), filepath.Join(h.Dir, "client.key")
	}
}

// eligible lists the links that new sessions go to, which is one at most.
func eligible() []hub.LinkStatus {
	var out []hub.LinkStatus
	for _, a := range nowconnect.Current().Hub().Status().Agents {
		for _, l := range a.Links {
			if !l.Draining {
				out = append(out, l)
			}
		}
	}
	return out
}

// TestSessionsOutliveClientCertificates renews an agent's certificate twice. A
// new link takes over each time, and the session of the first one goes on past
// the life of the certificate that it began with.
func TestSessionsOutliveClientCertificates(t *testing.T) {
	ca := testpeer.NewCA(t)
	h := hubtest.New(t)
	config := caddyfile(h, "template dns:*.agents.example", requireAndVerify+ca.File+`"`, ca.Issue(t, "localhost"))
	h.Load(config)
	first := ca.IssueFor(t, 8*time.Second, "premise-1.agents.example")
	install(t, h, first)
	h.Agent(withCert(h, ca))
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")
	began := eligible()[0]
	if d := time.Until(began.Expires); d > 8*time.Second {
		t.Errorf("the first certificate expires in %v", d)
	}
	var others []net.Conn
	for _, life := range []time.Duration{20 * time.Second, time.Hour} {
		was := eligible()[0].Since
		install(t, h, ca.IssueFor(t, life, "premise-1.agents.example"))
		hubtest.Eventually(t, "another link takes over", func() bool { l := eligible(); return len(l) == 1 && l[0].Since.After(was) })
		hubtest.RoundTrip(t, session, "the old session")
		others = append(others, h.Dial())
		hubtest.RoundTrip(t, others[len(others)-1], "a new one")
	}
	leaf := first.TLS.Leaf
	time.Sleep(time.Until(leaf.NotAfter) + 500*time.Millisecond)
	hubtest.RoundTrip(t, session, "after its certificate")
	h.Load(strings.Replace(config, "pdp allow_all", "max_sessions 100\n\t\tpdp allow_all", 1))
	time.Sleep(200 * time.Millisecond) // it judges in the background
	hubtest.RoundTrip(t, session, "after a reload that judges by the newest certificate")
	if n := links(); n != 3 {
		t.Errorf("%d links, each with a session", n)
	}
	session.Close()
	others[0].Close()
	hubtest.Eventually(t, "the links of before are gone", func() bool { return links() == 1 })
	hubtest.RoundTrip(t, others[1], "the last")
	if s := h.Logged(); strings.Contains(s, `"reason":"link_lost"`) || strings.Contains(s, "has expired") {
		t.Error("something was lost on the way")
	}
}

// TestCertificateThatNobodyRenews ends the link after the grace; the agent is
// back once there is a good one.
func TestCertificateThatNobodyRenews(t *testing.T) {
	ca := testpeer.NewCA(t)
	h := hubtest.New(t)
	config := caddyfile(h, "template dns:*.agents.example", requireAndVerify+ca.File+`"`, ca.Issue(t, "localhost"))
	h.Load(strings.Replace(config, "pdp allow_all", "pdp allow_all\n\t\tauth_grace 1s", 1))
	install(t, h, ca.IssueFor(t, 5*time.Second, "premise-1.agents.example"))
	h.Agent(withCert(h, ca))
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")
	expires := eligible()[0].Expires
	if _, err := io.ReadFull(session, make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the session goes on: %v", err)
	}
	if d := time.Since(expires); d < 900*time.Millisecond {
		t.Errorf("the session ended %v after the expiry", d)
	}
	hubtest.Eventually(t, "the link is gone", func() bool { return links() == 0 })
	install(t, h, ca.Issue(t, "premise-1.agents.example"))
	hubtest.Eventually(t, "the agent is back", func() bool { return links() == 1 })
	hubtest.RoundTrip(t, h.Dial(), "again")
}

// TestAgentWithARefusedCertificate: the agent names the certificate as the cause,
// with TLS 1.3 too, where the server says so late.
func TestAgentWithARefusedCertificate(t *testing.T) {
	ca, stranger := testpeer.NewCA(t), testpeer.NewCA(t)
	h := hubtest.New(t)
	h.Load(caddyfile(h, "template dns:*.agents.example", requireAndVerify+ca.File+`"`, ca.Issue(t, "localhost")))
	install(t, h, stranger.Issue(t, "premise-1.agents.example"))
	log := runAgentUntil(t, withCert(h, ca), "the hub does not accept this agent's client certificate")
	if strings.Contains(log, "using websocket") {
		t.Error("it takes the carrier for the cause")
	}
	if links() != 0 {
		t.Error("the hub let it in")
	}
}

// TestMethodsSideBySide: a client certificate or a token, one must pass.
func TestMethodsSideBySide(t *testing.T) {
	ca := testpeer.NewCA(t)
	h := hubtest.New(t)
	h.Write("secret", hubtest.Token)
	config := caddyfile(h, "agent premise-1 dns:premise-1.agents.example", "mode verify_if_given\n\t\t\ttrust_pool file \""+ca.File+`"`, ca.Issue(t, "localhost"))
	h.Load(h.Expand(strings.Replace(config, "pdp allow_all", "agent_auth token {\n\t\t\tagent premise-1 {file.$DIR/secret}\n\t\t}\n\t\tpdp allow_all", 1)))
	install(t, h, ca.Issue(t, "premise-1.agents.example"))
	stop := h.Agent(withCert(h, ca))
	hubtest.RoundTrip(t, h.Dial(), "with the certificate")
	if l := eligible()[0]; l.Expires.IsZero() {
		t.Error("the certificate's end is not known")
	}
	stop()
	hubtest.Eventually(t, "the hub has noticed", func() bool { return links() == 0 })
	stop = h.Agent(func(c *agent.Config) {
		withCert(h, ca)(c)
		c.ClientCert, c.ClientKey, c.TokenFile = "", "", filepath.Join(h.Dir, "token")
	})
	hubtest.RoundTrip(t, h.Dial(), "with the secret")
	if l := eligible()[0]; !l.Expires.IsZero() {
		t.Error("the secret has an end")
	}
	stop()
	hubtest.Eventually(t, "the hub has noticed", func() bool { return links() == 0 })
	// The certificate of another, and the right secret: one must pass.
	install(t, h, ca.Issue(t, "premise-2.agents.example"))
	h.Agent(func(c *agent.Config) { withCert(h, ca)(c); c.TokenFile = filepath.Join(h.Dir, "token") })
	hubtest.RoundTrip(t, h.Dial(), "with the secret beside another's certificate")
	// Neither: no certificate at all must not pass for the one with the empty fingerprint.
	if s := login(t, h, ca, tls.Certificate{}); s != 401 {
		t.Errorf("neither: %d", s)
	}
}

// runAgentUntil runs an agent that cannot log in until it has logged text.
func runAgentUntil(t *testing.T, edit func(*agent.Config), text string) string {
	t.Helper()
	cfg := agent.Config{AgentID: "premise-1", Targets: map[string]agent.Target{"echo": {Host: "127.0.0.1", Port: 1}}, Links: 1}
	edit(&cfg)
	core, logs := observer.New(zap.DebugLevel)
	a, err := agent.New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	all := func() string {
		var b strings.Builder
		for _, e := range logs.All() {
			fmt.Fprintln(&b, e.Message, e.ContextMap())
		}
		return b.String()
	}
	hubtest.Eventually(t, "the agent logs "+text, func() bool { return strings.Contains(all(), text) })
	return all()
}
