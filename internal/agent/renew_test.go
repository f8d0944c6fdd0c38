package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// offer is an AUTH frame as the hub got it.
type offer struct {
	link  *memLink
	token string
	at    time.Time
}

// renewHub is a memHub that takes new tokens; answer makes its AUTH_ACKs.
type renewHub struct {
	*memHub
	offers chan offer
}

func newRenewHub(t *testing.T, lifetime time.Duration, answer func(token string) *wire.AuthAck) *renewHub {
	t.Helper()
	h := &renewHub{newMemHub(t), make(chan offer, 1000)}
	h.welcome = func(_ wire.Hello, ack *wire.HelloAck) {
		ack.Capabilities = []string{wire.CapReauth, wire.CapHandover}
		ack.ExpiresIn = lifetime.Milliseconds()
	}
	h.auth = func(l *memLink, token string) {
		h.offers <- offer{l, token, time.Now()}
		if a := answer(token); a != nil {
			_ = l.link.AnswerAuth(*a)
		}
	}
	return h
}

// rewrite replaces the token as careful software does: a new file over the old.
func rewrite(t *testing.T, path, token string) {
	t.Helper()
	next := path + ".new"
	if err := os.WriteFile(next, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// renewing runs f in a bubble with an agent that is logged in over one link.
func renewing(t *testing.T, lifetime time.Duration, answer func(string) *wire.AuthAck, f func(t *testing.T, h *renewHub, run *running, l *memLink)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newRenewHub(t, lifetime, answer)
		run := runOne(t, h.memHub)
		l := h.nextLink(t)
		if !slices.Equal(l.hello.Capabilities, []string{"reauth", "handover"}) || l.hello.Handover {
			t.Errorf("hello %+v", l.hello)
		}
		f(t, h, run, l)
		run.stop()
		<-run.done
	})
}

func acceptFor(d time.Duration) func(string) *wire.AuthAck {
	return func(string) *wire.AuthAck {
		return &wire.AuthAck{ExpiresIn: d.Milliseconds(), Accepted: []string{"echo"}}
	}
}

// TestRotatedTokenGoesOverTheLiveLink: soon after each change, once, and never
// without one.
func TestRotatedTokenGoesOverTheLiveLink(t *testing.T) {
	for name, life := range map[string]time.Duration{"an hour": time.Hour, "a minute": time.Minute, "no expiry": 0} {
		t.Run(name, func(t *testing.T) {
			renewing(t, life, acceptFor(life), func(t *testing.T, h *renewHub, run *running, l *memLink) {
				session := l.open(t, "echo")
				patience := 10 * time.Second
				if life == time.Minute {
					patience = 4 * time.Second
				}
				for _, token := range []string{"second-token-1234567", "third-token-12345678", testToken} {
					time.Sleep(30 * time.Second)
					if len(h.offers) > 0 {
						t.Fatal("a token was offered that the hub has")
					}
					changed := time.Now()
					rewrite(t, run.cfg.TokenFile, token)
					o := <-h.offers
					if o.token != token || o.at.Sub(changed) > patience || o.link != l {
						t.Errorf("%q came after %v", o.token, o.at.Sub(changed))
					}
				}
				synctest.Wait()
				if st := run.links[0].current(); life > 0 && time.Until(st.Expires) < life-time.Second || life == 0 && !st.Expires.IsZero() {
					t.Errorf("the state says that the credential expires at %v", st.Expires)
				}
				if len(session) > 0 || len(h.links) > 0 {
					t.Error("the session or the link did not last")
				}
				if n := run.logs.FilterMessage("the hub accepts the renewed token").Len(); n != 3 {
					t.Errorf("told %d times", n)
				}
				noSecrets(t, run.logs, testToken, "second-token", "third-token")
			})
		})
	}
}

func noSecrets(t *testing.T, logs *observer.ObservedLogs, secrets ...string) {
	t.Helper()
	for _, e := range logs.All() {
		b, _ := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "m"}).EncodeEntry(e.Entry, e.Context)
		for _, s := range secrets {
			if strings.Contains(b.String(), s) {
				t.Errorf("the log has %s", b)
			}
		}
	}
}

