package ldapadmin_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/groupapi"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// A request in flight at a reload is answered, and what it used is closed
// afterwards: the leak check of this package looks.
func TestRequestsInFlightOutliveAReload(t *testing.T) {
	w := start(t, options{})
	team := w.group("team")
	w.do(request{method: "GET", path: path(team)}).answer(t, 200)
	w.d.Process.Freeze()
	const requests = 8
	replies := make([]reply, requests)
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			var err error
			if replies[i], err = w.try(request{method: "PUT", path: path(team, w.d.UserDN(4+i))}); err != nil {
				t.Error(err)
			}
		})
	}
	inFlight := func() (n float64) {
		_, body, _ := w.Get("/metrics")
		for line := range strings.Lines(body) {
			if name, v, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && strings.HasPrefix(name, "caddy_http_requests_in_flight{") {
				f, _ := strconv.ParseFloat(v, 64)
				n = max(n, f)
			}
		}
		return n
	}
	hubtest.Eventually(t, "the requests are in flight", func() bool { return inFlight() >= requests })
	w.reload(func(o *options) { o.lines = append(o.lines, "timeout 30s") })
	w.d.Process.Thaw()
	wg.Wait()
	for i, r := range replies {
		if got := outcomes(r.answer(t, 200)); got[0] != "added true" {
			t.Errorf("request %d: %q", i, got)
		}
	}
	if got := len(w.members(team)); got != 3+requests {
		t.Errorf("%d members", got)
	}
	w.do(request{method: "PUT", path: path(team, w.d.UserDN(15))}).answer(t, 200)
}

// When the connector leaves the configuration, so do our sessions.
func TestSessionsEndWithTheHandler(t *testing.T) {
	w := start(t, options{})
	w.do(request{method: "GET", path: path(w.group("team"))}).answer(t, 200)
	if n := w.Metric(`nowconnect_tcp_active_connections{connector="directory"}`); n < 1 {
		t.Errorf("%v sessions while it is used", n)
	}
	w.reload(func(o *options) { o.to = []string{"connector ldaps", "tls ldaps", "server_name localhost"} })
	hubtest.Eventually(t, "the sessions are gone", func() bool {
		return w.Metric(`nowconnect_tcp_active_connections{connector="directory"}`) == 0
	})
	w.do(request{method: "GET", path: path(w.group("team"))}).answer(t, 200)
	if n := w.Metric(`nowconnect_tcp_active_connections{connector="ldaps"}`); n < 1 {
		t.Errorf("%v sessions on the other connector", n)
	}
}

// A drain of the hub does not wait for the connections that are kept idle, and
// after it they are made anew.
func TestIdleSessionsEndWithADrain(t *testing.T) {
	w := start(t, options{})
	get := request{method: "GET", path: path(w.group("team"))}
	w.do(get).answer(t, 200)
	if n := w.Metric(`nowconnect_tcp_active_connections{connector="directory"}`); n < 1 {
		t.Fatalf("%v sessions are kept", n)
	}
	status, body := w.AdminDo("POST", "/nowconnect/drain", "application/json", `{"timeout": "30s"}`)
	took, err := time.ParseDuration(hubtest.JSON[struct{ Took string }](t, body).Took)
	if status != 200 || strings.Contains(body, `"cut": [
`) || err != nil || took > 5*time.Second {
		t.Errorf("drain: %d %s", status, body)
	}
	w.do(get).problem(t, 503, "unavailable")
	if status, body := w.AdminDo("POST", "/nowconnect/undrain", "application/json", "{}"); status != 200 {
		t.Fatalf("undrain: %d %s", status, body)
	}
	hubtest.Eventually(t, "the group can be read again", func() bool {
		got, err := w.try(get)
		return err == nil && got.status == 200
	})
}

// The ways to the directory.
func TestWaysToTheDirectory(t *testing.T) {
	w := start(t, options{})
	read := request{method: "GET", path: path(w.group("team"))}
	for _, to := range [][]string{
		{"connector directory", "insecure_plaintext"},
		{"connector ldaps", "tls ldaps", "server_name localhost"},
		{"connector ldaps", "tls ldaps", "tls_insecure_skip_verify"},
		{"url " + w.d.LDAPSURL},
		{"url " + w.d.URL},
		{"url ldap://localhost:" + w.d.Addr[strings.LastIndexByte(w.d.Addr, ':')+1:]},
	} {
		w.reload(func(o *options) { o.to = to })
		w.do(read).answer(t, 200)
	}
	for _, tt := range []struct {
		to   []string
		code string
	}{
		{[]string{"connector ldaps", "tls ldaps", "server_name other.example"}, "directory"},
		{[]string{"connector directory", "tls ldaps", "server_name localhost"}, "unavailable"},
	} {
		w.reload(func(o *options) { o.to = tt.to; o.lines = []string{"timeout 20s"} })
		r := w.do(read)
		if r.status != 502 && r.status != 503 {
			t.Errorf("%q: %d %s", tt.to, r.status, r.body)
		}
	}
}

