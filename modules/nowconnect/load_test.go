package nowconnect_test

import (
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

const auth = `"agent_auth": [{"method": "token", "agents": {"premise-1": ["{file.$DIR/token}"]}}]`
const allow = `"pdp": {"engine": "allow_all"}`

// Messages that whoever wrote the configuration gets to read.
func TestLoadErrors(t *testing.T) {
	h := hubtest.New(t)
	h.Write("short", "too-short\n")
	h.Write("again", hubtest.Token+"\n")
	h.Write("space", "a secret with spaces in it\n")
	h.Write("blank", "  \n")
	t.Setenv("NC_TEST_UNSET", "")
	for name, c := range map[string]struct{ app, want string }{
		"no agent_auth": {
			allow,
			"no agent_auth: nobody can tell who an agent is; configure one, such as `agent_auth token`",
		},
		"no pdp": {
			auth + `, "connectors": {"addomain": {"agents": ["premise-1"]}}`,
			"connector \"addomain\": no pdp: nobody decides who may connect; configure one, or write `pdp allow_all` to let everybody in",
		},
		"no pdp and no connector": {
			auth,
			"no pdp: nobody decides who may connect; configure one, or write `pdp allow_all` to let everybody in",
		},
		"one connector with its own pdp": {
			auth + `, "connectors": {"a": {"agents": ["premise-1"], "pdp": {"engine": "allow_all"}}, "b": {"agents": ["premise-1"]}}`,
			`connector "b": no pdp`,
		},
		"unknown pdp":        {auth + `, "pdp": {"engine": "nobody"}`, "pdp: position 0: loading module 'nobody': unknown module: nowconnect.pdp.nobody"},
		"unknown second pdp": {auth + `, "pdp": [{"engine": "allow_all"}, {"engine": "nobody"}]`, "pdp: position 1: loading module 'nobody': unknown module: nowconnect.pdp.nobody"},
		"empty pdp list":     {auth + `, "pdp": []`, "no pdp: nobody decides who may connect"},
		"sample":             {auth + "," + allow + `, "audit": {"sample_allows": 1.1}`, "audit: sample_allows is not from 0 to 1"},
		"unknown agent_auth": {allow + `, "agent_auth": [{"method": "trust"}]`, "unknown module: nowconnect.agent_auth.trust"},
		"unknown field":      {auth + "," + allow + `, "max_session": 5`, `unknown field "max_session"`},
		"unknown connector field": {
			auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "balanced": "first"}}`,
			`unknown field "balanced"`,
		},
		"null connector": {auth + "," + allow + `, "connectors": {"c": null}`, `connector "c": no settings`},
		"no agents":      {auth + "," + allow + `, "connectors": {"c": {}}`, `connector "c": no agents: name those that may serve it`},
		"agent twice":    {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1", "premise-1"]}}`, `connector "c": agents: "premise-1" twice`},
		"agent unknown": {
			auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1", "premise-9"]}}`,
			`connector "c": agent "premise-9" is not known to any agent_auth, so it can never log in`,
		},
		"connector name": {auth + "," + allow + `, "connectors": {"a b": {"agents": ["premise-1"]}}`, `connector "a b": name "a b" has a character other than`},
		"agent name":     {auth + "," + allow + `, "connectors": {"c": {"agents": [".x"]}}`, `connector "c": agents: name ".x" starts with '.'`},
		"balance":        {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "balance": "random"}}`, `balance "random" is not one of`},
		"protocol":       {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "protocol": "http"}}`, `protocol "http" is not one of`},
		"cidr":           {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "allow_cidrs": ["10.0.0.1/8"]}}`, `allow_cidrs: 10.0.0.1/8 has bits set right of the prefix: the network is 10.0.0.0/8`},
		"cidr mapped":    {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "allow_cidrs": ["::ffff:10.0.0.0/104"]}}`, `write it as IPv4`},
		"cidr zone":      {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "allow_cidrs": ["fe80::1%eth0"]}}`, `has a zone`},
		"cidr twice":     {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "allow_cidrs": ["10.0.0.1", "10.0.0.1/32"]}}`, `10.0.0.1/32 twice`},
		"queue":          {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "queue_depth_per_cid": 4097}}`, `queue_depth_per_cid is 4097, not 1 to 4096`},
		"negative":       {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "max_sessions": -1}}`, `max_sessions is -1`},
		"idle":           {auth + "," + allow + `, "connectors": {"c": {"agents": ["premise-1"], "idle_timeout": -1}}`, `idle_timeout is negative`},
		"links":          {auth + "," + allow + `, "max_links_per_agent": 17`, "max_links_per_agent is 17, not 1 to 16"},
		"memory":         {auth + "," + allow + `, "agent_memory": 1000`, "agent_memory is 1000 bytes, at least 1048576"},
		"drain":          {auth + "," + allow + `, "drain_timeout": -1`, "drain_timeout is negative"},
		"hub id":         {auth + "," + allow + `, "hub_id": "-x"`, `hub_id: name "-x" starts with '-'`},
		"metrics field":  {auth + "," + allow + `, "metrics": {"nativ": true}`, `metrics: decoding module config: nowconnect.metrics: `},

		"token without agents":      {allow + `, "agent_auth": [{"method": "token"}]`, "no agents: name at least one and its secret"},
		"token agent name":          {allow + `, "agent_auth": [{"method": "token", "agents": {"a/b": ["{file.$DIR/token}"]}}]`, `name "a/b" has a character other than`},
		"token without secret":      {allow + `, "agent_auth": [{"method": "token", "agents": {"a": []}}]`, `agent "a": no secret`},
		"token empty":               {allow + `, "agent_auth": [{"method": "token", "agents": {"a": [""]}}]`, `agent "a": secret is empty; make one with: openssl rand -hex 32`},
		"token blank file":          {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{file.$DIR/blank}"]}}]`, `agent "a": secret is empty`},
		"token missing file":        {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{file.$DIR/nowhere}"]}}]`, `agent "a": secret: evaluated placeholder {file.$DIR/nowhere} is empty`},
		"token unset variable":      {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{env.NC_TEST_UNSET}"]}}]`, `agent "a": secret: evaluated placeholder {env.NC_TEST_UNSET} is empty`},
		"token unknown placeholder": {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{vault.secret}"]}}]`, `agent "a": secret: unrecognized placeholder {vault.secret}`},
		"token short":               {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{file.$DIR/short}"]}}]`, `agent "a": secret has 9 characters, at least 16; make one with: openssl rand -hex 32`},
		"token with spaces":         {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{file.$DIR/space}"]}}]`, `agent "a": secret has a character that cannot stand in an HTTP header`},
		"token short hash":          {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["sha256:abcd"]}}]`, `agent "a": secret: sha256: is not followed by 64 hex digits`},
		"token long hash":           {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["sha256:` + strings.Repeat("ab", 33) + `"]}}]`, `not followed by 64 hex digits`},
		"token odd hash":            {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["sha256:` + strings.Repeat("z", 64) + `"]}}]`, `not followed by 64 hex digits`},
		"token shared":              {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["{file.$DIR/token}"], "b": ["{file.$DIR/again}"]}}]`, `agent "b": a secret that agent "a" already has`},
		"token in the open":         {allow + `, "agent_auth": [{"method": "token", "agents": {"a": ["` + hubtest.Token + `"]}}]`, `agent "a": a secret stands in the configuration itself, which Caddy shows and stores: write {file.…}`},
	} {
		t.Run(name, func(t *testing.T) {
			err := h.ValidateJSON([]byte(h.Expand(`{"admin": {"disabled": true}, "apps": {"nowconnect": {` + c.app + `}}}`)))
			if err == nil {
				t.Fatal("loads")
			}
			if want := h.Expand(c.want); !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if strings.Contains(err.Error(), hubtest.Token) || strings.Contains(err.Error(), "too-short") {
				t.Errorf("the error has a secret: %v", err)
			}
		})
	}
}

