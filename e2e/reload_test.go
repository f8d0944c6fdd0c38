package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

// A second agent, for tests that need one the hub may take leave of.
const (
	agent2ID = "premise-2"
	token2   = "another-horse-battery-staple-9876543210"
)

// agent2Auth is the hub's line that lets the second agent in. The digest in
// place of the secret spares it a file.
func agent2Auth() string {
	d := sha256.Sum256([]byte(token2))
	return fmt.Sprintf("agent_auth token {\n\t\t\tagent %s sha256:%s\n\t\t}", agent2ID, hex.EncodeToString(d[:]))
}

// asAgent2 makes an agent the second one.
func (s *site) asAgent2(c *agent.Config) {
	c.AgentID, c.TokenFile = agent2ID, s.write("token2", token2+"\n")
}

// ldapRequest is an anonymous bind. Through an echoing target it comes back
// whole, so that the hub is between two messages.
const ldapRequest = "\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00"

// revokedNotice is what an LDAP client gets for its connection that is allowed
// no longer.
var revokedNotice = ldapNotice(50, "NowConnect: access revoked")

// transfer is a session through which random bytes go in circles, both ways at
// once, each compared with what was sent.
type transfer struct {
	conn   *net.TCPConn
	echoed atomic.Int64 // chunks
	stop   chan struct{}
	done   chan error // one value, when both directions have ended
}

const (
	chunkSize = 2 << 10
	underWay  = 2 // chunks
)

func startTransfer(c *net.TCPConn, seed byte) *transfer {
	x := &transfer{conn: c, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		room := make(chan struct{}, underWay)
		wrote := make(chan error, 1)
		go func() { wrote <- x.write(rand.NewChaCha8([32]byte{seed}), room) }()
		err := x.read(rand.NewChaCha8([32]byte{seed}), room)
		if err != nil {
			_ = c.Close() // the writer may wait for room
			close(room)
		}
		x.done <- errors.Join(err, <-wrote)
	}()
	return x
}

// write sends until it is told to stop, and then FIN.
func (x *transfer) write(source *rand.ChaCha8, room chan struct{}) (err error) {
	defer func() {
		if recover() != nil { // the reader has closed room, and tells why
			err = nil
		}
	}()
	chunk := make([]byte, chunkSize)
	for {
		select {
		case <-x.stop:
			return x.conn.CloseWrite()
		case room <- struct{}{}:
		}
		_, _ = source.Read(chunk) // never fails
		if _, err := x.conn.Write(chunk); err != nil {
			return err
		}
	}
}

// read compares what comes back until FIN.
func (x *transfer) read(source *rand.ChaCha8, room chan struct{}) error {
	got, want := make([]byte, chunkSize), make([]byte, chunkSize)
	for {
		if _, err := io.ReadFull(x.conn, got); errors.Is(err, io.EOF) {
			if len(room) > 0 {
				return fmt.Errorf("ends with %d chunks under way", len(room))
			}
			return nil
		} else if err != nil {
			return err
		}
		_, _ = source.Read(want)
		if !bytes.Equal(got, want) {
			return fmt.Errorf("chunk %d is not what was sent", x.echoed.Load())
		}
		x.echoed.Add(1)
		<-room
	}
}

// allMove waits until every transfer has moved on from here.
func allMove(t *testing.T, transfers []*transfer) {
	t.Helper()
	from := make([]int64, len(transfers))
	for i, x := range transfers {
		from[i] = x.echoed.Load()
	}
	for i, x := range transfers {
		// What was under way may have been echoed already: more is needed.
		for deadline := time.Now().Add(soon); x.echoed.Load() <= from[i]+underWay; time.Sleep(time.Millisecond) {
			select {
			case err := <-x.done:
				t.Fatalf("transfer %d broke: %v", i, err)
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("transfer %d does not move", i)
			}
		}
	}
}

// counts is the part of a scrape that may only grow.
func (s *site) counts() map[string]float64 {
	s.t.Helper()
	m := s.scrape()
	maps.DeleteFunc(m, func(series string, _ float64) bool {
		name, _, _ := strings.Cut(series, "{")
		grows := slices.ContainsFunc([]string{"_total", "_count", "_sum", "_bucket"}, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
		return !strings.HasPrefix(name, "nowconnect_") || !grows
	})
	return m
}

// checkGrowth fails the test for a count that went down or away.
func checkGrowth(t *testing.T, before, after map[string]float64) {
	t.Helper()
	if len(before) < 100 {
		t.Errorf("only %d counts to compare", len(before))
	}
	for series, v := range before {
		if now, ok := after[series]; !ok || now < v {
			t.Errorf("%s was %v and is %v (there: %v)", series, v, now, ok)
		}
	}
}

// linksSince tells since when each link is up, as the admin endpoint has it.
func (s *site) linksSince() map[string]time.Time {
	s.t.Helper()
	_, body := s.adminDo(http.MethodGet, "/nowconnect/agents", "", "")
	var a struct{ Agents []hub.AgentStatus }
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		s.t.Fatalf("%v in %s", err, body)
	}
	m := make(map[string]time.Time)
	for _, ag := range a.Agents {
		for _, l := range ag.Links {
			m[fmt.Sprintf("%s/%d", ag.ID, l.Link)] = l.Since
		}
	}
	return m
}

