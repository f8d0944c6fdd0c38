package agent

import (
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// minimal is a file that Load accepts.
const minimal = `tunnel:
  url: https://hub.example.com
  agent_id: premise-1
  auth:
    token_file: /etc/nowconnect/token
targets:
  addomain:
    host: dc1.corp.example
    port: 389
`

// load runs Load on a file called agent.yaml in the working directory, so that
// messages hold no temporary path.
func load(t *testing.T, file string, env []string, args ...string) (*Config, error) {
	t.Helper()
	t.Chdir(t.TempDir())
	path := ""
	if file != "" {
		path = "agent.yaml"
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	flags := RegisterFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(path, env, flags)
}

func TestLoadMinimalHasDefaults(t *testing.T) {
	got, err := load(t, minimal, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		URL: "https://hub.example.com", AgentID: "premise-1", TokenFile: "/etc/nowconnect/token",
		Connectors:   []string{"addomain"},
		Targets:      map[string]Target{"addomain": {"dc1.corp.example", 389}},
		Carrier:      "auto",
		PingInterval: 20 * time.Second, PingTimeout: 20 * time.Second, HandshakeTimeout: 10 * time.Second,
		BackoffMin: 200 * time.Millisecond, BackoffMax: 30 * time.Second,
		ConnectTimeout: 3 * time.Second, MaxSessions: 2000, Memory: 256 << 20, DrainTimeout: 30 * time.Second,
		HealthAddr: "0.0.0.0:8090", LogLevel: "info", LogFormat: "json", CongestionControl: "auto",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestLoadEverything sets each key of the file to something that is not its
// default, in YAML and in JSON.
func TestLoadEverything(t *testing.T) {
	files := map[string]string{"yaml": `
tunnel:
  url: wss://hub.example.com:8443/agents
  agent_id: premise-1
  exported_connectors: [addomain, sap-ldap.vds]
  auth: {token_file: token}
  links: 4
  carrier: websocket
  congestion_control: cubic
  ping_interval: 5s
  ping_timeout: 6s
  handshake_timeout: 7s
  backoff_min: 100ms
  backoff_max: 1m
  server_name: inner.example.com
targets:
  addomain: {host: "[fd00::1]", port: "389"}
  sap-ldap.vds: ldap.corp.example:400
limits:
  connect_timeout: 1500ms
  drain_timeout: 0s
  max_sessions: 10
  memory: 8 MiB
proxy:
  https_proxy: http://proxy.corp.example:3128
  no_proxy: .corp.example
  ca_bundle: ca.pem
health:
  host: 127.0.0.1
  port: 9090
observability:
  log_level: WARNING
  log_format: plain
`, "json": `{
	"tunnel": {
		"url": "wss://hub.example.com:8443/agents", "agent_id": "premise-1",
		"exported_connectors": ["addomain", "sap-ldap.vds"], "auth": {"token_file": "token"},
		"links": 4, "carrier": "websocket", "congestion_control": "cubic", "ping_interval": "5s", "ping_timeout": "6s", "handshake_timeout": "7s",
		"backoff_min": "100ms", "backoff_max": "1m", "server_name": "inner.example.com"
	},
	"targets": {"addomain": {"host": "[fd00::1]", "port": 389}, "sap-ldap.vds": "ldap.corp.example:400"},
	"limits": {"connect_timeout": "1500ms", "drain_timeout": "0s", "max_sessions": 10, "memory": "8MiB"},
	"proxy": {"https_proxy": "http://proxy.corp.example:3128", "no_proxy": ".corp.example", "ca_bundle": "ca.pem"},
	"health": {"host": "127.0.0.1", "port": 9090},
	"observability": {"log_level": "WARNING", "log_format": "plain"}
}`}
	want := &Config{
		URL: "wss://hub.example.com:8443/agents", AgentID: "premise-1", TokenFile: "token",
		Connectors: []string{"addomain", "sap-ldap.vds"},
		Targets:    map[string]Target{"addomain": {"fd00::1", 389}, "sap-ldap.vds": {"ldap.corp.example", 400}},
		Links:      4, Carrier: "websocket", CongestionControl: "cubic",
		PingInterval: 5 * time.Second, PingTimeout: 6 * time.Second, HandshakeTimeout: 7 * time.Second,
		BackoffMin: 100 * time.Millisecond, BackoffMax: time.Minute,
		CABundle: "ca.pem", ServerName: "inner.example.com",
		Proxy: Proxy{
			HTTP: "http://proxy.corp.example:3128", HTTPS: "http://proxy.corp.example:3128", NoProxy: ".corp.example",
		},
		ConnectTimeout: 1500 * time.Millisecond, MaxSessions: 10, Memory: 8 << 20, DrainTimeout: time.Nanosecond,
		HealthAddr: "127.0.0.1:9090", LogLevel: "warn", LogFormat: "console",
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			got, err := load(t, file, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestLoadOriginalFile reads a configuration in the shape of the original's
// premise.yaml: everything is taken or answered with a warning.
func TestLoadOriginalFile(t *testing.T) {
	c, err := load(t, `
tunnel:
  url: wss://nowconnect.example.com/tunnel
  agent_id: premise-1
  exported_connectors:
    - addomain
    - devdomain1
  auth:
    token_file: /run/secrets/token
  ping_interval_sec: 10
  ping_timeout_sec: 15
  max_ws_payload: 8192
targets:
  addomain: {host: dc1, port: 389}
  devdomain1: {host: dc2, port: 636}
limits:
  idle_timeout_ms: 60000
  connect_timeout_ms: 2500
  queue_depth_per_cid: 100
  max_inflight_cids: 500
observability:
  metrics_port: 8000
  log_level: INFO
proxy:
  https_proxy: ""
  no_proxy:
  ca_bundle: ""
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.PingInterval != 10*time.Second || c.PingTimeout != 15*time.Second || c.ConnectTimeout != 2500*time.Millisecond || c.MaxSessions != 500 {
		t.Errorf("numbers were not taken: %+v", c)
	}
	want := []string{
		"agent.yaml:12: tunnel.max_ws_payload: has no effect here: frames are 16 KiB and the protocol fixes that",
		"agent.yaml:17: limits.idle_timeout_ms: has no effect here: it would cut pooled connections; the hub's connector has an idle_timeout",
		"agent.yaml:19: limits.queue_depth_per_cid: has no effect here: sessions have credits instead of a queue; limits.memory bounds them",
		"agent.yaml:22: observability.metrics_port: has no effect here: metrics are on the health port, under /metrics",
	}
	if !slices.Equal(c.Warnings, want) {
		t.Errorf("warnings:\n%s", strings.Join(c.Warnings, "\n"))
	}
}

func TestLoadFromEnvironmentAlone(t *testing.T) {
	c, err := load(t, "", []string{
		"NC_AGENT_URL=ws://127.0.0.1:8765", "NC_AGENT_ID=premise-1", "NC_TOKEN_FILE=token",
		"NC_CONNECTORS=addomain, sap-ldap.vds,",
		"NC_TARGET_addomain_HOST=dc1", "NC_TARGET_addomain_PORT=389",
		"NC_TARGET_SAP_LDAP_VDS_HOST=::1", "NC_TARGET_SAP_LDAP_VDS_PORT=400",
		"NC_HEALTH_PORT=0", "NC_LOG_FORMAT=json", "NC_CARRIER=", "PATH=/bin",
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]Target{"addomain": {"dc1", 389}, "sap-ldap.vds": {"::1", 400}}; !maps.Equal(c.Targets, want) {
		t.Errorf("targets %v", c.Targets)
	}
	if got := c.Targets["sap-ldap.vds"].String(); got != "[::1]:400" {
		t.Errorf("target dials %q", got)
	}
	if c.HealthAddr != "" || c.Carrier != "auto" {
		t.Errorf("health %q, carrier %q", c.HealthAddr, c.Carrier)
	}
}

func TestFlagsBeatEnvironmentBeatsFile(t *testing.T) {
	env := []string{"NC_AGENT_ID=from-env", "NC_LINKS=3", "NC_TARGET_ADDOMAIN_HOST=env-host", "NC_CONNECTORS=addomain"}
	file := strings.Replace(minimal, "  agent_id: premise-1\n", "  agent_id: from-file\n  links: 5\n  carrier: native\n", 1)
	c, err := load(t, file, env, "-agent-id", "from-flag", "-target", "extra=[::1]:22", "-insecure")
	if err != nil {
		t.Fatal(err)
	}
	if c.AgentID != "from-flag" || c.Links != 3 || c.Carrier != "native" || !c.Insecure {
		t.Errorf("agent_id %q, links %d, carrier %q, insecure %v", c.AgentID, c.Links, c.Carrier, c.Insecure)
	}
	want := map[string]Target{"addomain": {"env-host", 389}, "extra": {"::1", 22}}
	if !maps.Equal(c.Targets, want) || !slices.Equal(c.Connectors, []string{"addomain", "extra"}) {
		t.Errorf("targets %v, connectors %v", c.Targets, c.Connectors)
	}
}

func TestConfigVariableNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load("", []string{"NC_CONFIG=" + path}, nil)
	if err != nil || c.AgentID != "premise-1" {
		t.Errorf("got %v, %v", c, err)
	}
}

// TestLoadErrors holds every message to its words: they are what an operator
// has at three in the morning.
func TestLoadErrors(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(minimal, old) {
			t.Fatalf("minimal has no %q", old)
		}
		return strings.Replace(minimal, old, new, 1)
	}
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		want string
	}{
		{name: "nothing", want: "tunnel.url, NC_AGENT_URL or -url: no hub URL; write for example https://hub.example.com/tunnel\n" +
			"tunnel.agent_id, NC_AGENT_ID or -agent-id: no agent id; give this agent the name that the hub knows it by\n" +
			"tunnel.auth.token_file, NC_TOKEN_FILE or -token-file: no token file; name the file that holds this agent's token, or a client certificate\n" +
			"targets, NC_CONNECTORS or -target: nothing to serve; map at least one connector to a target"},
		{name: "unknown key", file: with("  agent_id", "  agentid"),
			want: "agent.yaml:3: tunnel.agentid: unknown key; known here: agent_id, auth, backoff_max, backoff_min, ca_bundle, carrier, congestion_control, " +
				"exported_connectors, handshake_timeout, insecure, links, max_ws_payload, ping_interval, ping_interval_sec, ping_timeout, " +
				"ping_timeout_sec, server_name, url"},
		{name: "unknown section", file: minimal + "limit:\n  memory: 1GiB\n",
			want: "agent.yaml:10: limit: unknown key; known here: health, limits, observability, proxy, targets, tunnel"},
		{name: "unknown key of a target", file: with("    port: 389", "    prot: 389"),
			want: "agent.yaml:9: targets.addomain.prot: unknown key; known here: host, port"},
		{name: "a secret in the file is not repeated", file: with("    token_file: /etc/nowconnect/token", "    token: s3cret"),
			want: "agent.yaml:5: tunnel.auth.token: unknown key; known here: client_cert_file, client_key_file, token_file"},
		{name: "duplicate key", file: minimal + "tunnel:\n  links: 1\n",
			want: `agent.yaml:10: mapping key "tunnel" already defined at [1:1]`},
		{name: "duplicate key in JSON", file: `{"tunnel": {"links": 1, "links": 2}}`,
			want: `agent.yaml:1: mapping key "links" already defined at [1:13]`},
		{name: "two spellings of one setting", file: with("  agent_id", "  ping_interval: 5s\n  ping_interval_sec: 5\n  agent_id"),
			want: "agent.yaml:4: tunnel.ping_interval_sec: already set as agent.yaml:3: tunnel.ping_interval; keep one"},
		{name: "not YAML", file: "tunnel: [\n", want: "agent.yaml:1: sequence end token ']' not found"},
		{name: "two documents", file: minimal + "---\ntunnel: {}\n", want: "agent.yaml:11: a second document; the configuration is one"},
		{name: "a list at the top", file: "- a\n", want: "agent.yaml:1: the configuration: must be a mapping of keys to values, not a list"},
		{name: "a section that is a word", file: with("tunnel:", "health: on\ntunnel:"),
			want: "agent.yaml:1: health: must be a mapping of keys to values, not a single value"},
		{name: "a mapping for a value", file: with("https://hub.example.com", "{a: b}"),
			want: "agent.yaml:2: tunnel.url: must be a single value, not a mapping"},
		{name: "a list for a value", file: with("https://hub.example.com", "[a, b]"),
			want: "agent.yaml:2: tunnel.url: must be a single value, not a list"},
		{name: "alias", file: with("https://hub.example.com", "&a x"),
			want: "agent.yaml:2: tunnel.url: must be a single value, not an anchor or alias"},
		{name: "no unit", file: minimal + "limits:\n  connect_timeout: 3\n",
			want: `agent.yaml:11: limits.connect_timeout: "3" has no unit; write for example 3s`},
		{name: "not a duration", env: []string{"NC_PING_INTERVAL=soon"}, file: minimal,
			want: `NC_PING_INTERVAL: "soon" is not a duration; write for example 20s or 500ms`},
		{name: "too short", env: []string{"NC_PING_INTERVAL=0s"}, file: minimal,
			want: `NC_PING_INTERVAL: "0s" is too short; at least 1ms`},
		{name: "not a size", env: []string{"NC_MEMORY=lots"}, file: minimal, want: `NC_MEMORY: "lots" is not a size; write for example 256MiB`},
		{name: "overflowing size", env: []string{"NC_MEMORY=9999999999GiB"}, file: minimal,
			want: `NC_MEMORY: "9999999999GiB" is not a size; write for example 256MiB`},
		{name: "too little memory", env: []string{"NC_MEMORY=64KiB"}, file: minimal, want: `NC_MEMORY: "64KiB" is too little; at least 1MiB`},
		{name: "too many links", args: []string{"-links", "17"}, file: minimal, want: `-links: "17" is not a whole number from 1 to 16, and not auto`},
		{name: "unknown carrier", args: []string{"-carrier", "quic"}, file: minimal, want: `-carrier: "quic" is not one of auto, native, websocket`},
		{name: "not a boolean", env: []string{"NC_INSECURE=perhaps"}, file: minimal, want: `NC_INSECURE: "perhaps" is not true or false`},
		{name: "log level", env: []string{"NC_LOG_LEVEL=loud"}, file: minimal, want: `NC_LOG_LEVEL: "loud" is not one of debug, info, warn, error`},
		{name: "log format", env: []string{"NC_LOG_FORMAT=xml"}, file: minimal, want: `NC_LOG_FORMAT: "xml" is not one of json, console`},
		{name: "flag twice", args: []string{"-links", "1", "-links", "2"}, file: minimal, want: `-links: already set as -links; keep one`},
		{name: "backoff order", env: []string{"NC_BACKOFF_MAX=100ms"}, file: minimal,
			want: "NC_BACKOFF_MAX: 100ms is less than backoff_min, 200ms"},
		{name: "agent id", args: []string{"-agent-id", "../x"}, file: minimal, want: `-agent-id: "../x" cannot be a name: 1 to 64 letters, digits, '.', '-' and '_', the first no '.' or '-'`},

		{name: "plain http", args: []string{"-url", "http://hub.example.com"}, file: minimal,
			want: "-url: http://hub.example.com/tunnel would send the token and all traffic in clear text; " +
				"use https, or permit it with tunnel.insecure, NC_INSECURE or -insecure"},
		{name: "ws is plain too", file: with("https:", "ws:"),
			want: "agent.yaml:2: tunnel.url: http://hub.example.com/tunnel would send the token and all traffic in clear text; " +
				"use https, or permit it with tunnel.insecure, NC_INSECURE or -insecure"},
		{name: "a name that only looks like loopback", args: []string{"-url", "http://localhost.example.com"}, file: minimal,
			want: "-url: http://localhost.example.com/tunnel would send the token and all traffic in clear text; " +
				"use https, or permit it with tunnel.insecure, NC_INSECURE or -insecure"},
		{name: "scheme", args: []string{"-url", "ftp://hub"}, file: minimal, want: `-url: scheme "ftp" is not https, wss, http or ws`},
		{name: "no scheme", args: []string{"-url", "hub.example.com"}, file: minimal,
			want: "-url: not a URL; write for example https://hub.example.com/tunnel"},
		{name: "URL port", args: []string{"-url", "https://hub:0/"}, file: minimal, want: "-url: port 0 is not from 1 to 65535"},
		{name: "a password in the URL is not repeated", args: []string{"-url", "https://me:s3cret@hub"}, file: minimal,
			want: "-url: holds a user name or password; the agent's secret belongs into its token file"},
		{name: "nor from a broken URL", args: []string{"-url", "https://me:s3cret@hub:port"}, file: minimal,
			want: "-url: not a URL; write for example https://hub.example.com/tunnel"},
		{name: "a token in the query is not repeated", args: []string{"-url", "https://hub/tunnel?token=s3cret"}, file: minimal,
			want: "-url: has a query or fragment; only scheme, host, port and path are used"},
		{name: "proxy scheme", env: []string{"NC_HTTPS_PROXY=socks5://me:s3cret@proxy"}, file: minimal,
			want: `NC_HTTPS_PROXY: proxy scheme "socks5" is not http or https; the proxy must know the CONNECT method`},
		{name: "proxy from the environment", env: []string{"NC_TRUST_ENV=true", "https_proxy=http://me:s3cret@proxy:port"}, file: minimal,
			want: "https_proxy: not a proxy URL; write for example http://proxy.example.com:3128"},

		{name: "a certificate without its key", args: []string{"-client-cert", "c.pem"}, file: minimal,
			want: "-client-cert: a certificate without its key; name the key's file too"},
		{name: "a key without its certificate", env: []string{"NC_CLIENT_KEY_FILE=k.pem"}, file: minimal,
			want: "NC_CLIENT_KEY_FILE: a key without a certificate; name the certificate's file too"},
		{name: "a certificate without TLS", args: []string{"-client-cert", "c.pem", "-client-key", "k.pem", "-url", "http://127.0.0.1"}, file: minimal,
			want: "-client-cert: a client certificate needs TLS, and http://127.0.0.1/tunnel has none"},

		{name: "no host", file: with("    host: dc1.corp.example\n", ""),
			want: `agent.yaml:8: targets.addomain.port: no host; say where connector "addomain" leads`},
		{name: "no port", file: with("    port: 389\n", ""),
			want: `agent.yaml:8: targets.addomain.host: no port from 1 to 65535; say where connector "addomain" leads`},
		{name: "port out of range", file: with("port: 389", "port: 70000"),
			want: `agent.yaml:9: targets.addomain.port: "70000" is not a port from 1 to 65535`},
		{name: "host with a port", file: with("dc1.corp.example", "http://dc1/"),
			want: `agent.yaml:9: targets.addomain.port: "http://dc1/" is not a host name or IP address`},
		{name: "connector name", file: with("  addomain:", "  ad domain:"),
			want: `agent.yaml:9: targets.ad domain.port: "ad domain" cannot be a name: 1 to 64 letters, digits, '.', '-' and '_', the first no '.' or '-'`},
		{name: "exported without target", file: with("  agent_id", "  exported_connectors: [addomain, sap-ldap]\n  agent_id"),
			want: `agent.yaml:3: tunnel.exported_connectors: connector "sap-ldap" has no target; set targets.sap-ldap or NC_TARGET_SAP_LDAP_HOST and NC_TARGET_SAP_LDAP_PORT`},
		{name: "exported twice", env: []string{"NC_CONNECTORS=addomain,addomain"}, file: minimal,
			want: `NC_CONNECTORS: connector "addomain" is listed twice`},
		{name: "target in one word", args: []string{"-target", "x=fd00::1:389"}, file: minimal,
			want: `-target x: "fd00::1:389" is not host:port; an IPv6 address needs brackets`},
		{name: "target without a name", args: []string{"-target", "dc1:389"}, file: minimal, want: `-target: "dc1:389" is not name=host:port`},
		{name: "stray target variable", env: []string{"NC_TARGET_ADOMAIN_HOST=dc1"}, file: minimal,
			want: `NC_TARGET_ADOMAIN_HOST: belongs to no connector; name the connector in NC_CONNECTORS`},
		{name: "two names, one variable", env: []string{"NC_CONNECTORS=a-b,a.b", "NC_TARGET_A_B_HOST=x", "NC_TARGET_A_B_PORT=1"},
			file: minimal,
			want: `NC_TARGET_A_B_HOST: fits the connectors "a-b" and "a.b"; use their exact names in the variables` + "\n" +
				`NC_TARGET_A_B_PORT: fits the connectors "a-b" and "a.b"; use their exact names in the variables`},
		{name: "two variables, two minds", env: []string{"NC_TARGET_ADDOMAIN_HOST=x", "NC_TARGET_addomain_HOST=y"}, file: minimal,
			want: `NC_TARGET_addomain_HOST: differs from NC_TARGET_ADDOMAIN_HOST; keep one`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.env, tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			if err.Error() != tt.want {
				t.Errorf("got:\n%v\nwant:\n%s", err, tt.want)
			}
		})
	}
}

func TestLoadWarnings(t *testing.T) {
	c, err := load(t, minimal, []string{
		"NC_AGENT_URI=x", "HTTPS_PROXY=http://me:s3cret@proxy", "NC_INSECURE=1", "NC_CONNECTORS=addomain",
		"NC_TARGET_OTHER_HOST=x", "NC_MEMORY=1MiB",
	}, "-target", "spare=dc2:389")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"NC_TARGET_OTHER_HOST: belongs to no connector in the list, ignored",
		"NC_AGENT_URI: unknown variable, ignored",
		"HTTPS_PROXY: is set and not used; NC_TRUST_ENV=true or proxy.trust_env uses it",
		"NC_INSECURE: has no effect on an https hub: its certificate is always verified",
		"NC_MEMORY: 1048576 bytes hold the first windows of 16 sessions, max_sessions is 2000; more will be refused",
	}
	if !slices.Equal(c.Warnings, want) {
		t.Errorf("warnings:\n%s", strings.Join(c.Warnings, "\n"))
	}
	c, err = load(t, minimal+"  spare: dc2:389\n", []string{"NC_CONNECTORS=addomain"})
	if err != nil {
		t.Fatal(err)
	}
	if want := `agent.yaml:10: targets.spare: connector "spare" is not in the list of connectors and will not be served`; !slices.Contains(c.Warnings, want) {
		t.Errorf("warnings: %q", c.Warnings)
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	env := []string{"NC_TRUST_ENV=true", "HTTPS_PROXY=proxy1:3128", "HTTP_PROXY=proxy2:3128", "NO_PROXY=.inner"}
	c, err := load(t, minimal, env)
	if want := (Proxy{HTTPS: "proxy1:3128", HTTP: "proxy2:3128", NoProxy: ".inner"}); err != nil || c.Proxy != want {
		t.Errorf("trusted: %+v, %v", c, err)
	}
	c, err = load(t, minimal+"proxy:\n  https_proxy: mine:8080\n", env)
	if want := (Proxy{HTTPS: "mine:8080", HTTP: "mine:8080"}); err != nil || c.Proxy != want {
		t.Errorf("an explicit proxy stands alone: %+v, %v", c.Proxy, err)
	}
}

func TestHubURL(t *testing.T) {
	tests := []struct{ in, addr, out string }{
		{"https://hub", "hub:443", "https://hub/tunnel"},
		{"wss://hub/", "hub:443", "https://hub/tunnel"},
		{"https://hub:8443/a/b", "hub:8443", "https://hub:8443/a/b"},
		{"http://[::1]:8765", "[::1]:8765", "http://[::1]:8765/tunnel"},
		{"ws://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1/tunnel"},
	}
	for _, tt := range tests {
		u, err := parseHubURL(tt.in)
		if err != nil || u.addr != tt.addr || u.String() != tt.out {
			t.Errorf("%s: %s, %s, %v", tt.in, u.addr, u, err)
		}
	}
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.8.8.8": true, "::1": true, "::ffff:127.0.0.1": true,
		"127.0.0.1.example.com": false, "10.0.0.1": false, "0.0.0.0": false, "localhost.": false,
	} {
		if isLoopback(host) != want {
			t.Errorf("isLoopback(%q) is %v", host, !want)
		}
	}
}