// TestRefusedTokenIsTriedAgain: with growing pauses, told once, and the link
// goes on. A token that replaces it is tried at once.
func TestRefusedTokenIsTriedAgain(t *testing.T) {
	answer := func(token string) *wire.AuthAck {
		if strings.HasPrefix(token, "good") {
			return acceptFor(time.Hour)("")
		}
		return &wire.AuthAck{Error: "some-day", Message: "not\nyet"}
	}
	renewing(t, time.Hour, answer, func(t *testing.T, h *renewHub, run *running, l *memLink) {
		rewrite(t, run.cfg.TokenFile, "bad-token-1234567890")
		time.Sleep(10*time.Minute + time.Second) // the agent looks at full tens of seconds
		n := len(h.offers)
		if n < 9 || n > 20 {
			t.Errorf("offered %d times in 10 minutes", n)
		}
		last := time.Time{}
		for range n {
			o := <-h.offers
			if !last.IsZero() && o.at.Sub(last) < time.Second {
				t.Errorf("offered again after %v", o.at.Sub(last))
			}
			last = o.at
		}
		loud := run.logs.FilterMessageSnippet("the hub does not accept the renewed token").FilterLevelExact(zapcore.WarnLevel).All()
		if len(loud) != 1 || loud[0].ContextMap()["why"] != "some-day" || loud[0].ContextMap()["message"] != "not yet" {
			t.Errorf("told %v", loud)
		}
		changed := time.Now()
		rewrite(t, run.cfg.TokenFile, "good-token-123456789")
		if o := <-h.offers; o.at.Sub(changed) > 10*time.Second {
			t.Errorf("the next token came after %v", o.at.Sub(changed))
		}
		time.Sleep(time.Minute)
		if len(h.offers)+len(h.links) > 0 || l.link.Ended() {
			t.Error("it goes on about a token that was accepted, or with another link")
		}
	})
}

// TestHubsPauseIsKept: retry_after_ms beats our own idea.
func TestHubsPauseIsKept(t *testing.T) {
	answer := func(string) *wire.AuthAck { return &wire.AuthAck{Error: wire.AuthLimit, RetryAfter: 45000} }
	renewing(t, time.Hour, answer, func(t *testing.T, h *renewHub, run *running, _ *memLink) {
		rewrite(t, run.cfg.TokenFile, "another-token-123456")
		first := <-h.offers
		if d := (<-h.offers).at.Sub(first.at); d < 45*time.Second || d > 56*time.Second {
			t.Errorf("offered again after %v", d)
		}
	})
}

// TestUnansweredTokenIsNotSentTwice holds the agent to one AUTH at a time.
func TestUnansweredTokenIsNotSentTwice(t *testing.T) {
	renewing(t, 0, func(string) *wire.AuthAck { return nil }, func(t *testing.T, h *renewHub, run *running, l *memLink) {
		rewrite(t, run.cfg.TokenFile, "another-token-123456")
		<-h.offers
		rewrite(t, run.cfg.TokenFile, "a-third-token-123456")
		time.Sleep(10 * time.Minute)
		if len(h.offers) > 0 {
			t.Error("sent before the answer")
		}
		if n := run.logs.FilterMessage("the hub does not answer to the renewed token").Len(); n != 1 {
			t.Errorf("told %d times", n)
		}
		// The answer is to the second token; then the third is the newest.
		for range 5 {
			_ = l.link.AnswerAuth(wire.AuthAck{})
		}
		if o := <-h.offers; o.token != "a-third-token-123456" {
			t.Errorf("then %q", o.token)
		}
	})
}

// TestHubWithoutReauthGetsNoAuth: to it the frame would be an error.
func TestHubWithoutReauthGetsNoAuth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newRenewHub(t, 0, acceptFor(0))
		h.welcome = nil // a hub from before
		run := runOne(t, h.memHub)
		l := h.nextLink(t)
		rewrite(t, run.cfg.TokenFile, "another-token-123456")
		time.Sleep(time.Hour)
		if len(h.offers)+len(h.links) > 0 || l.link.Ended() {
			t.Error("it does not leave the link alone")
		}
		run.stop()
		<-run.done
	})
}