// brokenConfigs are configurations that do not load, each from a good one.
var brokenConfigs = []struct {
	name   string
	of     func(string) string
	answer string // part of the hub's
}{
	{"no Caddyfile", func(s string) string { return s + "\nhttp://localhost {\n" }, "syntax error"},
	{"unknown option", func(s string) string {
		return strings.Replace(s, "pdp allow_all", "pdp allow_all\n\t\tno_such_option 1", 1)
	}, "no_such_option"},
	{"no policy", func(s string) string { return strings.Replace(s, "pdp allow_all", "", 1) }, "pdp"},
	{"no agent_auth for an agent", func(s string) string { return strings.Replace(s, "agents "+agentID, "agents nobody", 1) }, "nobody"},
	{"fails to start", func(s string) string { return s + "http://203.0.113.1:1 {\n\tbind 203.0.113.1\n}\n" }, "203.0.113.1"},
}

// modules/nowconnect tests the same on single sessions, and failures after the
// configuration was in force; this is about many sessions at work.
func TestReloadWhileSessionsTransfer(t *testing.T) {
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{connectors: []connector{
		{name: "echo", target: echo},
		{name: "gone", target: echo},
		{name: "goneldap", target: echo, lines: []string{"protocol ldap"}},
	}})
	transfers := make([]*transfer, 100)
	for i := range transfers {
		transfers[i] = startTransfer(s.dial("echo"), byte(i))
	}
	gone, goneLDAP := s.dial("gone"), s.dial("goneldap")
	roundTrip(t, gone, "hello")
	roundTrip(t, goneLDAP, ldapRequest)
	allMove(t, transfers)
	links, counts := s.linksSince(), s.counts()
	still := func(what string) {
		t.Helper()
		allMove(t, transfers)
		now := s.counts()
		checkGrowth(t, counts, now)
		counts = now
		if again := s.linksSince(); len(links) != nearLinks || !maps.EqualFunc(links, again, time.Time.Equal) {
			t.Errorf("%s: links since %v, were since %v", what, again, links)
		}
	}

	for i := range 5 {
		s.reload(func(o *siteOptions) { o.connectors[0].lines = []string{fmt.Sprintf("max_sessions %d", 1000+i)} })
		still("after a reload")
	}
	_, config := s.adminDo(http.MethodGet, "/config/", "", "")
	for _, c := range brokenConfigs {
		status, answer := s.post(c.of(s.caddyfile()))
		if status == http.StatusOK || !strings.Contains(answer, c.answer) {
			t.Errorf("%s: %d %s", c.name, status, answer)
		}
		if _, now := s.adminDo(http.MethodGet, "/config/", "", ""); now != config {
			t.Errorf("%s: another configuration is in force: %s", c.name, now)
		}
		if !s.serves("echo") || !s.serves("gone") {
			t.Errorf("%s: new clients are not served", c.name)
		}
		still(c.name)
	}
	roundTrip(t, gone, "still there")

	s.reload(func(o *siteOptions) { o.connectors = o.connectors[:1] })
	if err := end(t, gone, soon); !testpeer.IsReset(err) {
		t.Errorf("the client of a removed connector sees %v, want a reset", err)
	}
	seesNotice(t, goneLDAP, revokedNotice)
	s.waitMetric(closed("gone", "revoked"), 1)
	s.waitMetric(closed("goneldap", "revoked"), 1)
	still("without two connectors")

	for _, x := range transfers {
		close(x.stop)
	}
	for i, x := range transfers {
		if err := <-x.done; err != nil {
			t.Errorf("transfer %d: %v", i, err)
		}
	}
	s.waitMetric(active("echo"), 0)
	m := s.scrape()
	for series, v := range m {
		want := float64(0)
		if series == closed("echo", "fin") {
			want = 100 + float64(len(brokenConfigs))
		}
		if strings.HasPrefix(series, `nowconnect_sessions_closed_total{connector="echo"`) && v != want {
			t.Errorf("%s is %v, want %v", series, v, want)
		}
	}
	var moved float64
	for _, x := range transfers {
		moved += float64(x.echoed.Load() * chunkSize)
	}
	for _, direction := range []string{"c2a", "a2c"} {
		series := fmt.Sprintf("nowconnect_tcp_bytes_total{connector=\"echo\",direction=%q}", direction)
		if want := moved + float64(len(brokenConfigs)); m[series] != want {
			t.Errorf("%s is %.0f, the clients have moved %.0f", series, m[series], want)
		}
	}
	t.Logf("%.0f MB through %d sessions", moved/1e6, len(transfers))
}

