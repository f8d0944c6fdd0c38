package jwt_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// shortLived is the usual Caddyfile for tokens of a few seconds.
func shortLived(h *hubtest.Hub, p *provider, grace string) string {
	return strings.Replace(caddyfile(h, p, "nowconnect", "auth_grace "+grace+"\n\t\t"), "refresh_cooldown", "skew 1ms\n\t\t\trefresh_cooldown", 1)
}

func theLink(t *testing.T) (l hub.LinkStatus) {
	t.Helper()
	for _, a := range nowconnect.Current().Hub().Status().Agents {
		if len(a.Links) == 1 {
			return a.Links[0]
		}
	}
	t.Fatal("the agent has not one link")
	return l
}

// replace writes a token as careful software does.
func replace(t *testing.T, h *hubtest.Hub, token string) {
	t.Helper()
	if err := os.Rename(h.Write("token.new", token+"\n"), h.Dir+"/token"); err != nil {
		t.Fatal(err)
	}
}

// TestSessionsDoNotNoticeThatTokensRotate renews tokens of a few seconds over a
// live link while sessions transfer: through a rotation of the provider's keys
// with overlap, and while the provider is down.
func TestSessionsDoNotNoticeThatTokensRotate(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	const life = 6 * time.Second
	var tokens []string
	next := func() string {
		// A nonce: an ECDSA signature differs by itself, other ones would not.
		tokens = append(tokens, p.sign(t, life, map[string]any{"jti": fmt.Sprint(len(tokens))}))
		return tokens[len(tokens)-1]
	}
	h.Load(shortLived(h, p, "30s"))
	replace(t, h, next())
	h.Agent(nil)
	before := theLink(t)
	done := transfers(t, h, 6)

	for i, change := range []func(){
		func() {},
		func() { // a new key, published before it signs
			k2 := newKey(t, "k2")
			p.publish(p.key, k2)
			p.key = k2
		},
		func() { p.publish(p.key) }, // the old one is gone
		func() { p.down.Store(true) },
		func() { p.down.Store(false) },
	} {
		was := theLink(t).Expires
		time.Sleep(1100 * time.Millisecond) // claims have whole seconds; and the key set rests between fetches
		change()
		replace(t, h, next())
		hubtest.Eventually(t, fmt.Sprintf("the expiry moves the %d. time", i+1), func() bool { return theLink(t).Expires.After(was) })
	}
	if l := theLink(t); !l.Since.Equal(before.Since) {
		t.Error("it is not the same link")
	}
	if time.Now().Before(before.Expires) {
		time.Sleep(time.Until(before.Expires)) // past the first token's life
	}
	hubtest.RoundTrip(t, h.Dial(), "a new session")
	// A reload judges the link by the newest token, not by the one of its login.
	h.Load(strings.Replace(shortLived(h, p, "30s"), "pdp allow_all", "max_sessions 100\n\t\tpdp allow_all", 1))
	time.Sleep(200 * time.Millisecond) // it judges in the background
	hubtest.RoundTrip(t, h.Dial(), "after a reload")
	if l := theLink(t); !l.Since.Equal(before.Since) {
		t.Error("the reload cost the link")
	}
	for _, err := range done() {
		t.Error(err)
	}
	if n := h.Metric(`nowconnect_tunnel_reauth_total{agent="premise-1",result="accepted"}`); n != 5 {
		t.Errorf("%v renewals, want 5", n)
	}
	log := h.Logged()
	for _, token := range tokens {
		if strings.Contains(log, token[strings.LastIndex(token, ".")+1:]) {
			t.Error("a token is in the log")
		}
	}
}

// transfers keeps n sessions busy until the returned function is called, which
// returns what went wrong.
func transfers(t *testing.T, h *hubtest.Hub, n int) (done func() []error) {
	t.Helper()
	stop := make(chan struct{})
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for i := range n {
		c := h.Dial()
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		wg.Go(func() { errs <- transfer(c, uint64(i), stop) })
	}
	return func() []error {
		close(stop)
		wg.Wait()
		close(errs)
		var out []error
		for err := range errs {
			if err != nil {
				out = append(out, err)
			}
		}
		return out
	}
}

var errEnd = errors.New("not the end of an echo")

func transfer(c *net.TCPConn, seed uint64, stop chan struct{}) error {
	r := rand.New(rand.NewPCG(seed, 1))
	for total := 0; ; {
		select {
		case <-stop:
			c.CloseWrite()
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				return fmt.Errorf("session %d: at the end %d bytes: %w", seed, len(rest), errors.Join(errEnd, err))
			}
			return nil
		default:
		}
		out := make([]byte, 1+r.IntN(20000))
		for i := range out {
			out[i] = byte(r.Uint32())
		}
		if _, err := c.Write(out); err != nil {
			return fmt.Errorf("session %d after %d bytes: %w", seed, total, err)
		}
		in := make([]byte, len(out))
		if _, err := io.ReadFull(c, in); err != nil {
			return fmt.Errorf("session %d after %d bytes: %w", seed, total, err)
		}
		if !bytes.Equal(in, out) {
			return fmt.Errorf("session %d after %d bytes: other bytes came back", seed, total)
		}
		total += len(out)
		time.Sleep(time.Millisecond)
	}
}