// What does without a protection is in the log when it is loaded, and in the
// metrics for as long as a configuration in force has it.
func TestInsecureOptionsAreLoud(t *testing.T) {
	w := start(t, options{})
	series := func(option string) string {
		return fmt.Sprintf("nowconnect_insecure{module=\"http.handlers.ldap_admin\",option=%q} ", option)
	}
	all := []string{"insecure_plaintext", "tls_insecure_skip_verify", "insecure_no_auth"}
	for _, tt := range []struct{ lines, on []string }{
		{nil, nil},
		{[]string{"insecure_plaintext", "insecure_no_auth"}, []string{"insecure_plaintext", "insecure_no_auth"}},
		{[]string{"insecure_no_auth", "tls ldaps", "tls_insecure_skip_verify"}, []string{"insecure_no_auth", "tls_insecure_skip_verify"}},
		{nil, nil},
	} {
		before := len(w.Logged())
		w.reload(func(o *options) {
			o.to, o.lines = nil, nil
			if tt.lines != nil {
				o.to, o.lines = []string{"connector ldaps"}, tt.lines
			}
		})
		for _, option := range all {
			want := slices.Contains(tt.on, option)
			// The configuration from before is taken down after the new one is in force.
			hubtest.Eventually(t, fmt.Sprintf("%s in the metrics: %v", option, want), func() bool {
				_, body, _ := w.Get("/metrics")
				return strings.Contains(body, series(option)+"1\n") == want && (want || !strings.Contains(body, series(option)))
			})
			if got := strings.Contains(w.Logged()[before:], "INSECURE: "+option); got != want {
				t.Errorf("%q: INSECURE about %s in the log: %v", tt.lines, option, got)
			}
		}
	}
}

// What cannot work, or is not safe, does not load, and says why.
func TestMistakes(t *testing.T) {
	h := hubtest.New(t)
	h.Write("secret", "x\n")
	const rest = "groups_below dc=x\nmembers_below dc=x\n"
	for _, tt := range []struct{ lines, want string }{
		{rest, "neither connector nor url"},
		{"connector echo\nurl ldap://127.0.0.1\n" + rest, "connector and url"},
		{"connector echo\n" + rest, "no tls: write tls ldaps or tls starttls, or insecure_plaintext"},
		{"connector echo\ntls ldaps\n" + rest, "no server_name"},
		{"connector echo\ntls ssl\nserver_name x\n" + rest, `tls "ssl" is neither ldaps nor starttls`},
		{"connector echo\ntls ldaps\ninsecure_plaintext\nserver_name x\n" + rest, "tls and insecure_plaintext contradict"},
		{"url ldap://127.0.0.1\ntls starttls\n" + rest, "tls goes with a connector"},
		{"connector nowhere\ninsecure_plaintext\n" + rest, `connector "nowhere" is not configured`},
		{"connector closed\ninsecure_plaintext\n" + rest, "allow_cidrs leave out 127.0.0.1"},
		{"url gopher://x\n" + rest, "url: "},
		{"connector echo\ninsecure_plaintext\nmembers_below dc=x", "no groups"},
		{"connector echo\ninsecure_plaintext\ngroups_below dc=x", "no member_bases"},
		{"connector echo\ninsecure_plaintext\nany_member\n" + rest, "member_bases and any_member"},
		{"connector echo\ninsecure_plaintext\ngroups_below nonsense\nmembers_below dc=x", "nonsense"},
		{"connector echo\ninsecure_plaintext\ngroups_below dc=x\nmembers_below nonsense", "nonsense"},
		{"connector echo\ninsecure_plaintext\nlookup sometimes\n" + rest, `lookup "sometimes"`},
		{"connector echo\ninsecure_plaintext\nverify sometimes\n" + rest, `verify "sometimes"`},
		{"connector echo\ninsecure_plaintext\nbind_dn cn=x\n" + rest, "bind_dn without bind_password"},
		{"connector echo\ninsecure_plaintext\nbind_password {file.$DIR/secret}\n" + rest, "bind_password without bind_dn"},
		{"connector echo\ninsecure_plaintext\nbind_dn cn=x\nbind_password literal\n" + rest, "bind_password is not a placeholder"},
		{"connector echo\ninsecure_plaintext\nbind_dn cn=x\nbind_password {env.NOT_SET_ANYWHERE}\n" + rest, "bind_password: "},
		{"connector echo\ninsecure_plaintext\nbind_dn cn=x\nbind_password {file.$DIR/nothing}\n" + rest, "bind_password: "},
		{"connector echo\ninsecure_plaintext\npath_prefix api\n" + rest, `path_prefix "api"`},
		{"connector echo\ninsecure_plaintext\npath_prefix /api/\n" + rest, `path_prefix "/api/"`},
		{"connector echo\ninsecure_plaintext\nmin_connections 9\nmax_connections 2\n" + rest, "min_connections 9 is above"},
		{"connector echo\ninsecure_plaintext\nmax_connections 1000\n" + rest, "max_connections is 1000"},
		{"connector echo\ntls ldaps\nserver_name x\ntls_ca $DIR/secret\n" + rest, "tls_ca: no certificate"},
		{"connector echo\ntls ldaps\nserver_name x\ntls_ca $DIR/nothing\n" + rest, "tls_ca: "},
	} {
		err := h.Validate(h.Caddyfile(hubtest.Basic+"\nconnector closed {\nagents premise-1\nallow_cidrs 10.0.0.0/8\n}", "",
			"http://$HTTP {\nbind 127.0.0.1\nldap_admin {\ninsecure_no_auth\n"+tt.lines+"\n}\n}"))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.lines, err, tt.want)
		}
	}
}