func TestConnectorsWithTheirOwnPDPNeedNone(t *testing.T) {
	h := hubtest.New(t)
	err := h.ValidateJSON([]byte(h.Expand(`{"admin": {"disabled": true}, "apps": {"nowconnect": {` + auth +
		`, "connectors": {"a": {"agents": ["premise-1"], "pdp": {"engine": "allow_all"}}}}}}`)))
	if err != nil {
		t.Fatal(err)
	}
}

func TestModulesNeedTheApp(t *testing.T) {
	h := hubtest.New(t)
	for name, c := range map[string]struct{ config, want string }{
		"layer4": {
			"{\n\tadmin off\n" + hubtest.Layer4 + "\n}",
			"the nowconnect app is not configured: add a nowconnect block to the global options",
		},
		"endpoint": {"{\n\tadmin off\n}\nhttp://$HTTP {\n\tnowconnect_agent\n}", "the nowconnect app is not configured"},
		"health":   {"{\n\tadmin off\n}\nhttp://$HTTP {\n\tnowconnect_health\n}", "the nowconnect app is not configured"},
	} {
		if err := h.Validate(h.Expand(c.config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l4 := strings.Replace(hubtest.Layer4, "echo", "echoes", 1)
	err := h.Validate(h.Caddyfile(hubtest.Basic, l4, ""))
	if err == nil || !strings.Contains(err.Error(), `connector "echoes" is not configured in the nowconnect app`) {
		t.Errorf("unknown connector: %v", err)
	}
}

// The wrapper of caddy-l4 v0.1.2 mixes the bytes of different connections.
func TestListenerWrapperIsRefused(t *testing.T) {
	h := hubtest.New(t)
	err := h.Validate(h.Caddyfile(hubtest.Basic, `	servers {
		listener_wrappers {
			layer4 {
				route {
					nowconnect echo
				}
			}
		}
	}`, hubtest.Site))
	if err == nil || !strings.Contains(err.Error(), "inside the layer4 listener wrapper, which mixes the bytes of different connections") {
		t.Errorf("got %v", err)
	}
}

func TestPortConflicts(t *testing.T) {
	h := hubtest.New(t)
	port := h.HTTP[strings.LastIndex(h.HTTP, ":"):]
	route := " {\n\t\t\troute {\n\t\t\t\tnowconnect echo\n\t\t\t}\n\t\t}\n"
	l4 := func(addrs ...string) string {
		s := "\tlayer4 {\n"
		for _, a := range addrs {
			s += "\t\t" + a + route
		}
		return s + "\t}"
	}
	for name, c := range map[string]struct{ layer4, sites, want string }{
		"http and layer4":           {l4("$HTTP"), "http://$HTTP {\n\tbind 127.0.0.1\n}", "http server srv0 and layer4 server srv0 both listen on"},
		"http and layer4, any host": {l4(port), "http://" + port + " {\n}", "both listen on"},
		"any host, two spellings":   {l4("0.0.0.0" + port), "http://" + port + " {\n}", "both listen on"},
		"two of layer4":             {l4("$HTTP", "$HTTP"), "", "layer4 server srv0 and layer4 server srv1 both listen on"},
		"network nowconnect":        {l4("nowconnect/$HTTP"), "http://$HTTP {\n\tbind 127.0.0.1\n}", "both listen on"},
		"two networks":              {l4("nowconnect/$HTTP", "$HTTP"), "", "layer4 server srv0 and layer4 server srv1 both listen on"},
		"udp and tcp":               {l4("udp/$HTTP"), "http://$HTTP {\n\tbind 127.0.0.1\n}", ""},
		"a host of its own":         {l4("127.0.0.2" + port), "http://$HTTP {\n\tbind 127.0.0.1\n}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := h.TryLoad(h.Caddyfile(hubtest.Basic, h.Expand(c.layer4), h.Expand(c.sites)))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("does not load: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	h.Load(h.Caddyfile(hubtest.Basic, l4("0.0.0.0"+port), h.Expand("http://$HTTP {\n\tbind 127.0.0.1\n}")))
	if !strings.Contains(h.Logged(), "listeners overlap") {
		t.Error("no warning about listeners that overlap")
	}
}
