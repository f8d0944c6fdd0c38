package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// The provider announces the next key, signs with it, and takes the old one
// out: nobody is refused on the way, and the old key ends.
func TestRotationWithOverlap(t *testing.T) {
	old, next := newEC("old"), newEC("next")
	p := newIDP(t, old)
	m := config(p)
	provision(t, m)
	login := func(k jose.JSONWebKey) error {
		_, err := m.Authenticate(request(sign(t, k, jose.ES256, good(nil))))
		return err
	}
	if err := login(old); err != nil {
		t.Fatal(err)
	}
	asked := p.asked.Load()
	if err := login(old); err != nil || p.asked.Load() != asked {
		t.Errorf("a known key: %v, %d fetches", err, p.asked.Load()-asked)
	}
	p.publish(old, next)
	if err := login(next); err != nil { // unknown until now
		t.Error(err)
	}
	if err := login(old); err != nil {
		t.Error(err)
	}
	live, err := m.Authenticate(request(sign(t, old, jose.ES256, good(nil))))
	if err != nil {
		t.Fatal(err)
	}
	p.publish(next)
	if login(newEC("stranger's")) == nil { // makes the keys be fetched
		t.Error("a stranger's key was let in")
	}
	if err := login(old); !errors.Is(err, nowconnect.ErrBadCredential) {
		t.Errorf("the key that was taken out: %v", err)
	}
	if m.StillValid(live) {
		t.Error("a live link whose key was taken out is valid")
	}
	if err := login(next); err != nil {
		t.Error(err)
	}
	p.publish()
	if login(old) == nil || login(next) == nil {
		t.Error("the provider has withdrawn every key")
	}
}

// Keys are fetched by themselves too.
func TestBackgroundRefresh(t *testing.T) {
	old, next := newEC("old"), newEC("next")
	p := newIDP(t, old)
	m := config(p)
	m.RefreshInterval, m.RefreshCooldown = caddy.Duration(20*time.Millisecond), caddy.Duration(time.Hour)
	provision(t, m)
	p.publish(next)
	eventually(t, "the old key is gone", func() bool { return !m.keys.has(thumbOf(t, old)) && m.keys.has(thumbOf(t, next)) })
}

// Whoever names unknown keys makes the hub fetch once per cooldown, and holds
// up nobody who has a good token.
func TestUnknownKeysAreBounded(t *testing.T) {
	k := newEC("k")
	p := newIDP(t, k)
	m := config(p)
	m.RefreshCooldown = caddy.Duration(300 * time.Millisecond)
	provision(t, m)
	token := sign(t, newEC("unknown"), jose.ES256, good(nil))
	asked, begin := p.asked.Load(), time.Now()
	for time.Since(begin) < time.Second {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := m.Authenticate(request(token)); err == nil {
					t.Error("let in")
				}
			})
		}
		wg.Wait()
	}
	most := int32(time.Since(begin)/(300*time.Millisecond)) + 1
	if n := p.asked.Load() - asked; n < 1 || n > most {
		t.Errorf("%d fetches, 1 to %d expected", n, most)
	}
	// A provider that does not answer holds the strangers, not the others.
	hold := make(chan struct{})
	p.say(func(http.ResponseWriter, *http.Request) { <-hold })
	eventually(t, "the cooldown is over", m.keys.rested)
	var wg sync.WaitGroup
	for range maxWaiters {
		wg.Go(func() { m.Authenticate(request(token)) })
	}
	eventually(t, "strangers wait", func() bool { return len(m.keys.waiters) == maxWaiters })
	begin = time.Now()
	if _, err := m.Authenticate(request(token)); err == nil || time.Since(begin) > 2*time.Second {
		t.Errorf("one stranger more waited %v: %v", time.Since(begin), err)
	}
	if _, err := m.Authenticate(request(sign(t, k, jose.ES256, good(nil)))); err != nil || time.Since(begin) > 2*time.Second {
		t.Errorf("a good token waited %v: %v", time.Since(begin), err)
	}
	close(hold)
	wg.Wait()
}

func TestOfflineAtStart(t *testing.T) {
	k := newEC("k")
	p := newIDP(t, k)
	p.stop()
	src := source{url: p.url(), refresh: time.Hour, cooldown: time.Hour, timeout: 5 * time.Second, maxStale: 24 * time.Hour}
	_, logs := watch(t, src)
	if n := logs.FilterMessageSnippet("there are no keys").Len(); n != 1 {
		t.Errorf("%d lines say that there are no keys", n)
	}
	m := config(p)
	m.RefreshCooldown = caddy.Duration(time.Hour) // only by itself
	begin := time.Now()
	provision(t, m)
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("loading took %v", d)
	}
	token := sign(t, k, jose.ES256, good(nil))
	if _, err := m.Authenticate(request(token)); !errors.Is(err, errNoKeys) {
		t.Errorf("without keys: %v", err)
	}
	p.start(t)
	eventually(t, "the provider is found", func() bool {
		_, err := m.Authenticate(request(token))
		return err == nil
	})
	eventually(t, "the log says so", func() bool { return logs.FilterMessage("keys for agents' tokens").Len() == 1 })
}