// Writes are counted by what became of them, requests by their code.
func TestMetrics(t *testing.T) {
	w := start(t, options{})
	u, team := w.d.UserDN, w.group("team")
	series := func(name, action, label, value string) float64 {
		labels := []string{fmt.Sprintf("action=%q", action), `connector="directory"`, fmt.Sprintf("%s=%q", label, value)}
		slices.Sort(labels)
		return w.Metric("nowconnect_ldap_membership_" + name + "{" + strings.Join(labels, ",") + "}")
	}
	if n := series("values_total", "remove", "outcome", "not_member"); n != 0 {
		t.Errorf("it begins at %v", n)
	}
	w.do(request{method: "PUT", path: path(team, u(4))}).answer(t, 200)
	w.do(request{method: "PUT", path: path(team, u(4))}).answer(t, 200)
	w.do(request{method: "DELETE", path: path(team, u(9))}).answer(t, 200)
	w.do(request{method: "PUT", path: path("cn=locked,"+w.d.PeopleDN, u(4))}).problem(t, 403, "denied")
	w.do(request{method: "PUT", path: path(team, u(5)) + "?dry_run=true"}).answer(t, 200)
	for _, tt := range []struct {
		name, action, label, value string
		want                       float64
	}{
		{"values_total", "add", "outcome", "added", 1},
		{"values_total", "add", "outcome", "already_member", 1},
		{"values_total", "remove", "outcome", "not_member", 1},
		{"batch_total", "add", "outcome", "ok", 1},
		{"errors_total", "add", "code", "20", 1},
		{"errors_total", "remove", "code", "16", 1},
		{"errors_total", "add", "code", "50", 1},
		{"batch_total", "add", "outcome", "refused", 1},
	} {
		if got := series(tt.name, tt.action, tt.label, tt.value); got != tt.want {
			t.Errorf("%s %s %s=%s is %v, want %v", tt.name, tt.action, tt.label, tt.value, got, tt.want)
		}
	}
	if n := w.Metric(`nowconnect_ldap_membership_batch_seconds_count{action="add",connector="directory"}`); n != 3 {
		t.Errorf("%v modify requests timed", n)
	}
	// A no-op's line has what the directory said.
	lines := w.logged("group member not_member")
	if len(lines) != 1 || lines[0]["ldap_code"] != 16.0 || lines[0]["ldap_name"] != "noSuchAttribute" || lines[0]["level"] != "info" {
		t.Errorf("%v", lines)
	}
}

// Those who ask for the same at the same time are told the truth: one of them
// made the change.
func TestOneOfManyChanges(t *testing.T) {
	w := start(t, options{})
	team, u := w.group("team"), w.d.UserDN(10)
	for _, method := range []string{"PUT", "DELETE"} {
		var mu sync.Mutex
		var got []string
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				r, err := w.try(request{method: method, path: path(team, u)})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, outcomes(hubtest.JSON[groupapi.Answer](t, r.body))...)
			})
		}
		wg.Wait()
		changed := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.HasSuffix(s, " true") })
		if len(got) != 20 || len(changed) != 1 {
			t.Errorf("%s: %q", method, got)
		}
	}
}
