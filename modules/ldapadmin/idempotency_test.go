package ldapadmin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func said(body string) *response { return &response{status: http.StatusOK, body: []byte(body)} }

var (
	requestA = sha256.Sum256([]byte("a"))
	requestB = sha256.Sum256([]byte("b"))
)

func TestKeeperRepeatsTheFirstAnswer(t *testing.T) {
	k := newKeeper(time.Minute)
	served := 0
	serve := func() *response { served++; return said(fmt.Sprint(served)) }
	key := keepKey{"here", "ada", "k"}
	for i := range 3 {
		r, replayed, err := k.do(t.Context(), key, requestA, serve)
		if err != nil || string(r.body) != "1" || replayed != (i > 0) {
			t.Errorf("request %d: %v %v %v", i, r, replayed, err)
		}
	}
	if _, _, err := k.do(t.Context(), key, requestB, serve); !errors.Is(err, errKeyReused) {
		t.Errorf("another request: %v", err)
	}
	if r, _, _ := k.do(t.Context(), keepKey{"here", "eve", "k"}, requestA, serve); string(r.body) != "2" {
		t.Errorf("another caller got %s", r.body)
	}
	now := time.Now().Add(2 * time.Minute)
	k.now = func() time.Time { return now }
	if r, _, _ := k.do(t.Context(), key, requestB, serve); string(r.body) != "3" {
		t.Errorf("after its time: %s", r.body)
	}
	if len(k.all) != 1 || k.order.Len() != 1 {
		t.Errorf("%d kept, %d in order", len(k.all), k.order.Len())
	}
}

func TestKeeperForgetsWhatIsNotWorthKeeping(t *testing.T) {
	k := newKeeper(time.Minute)
	for _, status := range []int{200, 207, 400, 403, 404, 409, 500, 503} {
		key := keepKey{"here", "ada", fmt.Sprint(status)}
		for range 2 {
			_, replayed, err := k.do(t.Context(), key, requestA, func() *response { return &response{status: status} })
			if err != nil {
				t.Error(err)
			}
			if replayed && status >= 300 {
				t.Errorf("%d was kept", status)
			}
		}
		if _, kept := k.all[key]; kept != (status < 300) {
			t.Errorf("%d kept: %v", status, kept)
		}
	}
}

func TestKeeperServesOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(time.Minute)
		var served, replays atomic.Int32
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				r, replayed, err := k.do(t.Context(), keepKey{"here", "ada", "k"}, requestA, func() *response {
					time.Sleep(time.Second)
					return said(fmt.Sprint(served.Add(1)))
				})
				if err != nil || string(r.body) != "1" {
					t.Errorf("%v %v", r, err)
				}
				if replayed {
					replays.Add(1)
				}
			})
		}
		wg.Wait()
		if served.Load() != 1 || replays.Load() != 19 {
			t.Errorf("served %d times, repeated %d times", served.Load(), replays.Load())
		}
	})
}

// Who waits for an answer that is not kept is served in its place, and who
// cannot wait any longer is told so.
func TestKeeperWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(time.Minute)
		key := keepKey{"here", "ada", "k"}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _, err := k.do(t.Context(), key, requestA, func() *response { time.Sleep(time.Minute); return nil })
			if err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := k.do(ctx, key, requestA, nil); !errors.Is(err, errKeyInUse) {
			t.Errorf("in use: %v", err)
		}
		if _, _, err := k.do(t.Context(), key, requestB, nil); !errors.Is(err, errKeyReused) {
			t.Errorf("another request meanwhile: %v", err)
		}
		r, replayed, err := k.do(t.Context(), key, requestA, func() *response { return said("mine") })
		if err != nil || replayed || string(r.body) != "mine" {
			t.Errorf("%v %v %v", r, replayed, err)
		}
		wg.Wait()
	})
}

func TestKeeperOutlivesAPanic(t *testing.T) {
	k := newKeeper(time.Minute)
	func() {
		defer func() { _ = recover() }()
		_, _, _ = k.do(t.Context(), keepKey{"here", "ada", "k"}, requestA, func() *response { panic("boo") })
	}()
	if r, _, err := k.do(t.Context(), keepKey{"here", "ada", "k"}, requestA, func() *response { return said("x") }); err != nil || r == nil {
		t.Errorf("%v %v", r, err)
	}
}

func TestKeeperIsBounded(t *testing.T) {
	k := newKeeper(time.Hour)
	for i := range maxKept + 10 {
		_, _, _ = k.do(t.Context(), keepKey{"here", "ada", fmt.Sprint(i)}, requestA, func() *response { return said("x") })
	}
	if len(k.all) != maxKept || k.order.Len() != maxKept || k.memory != maxKept {
		t.Errorf("%d kept, %d in order, %d bytes", len(k.all), k.order.Len(), k.memory)
	}
	if _, first := k.all[keepKey{"here", "ada", "0"}]; first {
		t.Error("the oldest is still there")
	}
	big := make([]byte, maxKeptMemory/16)
	for i := range 40 {
		_, _, _ = k.do(t.Context(), keepKey{"here", "eve", fmt.Sprint(i)}, requestA, func() *response { return &response{status: 200, body: big} })
	}
	if k.memory > maxKeptMemory {
		t.Errorf("%d bytes kept", k.memory)
	}
}

// Handlers that differ in what they serve or whom they let do what keep their
// answers apart, and so do the sites that one is part of.
func TestKeptAnswersStayWhereTheyWereGiven(t *testing.T) {
	take := func(edit func(*Handler)) *keeper {
		t.Helper()
		h := &Handler{Connector: "directory", PathPrefix: "/ldap", Groups: []*Group{{DN: "ou=groups", Subtree: true}}, MemberBases: []string{"ou=people"}}
		edit(h)
		if err := h.takeKeeper(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Cleanup() })
		return h.keeper
	}
	first := take(func(*Handler) {})
	if take(func(h *Handler) { h.Timeout, h.IdempotencyTTL, h.MaxRequests = 1, 1, 1 }) != first {
		t.Error("a reload that changes none of its rules loses the answers")
	}
	for what, edit := range map[string]func(*Handler){
		"connector": func(h *Handler) { h.Connector = "other" },
		"url":       func(h *Handler) { h.Connector, h.URL = "", "ldaps://directory" },
		"prefix":    func(h *Handler) { h.PathPrefix = "/api" },
		"account":   func(h *Handler) { h.BindDN = "cn=other" },
		"groups":    func(h *Handler) { h.Groups = []*Group{{DN: "ou=groups"}} },
		"members":   func(h *Handler) { h.MemberBases = nil; h.AnyMember = true },
		"callers":   func(h *Handler) { h.InsecureNoAuth = true },
	} {
		if take(edit) == first {
			t.Errorf("another %s, the same answers", what)
		}
	}
	a, b := httptest.NewRequest("PUT", "http://a.example.com/ldap", nil), httptest.NewRequest("PUT", "http://b.example.com/ldap", nil)
	if site(a) == site(b) {
		t.Error("two sites are one")
	}
}