// TestTokenThatNobodyRenews: no new sessions after the expiry, the grace for
// those that are there, a reason for the agent; and the way back.
func TestTokenThatNobodyRenews(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Load(shortLived(h, p, "1s"))
	replace(t, h, p.sign(t, 4*time.Second, nil))
	h.Agent(nil)
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")
	expires := theLink(t).Expires

	time.Sleep(time.Until(expires) + 100*time.Millisecond)
	h.Refused()
	if _, err := io.ReadFull(session, make([]byte, 1)); err == nil {
		t.Error("the session goes on after the grace")
	} else if d := time.Since(expires); d < 900*time.Millisecond {
		t.Errorf("the session ended %v after the expiry", d)
	}
	hubtest.Eventually(t, "the link is gone", func() bool { return links() == 0 })
	if !strings.Contains(h.Logged(), "agent's credential has expired and was not renewed: closing its link") {
		t.Error("the hub does not say why")
	}
	replace(t, h, p.sign(t, time.Hour, nil))
	hubtest.Eventually(t, "the agent is back", func() bool { return links() == 1 })
	hubtest.RoundTrip(t, h.Dial(), "again")
	if n := h.Metric(`nowconnect_tunnel_reconnects_total{agent="premise-1",reason="revoked"}`); n != 1 {
		t.Errorf("%v reconnects for revoked", n)
	}
}

// rawAgent is an agent's link with nobody but the test to decide what it sends.
type rawAgent struct {
	*tunnel.Link
	ack  wire.HelloAck
	acks chan wire.AuthAck
	done chan error
}

func newRawAgent(t *testing.T, h *hubtest.Hub, token string) *rawAgent {
	t.Helper()
	conn, err := net.Dial("tcp", h.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /tunnel HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: nowconnect\r\n"+
		"Nowconnect-Version: 1\r\nAuthorization: Bearer %s\r\n\r\n", h.HTTP, token)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	a := &rawAgent{acks: make(chan wire.AuthAck, 100), done: make(chan error, 1)}
	c := tunnel.NewNative(conn, br, nil)
	a.ack, err = tunnel.SayHello(t.Context(), c, wire.Hello{
		Version: 1, AgentID: "premise-1", Instance: "raw", Connectors: []string{"echo"}, Window: tunnel.DefaultWindow,
		Capabilities: []string{wire.CapReauth},
	})
	if err != nil {
		t.Fatal(err)
	}
	var sessions sync.WaitGroup
	a.Link = tunnel.NewAgentLink(c, tunnel.Config{
		OnAuthAck: func(k wire.AuthAck) { a.acks <- k },
		OnOpen: func(s *tunnel.Session) {
			sessions.Go(func() {
				ours, theirs := net.Pipe()
				sessions.Go(func() { io.Copy(theirs, theirs); theirs.Close() })
				s.Accept(tunnel.Endpoint{Conn: ours}, tunnel.SessionConfig{})
				theirs.Close()
			})
		},
	})
	go func() { a.done <- a.Serve(context.Background()) }()
	t.Cleanup(func() {
		a.Close(wire.ReasonShutdown, "")
		<-a.done
		sessions.Wait()
		hubtest.Eventually(t, "the hub has noticed", func() bool { return links() == 0 })
	})
	hubtest.Eventually(t, "the hub has the link", func() bool { return links() == 1 })
	return a
}

func (a *rawAgent) renew(t *testing.T, token string) wire.AuthAck {
	t.Helper()
	if err := a.SendAuth(token); err != nil {
		t.Fatal(err)
	}
	select {
	case k := <-a.acks:
		return k
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
		panic("unreachable")
	}
}