// TestLateRenewalIsTold once, while there is time to do something.
func TestLateRenewalIsTold(t *testing.T) {
	renewing(t, time.Hour, acceptFor(time.Hour), func(t *testing.T, h *renewHub, run *running, _ *memLink) {
		late := func() int { return run.logs.FilterMessageSnippet("the credential expires soon").Len() }
		time.Sleep(44 * time.Minute)
		if late() != 0 {
			t.Error("told too early")
		}
		if err := os.Remove(run.cfg.TokenFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if late() != 1 {
			t.Errorf("told %d times", late())
		}
		rewrite(t, run.cfg.TokenFile, "another-token-123456")
		<-h.offers
		time.Sleep(46 * time.Minute)
		if late() != 2 {
			t.Errorf("told %d times", late())
		}
	})
}

// TestRevokedLinkIsExplained: the agent says what happened and is back with what
// the file then holds.
func TestRevokedLinkIsExplained(t *testing.T) {
	renewing(t, time.Minute, acceptFor(time.Minute), func(t *testing.T, h *renewHub, run *running, l *memLink) {
		synctest.Wait()
		if !run.Ready() {
			t.Error("not ready")
		}
		time.Sleep(time.Minute)
		if run.Ready() {
			t.Error("ready with a credential that has expired: the hub places nothing here")
		}
		l.link.Close(wire.ReasonRevoked, "the credential expired")
		synctest.Wait()
		e := run.logs.FilterMessageSnippet("this agent's credential is no longer good").All()
		if len(e) != 1 || e[0].Level != zapcore.ErrorLevel || e[0].ContextMap()["reason"] != "revoked" {
			t.Errorf("logged %v", e)
		}
		rewrite(t, run.cfg.TokenFile, "another-token-123456")
		start := time.Now()
		if l := h.nextLink(t); l.token != "another-token-123456" || time.Since(start) > 3*time.Second {
			t.Errorf("back with %q after %v", l.token, time.Since(start))
		}
	})
}

// TestHandoverWithoutACertificateOfOurOwn is about a TLS proxy on the agent's
// machine that holds the certificate: the agent cannot see that there is a new
// one, and tries while there is time.
func TestHandoverWithoutACertificateOfOurOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newRenewHub(t, 0, acceptFor(0))
		h.welcome = func(_ wire.Hello, ack *wire.HelloAck) {
			ack.Capabilities, ack.ExpiresIn = []string{wire.CapHandover}, time.Hour.Milliseconds()
		}
		start := time.Now()
		run := runOne(t, h.memHub)
		old := h.nextLink(t)
		client, session := old.openClient(t, "echo")
		time.Sleep(39 * time.Minute)
		fresh := h.nextLink(t)
		if d := time.Since(start); d < 40*time.Minute || d > 41*time.Minute || !fresh.hello.Handover || fresh.hello.Link != old.hello.Link {
			t.Errorf("after %v: %+v", d, fresh.hello)
		}
		time.Sleep(10 * time.Minute)
		if len(session) > 0 || old.link.Ended() || !old.link.Draining() {
			t.Error("the old link does not go on for its session")
		}
		if !run.Ready() {
			t.Error("not ready")
		}
		client.Close()
		old.link.Sessions()[0].Reset(wire.ReasonIdle, "")
		<-session
		time.Sleep(5 * time.Second)
		if !old.link.Ended() {
			t.Error("the old link stays")
		}
		late, result := fresh.openClient(t, "echo")
		defer late.Close()
		run.stop()
		<-run.done
		<-result
		if n := run.logs.FilterMessage("link is lost").Len(); n != 0 {
			t.Error("a handover is told as a loss")
		}
	})
}

// TestStopDuringAHandover: sessions on links of before get their time too.
func TestStopDuringAHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newRenewHub(t, 0, acceptFor(0))
		h.welcome = func(_ wire.Hello, ack *wire.HelloAck) {
			ack.Capabilities, ack.ExpiresIn = []string{wire.CapHandover}, time.Hour.Milliseconds()
		}
		run := runOne(t, h.memHub)
		old := h.nextLink(t)
		client, session := old.openClient(t, "echo")
		defer client.Close()
		time.Sleep(39 * time.Minute)
		h.nextLink(t)
		start := time.Now()
		run.stop()
		<-run.done
		if d := time.Since(start); d < 29*time.Second || d > 35*time.Second {
			t.Errorf("it took %v", d)
		}
		if r := <-session; r.Reason != wire.ReasonShutdown {
			t.Errorf("the session ended with %v", r.Reason)
		}
	})
}

// TestHandoverThatTheHubAloneSaw: the new login came through and its answer did
// not. Then the hub lets go of the old link, and nobody else is to blame.
func TestHandoverThatTheHubAloneSaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newRenewHub(t, 0, acceptFor(0))
		h.welcome = func(_ wire.Hello, ack *wire.HelloAck) {
			ack.Capabilities, ack.ExpiresIn = []string{wire.CapHandover}, time.Hour.Milliseconds()
		}
		run := runOne(t, h.memHub)
		old := h.nextLink(t)
		h.down.Store(true)
		time.Sleep(45 * time.Minute)
		if n := run.logs.FilterMessageSnippet("no link can be made with the renewed certificate").Len(); n != 1 {
			t.Errorf("told %d times", n)
		}
		h.down.Store(false)
		old.link.Close(wire.ReasonSuperseded, "another link took its place")
		start := time.Now()
		h.nextLink(t)
		if d := time.Since(start); d > time.Second {
			t.Errorf("back after %v", d)
		}
		if n := run.logs.FilterMessageSnippet("another agent process").Len(); n != 0 {
			t.Error("blames another process")
		}
		run.stop()
		<-run.done
	})
}

func TestClientCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{
		URL: "https://hub.example", AgentID: "premise-1", Targets: map[string]Target{"echo": {"target", 1}}, Links: 1,
		ClientCert: filepath.Join(dir, "cert.pem"), ClientKey: filepath.Join(dir, "key.pem"),
	}
	a, err := New(cfg, nil)
	if err != nil {
		t.Fatal("a token file is asked for beside a certificate: ", err)
	}
	_, err = a.dialer.credential()
	var ce *ConnectError
	if !errors.As(err, &ce) || ce.Stage != stageCert || classify(err) != troubleRefused {
		t.Errorf("without files: %v", err)
	}
	if err := cfg.CheckCredential(); err == nil {
		t.Error("the check says nothing")
	}
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}
	if err := a.dialer.tlsError(alert); classify(err) != troubleRefused || err.spoiled() || !errors.Is(err, errCertRefused) {
		t.Errorf("a refused certificate: %v", err)
	}
}