func TestOfflineLater(t *testing.T) {
	k := newEC("k")
	p := newIDP(t, k)
	src := source{url: p.url(), refresh: 50 * time.Millisecond, cooldown: time.Nanosecond, timeout: 5 * time.Second, maxStale: 4 * time.Second}
	s, logs := watch(t, src)
	p.stop()
	eventually(t, "the log says so", func() bool { return logs.FilterMessageSnippet("using those that are there").Len() == 1 })
	if !s.has(thumbOf(t, k)) {
		t.Error("the key is gone at once")
	}
	eventually(t, "the keys are too old", func() bool { return !s.has(thumbOf(t, k)) })
	s.mu.Lock()
	age := time.Since(s.fetched)
	s.mu.Unlock()
	if age < src.maxStale {
		t.Errorf("they were %v old", age)
	}
	eventually(t, "the log says so", func() bool { return logs.FilterMessageSnippet("older than max_stale").Len() == 1 })
	if n := logs.FilterMessageSnippet("using those that are there").Len(); n != 1 {
		t.Errorf("told %d times", n)
	}
	p.start(t)
	if !s.renew(t.Context()) || !s.has(thumbOf(t, k)) {
		t.Error("the keys do not come back")
	}
	if logs.FilterMessageSnippet("can be fetched again").Len() != 1 {
		t.Error("the log does not say that it is over")
	}
}

// What a provider, or whoever answers in its place, may say without harm.
func TestBadAnswersKeepTheKeys(t *testing.T) {
	k := newEC("k")
	p := newIDP(t, k)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	src := source{url: p.url(), refresh: time.Hour, cooldown: time.Nanosecond, timeout: 500 * time.Millisecond, maxStale: time.Hour}
	s, _ := watch(t, src)
	many := strings.Repeat(`{"kty":"oct","k":"AA"},`, maxKeys) + `{"kty":"oct","k":"AA"}`
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "redirects are not followed"},
		"permanent redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusPermanentRedirect)
		}, "redirects are not followed"},
		"500":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); io.WriteString(w, `{"keys":[]}`) }, "500"},
		"404":       {http.NotFound, "404"},
		"no body":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "204"},
		"not JSON":  {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, "not a JWK set"},
		"no keys":   {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"error":"x"}`) }, "not a JWK set"},
		"a list":    {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `[]`) }, "not a JWK set"},
		"more keys": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"keys":[%s]}`, many) }, "more than 64"},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			for range 1000 { // until the reader has gone
				if _, err := io.WriteString(w, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
			t.Error("64 MB were taken")
		}, "more than 524288 bytes"},
		"huge headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}, "header"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, ""},
		"slow": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"keys":[`)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, " "); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, ""},
		"cut": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ""},
	} {
		p.say(c.answer)
		begin := time.Now()
		_, _, err := src.keys(t.Context(), s.client)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), p.url()) {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
		if !s.renew(t.Context()) || !s.has(thumbOf(t, k)) {
			t.Errorf("%s: the key is gone", name)
		}
	}
}

// A reload with the same source asks nobody; with none left, fetching ends.
func TestKeySetOutlivesAReload(t *testing.T) {
	k := newEC("k")
	p := newIDP(t, k)
	first, second := config(p), config(p)
	endFirst := provision(t, first)
	p.stop()
	endSecond := provision(t, second)
	endFirst()
	if _, err := second.Authenticate(request(sign(t, k, jose.ES256, good(nil)))); err != nil {
		t.Errorf("under the next configuration: %v", err)
	}
	if p.asked.Load() != 1 {
		t.Errorf("%d fetches", p.asked.Load())
	}
	endSecond()
	select {
	case <-second.keys.stopped:
	default:
		t.Error("fetching goes on")
	}
	if second.keys.renew(t.Context()) {
		t.Error("a stopped key set was renewed")
	}
}

func TestKeysFromAFile(t *testing.T) {
	old, next := newEC("old"), newEC("next")
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(keys ...jose.JSONWebKey) {
		t.Helper()
		set := jose.JSONWebKeySet{}
		for _, k := range keys {
			set.Keys = append(set.Keys, k.Public())
		}
		if err := os.WriteFile(file, must(json.Marshal(set)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	m := &JWT{
		JWKSFile: file, Issuer: issuer, Audience: []string{audience},
		RefreshInterval: caddy.Duration(time.Hour), RefreshCooldown: 1,
	}
	provision(t, m)
	if _, err := m.Authenticate(request(sign(t, old, jose.ES256, good(nil)))); err != nil {
		t.Error(err)
	}
	write(next)
	if _, err := m.Authenticate(request(sign(t, next, jose.ES256, good(nil)))); err != nil {
		t.Error(err)
	}
	if _, err := m.Authenticate(request(sign(t, old, jose.ES256, good(nil)))); err == nil {
		t.Error("the key that is not in the file any more was let in")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	m.keys.renew(t.Context())
	if _, err := m.Authenticate(request(sign(t, next, jose.ES256, good(nil)))); err != nil {
		t.Errorf("while the file is gone: %v", err)
	}
}