// TestTokensThatRenewNothing sends each kind of bad token over a live link: the
// answer has a type, the link and its session stay.
func TestTokensThatRenewNothing(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Load(caddyfile(h, p, "nowconnect", ""))
	stranger := newKey(t, "k1") // the id of the right key
	unknown := newKey(t, "k9")
	by := func(k jose.JSONWebKey) string { q := &provider{key: k}; return q.sign(t, time.Hour, nil) }
	good := p.token(t, "echo")
	parts := strings.Split(good, ".")
	for name, c := range map[string]struct{ token, message string }{
		"another agent's":    {p.sign(t, time.Hour, map[string]any{"agent_id": "premise-2"}), `the token is agent "premise-2"'s`},
		"another audience":   {p.sign(t, time.Hour, map[string]any{"aud": "elsewhere"}), "another audience"},
		"another issuer":     {p.sign(t, time.Hour, map[string]any{"iss": "https://idp.example.com/"}), "issuer"},
		"expired":            {p.sign(t, -2*time.Minute, nil), "expired"},
		"not yet valid":      {p.sign(t, time.Hour, map[string]any{"nbf": time.Now().Add(10 * time.Minute).Unix()}), "not valid for another"},
		"no expiry":          {p.sign(t, time.Hour, map[string]any{"exp": nil}), `no claim "exp"`},
		"no scopes":          {p.sign(t, time.Hour, map[string]any{"connectors": []string{}}), "names no connector"},
		"another key":        {by(stranger), "does not fit"},
		"unknown kid":        {by(unknown), "not in the key set"},
		"no signature":       {parts[0] + "." + parts[1] + ".", ""},
		"alg none":           {base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", "none"},
		"HS256 with the key": {hmacWithPublicKey(t, p.key, parts[1]), "HS256"},
		"no token at all":    {"\x00\r\nAuthorization: Bearer " + good, ""},
		"another's secret":   {"not-a-jwt", "no credential"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newRawAgent(t, h, good)
			session := h.Dial()
			hubtest.RoundTrip(t, session, "before")
			was := theLink(t).Expires
			k := a.renew(t, c.token)
			if k.Error != wire.AuthRefused || !strings.Contains(k.Message, c.message) {
				t.Errorf("answer %+v", k)
			}
			hubtest.RoundTrip(t, session, "after")
			hubtest.RoundTrip(t, h.Dial(), "another session")
			if now := theLink(t).Expires; !now.Equal(was) {
				t.Errorf("the expiry moved from %v to %v", was, now)
			}
			if k := a.renew(t, good); k.Error != "" || k.ExpiresIn < time.Hour.Milliseconds() || !slices.Equal(k.Accepted, []string{"echo"}) {
				t.Errorf("the good token: %+v", k)
			}
		})
	}
}

// hmacWithPublicKey signs with what everybody can read.
func hmacWithPublicKey(t *testing.T, k jose.JSONWebKey, payload string) string {
	t.Helper()
	pub, err := x509.MarshalPKIXPublicKey(k.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		t.Fatal(err)
	}
	return signWith(t, jose.SigningKey{Algorithm: jose.HS256, Key: pub}, b)
}

// TestRenewalWithoutKeys: the hub says that it cannot tell, and can later.
func TestRenewalWithoutKeys(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	secret := "{file.$DIR/secret}"
	h.Write("secret", hubtest.Token)
	p.down.Store(true)
	h.Load(h.Expand(caddyfile(h, p, "nowconnect", "agent_auth token {\n\t\t\tagent premise-1 "+secret+"\n\t\t}\n\t\t")))
	a := newRawAgent(t, h, hubtest.Token)
	session := h.Dial()
	hubtest.RoundTrip(t, session, "by the secret")
	if k := a.renew(t, p.token(t, "echo")); k.Error != wire.AuthUnavailable || k.RetryAfter == 0 {
		t.Errorf("answer %+v", k)
	}
	hubtest.RoundTrip(t, session, "still by the secret")
	p.down.Store(false)
	time.Sleep(1100 * time.Millisecond) // refresh_cooldown
	var k wire.AuthAck
	hubtest.Eventually(t, "the keys are there", func() bool {
		k = a.renew(t, p.token(t, "echo"))
		if k.Error != "" {
			time.Sleep(2 * time.Second) // what retry_after_ms asks for
		}
		return k.Error == ""
	})
	if k.ExpiresIn == 0 {
		t.Errorf("answer %+v", k)
	}
	hubtest.RoundTrip(t, session, "by the token")
}

// TestRenewalChangesScopes of a live link, and what is on it.
func TestRenewalChangesScopes(t *testing.T) {
	h, p := hubtest.New(t), newProvider(t)
	h.Load(caddyfile(h, p, "nowconnect", ""))
	a := newRawAgent(t, h, p.token(t, "echo"))
	session := h.Dial()
	hubtest.RoundTrip(t, session, "hello")
	if k := a.renew(t, p.token(t, "files")); !slices.Equal(k.Refused, []string{"echo"}) || k.Accepted != nil {
		t.Errorf("answer %+v", k)
	}
	if _, err := io.ReadFull(session, make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the session goes on: %v", err)
	}
	h.Refused()
	if k := a.renew(t, p.token(t, "files", "echo")); !slices.Equal(k.Accepted, []string{"echo"}) {
		t.Errorf("answer %+v", k)
	}
	hubtest.RoundTrip(t, h.Dial(), "again")
	if a.Ended() {
		t.Error("the link has ended")
	}
}