// refused checks that a new client is turned away by a reset. That may come so
// early that connecting fails with it.
func (s *site) refused(connector, from string) {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(s.t.Context(), "tcp", s.addr(connector))
	if err == nil {
		defer c.Close()
		err = end(s.t, c, soon)
	}
	if !testpeer.IsReset(err) {
		s.t.Errorf("a new client from %s sees %v, want a reset", from, err)
	}
}

// dialFrom connects from another loopback address.
func (s *site) dialFrom(ip, connector string) net.Conn {
	s.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.DialContext(s.t.Context(), "tcp", s.addr(connector))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func TestReloadNarrowsAllowCIDRs(t *testing.T) {
	echo := testpeer.Echo(t).Addr
	s := startSite(t, siteOptions{connectors: []connector{
		{name: "echo", target: echo, lines: []string{"allow_cidrs 127.0.0.0/8"}},
		{name: "other", target: echo},
	}})
	inside, outside, other := s.dialFrom("127.0.0.2", "echo"), s.dialFrom("127.0.0.3", "echo"), s.dialFrom("127.0.0.3", "other")
	all := []net.Conn{inside, outside, other}
	for _, c := range all {
		roundTrip(t, c, "hello")
	}
	s.reload(func(o *siteOptions) { o.connectors[0].lines = []string{"allow_cidrs 127.0.0.2/32 10.0.0.0/8"} })
	if err := end(t, outside, soon); !testpeer.IsReset(err) {
		t.Errorf("the client outside sees %v, want a reset", err)
	}
	s.waitMetric(closed("echo", "denied"), 1)
	for range 20 { // judging again goes on in the background
		roundTrip(t, inside, "still there")
		roundTrip(t, other, "still there")
	}
	s.refused("echo", "127.0.0.3")
	roundTrip(t, s.dialFrom("127.0.0.2", "echo"), "hello")
	s.waitMetric(closed("echo", "denied"), 2)
	s.waitMetric(active("echo"), 2)
}

// modules/nowconnect tests an agent whose token was exchanged; here it is taken
// away from one agent of two, and the other one serves on.
func TestReloadWithoutAnAgentsToken(t *testing.T) {
	s := startSite(t, siteOptions{
		hub: []string{agent2Auth()},
		connectors: []connector{
			{name: "echo", target: testpeer.Echo(t).Addr, lines: []string{"agents " + agentID + " " + agent2ID, "balance round_robin"}},
			{name: "ldap", target: testpeer.Echo(t).Addr, lines: []string{"agents " + agent2ID, "protocol ldap"}},
		},
	})
	second := s.agent(s.asAgent2)
	clients := s.sessions(20)
	ldap := s.dial("ldap")
	roundTrip(t, ldap, ldapRequest)
	if a, b := s.carriedBy(agentID, "echo"), s.carriedBy(agent2ID, "echo"); a != 10 || b != 10 {
		t.Fatalf("the agents carry %d and %d sessions, want 10 each", a, b)
	}
	s.reload(func(o *siteOptions) {
		o.hub = nil
		o.connectors[0].lines = []string{"agents " + agentID}
		o.connectors = o.connectors[:1]
	})
	seesNotice(t, ldap, revokedNotice)
	s.waitMetric(linksOf(agent2ID), 0)
	s.waitMetric(closed("echo", "revoked"), 10)
	if a, b := s.carriedBy(agentID, "echo"), s.carriedBy(agent2ID, "echo"); a != 10 || b != 0 {
		t.Errorf("the agents carry %d and %d sessions, want 10 and none", a, b)
	}
	survivors := 0
	for _, c := range clients {
		_ = c.SetDeadline(time.Now().Add(soon))
		if _, err := io.WriteString(c, "x"); err != nil {
			continue
		}
		switch _, err := io.ReadFull(c, make([]byte, 1)); {
		case err == nil:
			survivors++
		case !testpeer.IsReset(err):
			t.Errorf("a client of the removed agent sees %v, want a reset", err)
		}
	}
	if survivors != 10 {
		t.Errorf("%d sessions of the other agent go on, want 10", survivors)
	}
	s.eventually("the agent hears that it is not known", func() bool { return strings.Contains(second.logged(), "the hub cannot be used") })
	if second.Ready() {
		t.Error("the agent got back in")
	}
	for range 5 {
		if !s.serves("echo") {
			t.Error("a new client is not served")
		}
	}
}

// carriedBy counts an agent's live sessions of a connector.
func (s *site) carriedBy(agent, connector string) (n int) {
	s.t.Helper()
	for _, x := range s.liveSessions(connector) {
		if x.Agent == agent {
			n++
		}
	}
	return n
}

// liveSessions asks the admin endpoint for a connector's sessions.
func (s *site) liveSessions(connector string) []hub.SessionStatus {
	s.t.Helper()
	_, body := s.adminDo(http.MethodGet, "/nowconnect/sessions?connector="+connector, "", "")
	var list []hub.SessionStatus
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		s.t.Fatalf("%v in %s", err, body)
	}
	return list
}
