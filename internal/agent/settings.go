package agent

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/internal/wire"
)

// A setting is one thing an operator can say, under each name it has. The
// table below is the only place that knows a name: the file reader, the
// environment, the flags and the test that holds docs/agent.md to the truth
// all walk it.
type setting struct {
	name string // what validate calls it; two rows with one name are two spellings of one thing
	key  string // path in the file; empty if there is none
	env  string // variable; empty if there is none
	flag string // command line; empty if there is none
	help string // for -help
	bool bool   // the flag needs no value
	set  func(d *draft, value string) error
	// ignored tells why a key of the original is accepted without effect.
	ignored string
}

// A draft is a Config under construction, with what only Load needs to know.
type draft struct {
	Config
	healthHost string
	healthPort int // -1 until set
	trustEnv   bool
}

var settings = []setting{
	{name: "url", key: "tunnel.url", env: "NC_AGENT_URL", flag: "url",
		help: "hub's agent endpoint, for example https://hub.example.com/tunnel",
		set:  text(func(d *draft) *string { return &d.URL })},
	{name: "agent_id", key: "tunnel.agent_id", env: "NC_AGENT_ID", flag: "agent-id",
		help: "name that the hub knows this agent by",
		set:  text(func(d *draft) *string { return &d.AgentID })},
	{name: "token_file", key: "tunnel.auth.token_file", env: "NC_TOKEN_FILE", flag: "token-file",
		help: "file with the bearer token, read at each connect",
		set:  text(func(d *draft) *string { return &d.TokenFile })},
	{name: "client_cert", key: "tunnel.auth.client_cert_file", env: "NC_CLIENT_CERT_FILE", flag: "client-cert",
		help: "file with a TLS client certificate, read at each connect",
		set:  text(func(d *draft) *string { return &d.ClientCert })},
	{name: "client_key", key: "tunnel.auth.client_key_file", env: "NC_CLIENT_KEY_FILE", flag: "client-key",
		help: "file with the client certificate's key",
		set:  text(func(d *draft) *string { return &d.ClientKey })},
	{name: "connectors", key: "tunnel.exported_connectors", env: "NC_CONNECTORS",
		set: func(d *draft, v string) error { d.Connectors = splitList(v); return nil }},
	{name: "links", key: "tunnel.links", env: "NC_LINKS", flag: "links",
		help: "connections to the hub, 1 to 16, or auto",
		set:  links},
	{name: "carrier", key: "tunnel.carrier", env: "NC_CARRIER", flag: "carrier",
		help: "auto, native or websocket",
		set:  oneOf(func(d *draft) *string { return &d.Carrier }, CarrierAuto, CarrierNative, CarrierWebSocket)},
	{name: "congestion_control", key: "tunnel.congestion_control", env: "NC_CONGESTION_CONTROL",
		set: text(func(d *draft) *string { return &d.CongestionControl })},
	{name: "ping_interval", key: "tunnel.ping_interval", env: "NC_PING_INTERVAL",
		set: duration(func(d *draft) *time.Duration { return &d.PingInterval })},
	{name: "ping_interval", key: "tunnel.ping_interval_sec",
		set: count(func(d *draft) *time.Duration { return &d.PingInterval }, time.Second)},
	{name: "ping_timeout", key: "tunnel.ping_timeout", env: "NC_PING_TIMEOUT",
		set: duration(func(d *draft) *time.Duration { return &d.PingTimeout })},
	{name: "ping_timeout", key: "tunnel.ping_timeout_sec",
		set: count(func(d *draft) *time.Duration { return &d.PingTimeout }, time.Second)},
	{name: "handshake_timeout", key: "tunnel.handshake_timeout", env: "NC_HANDSHAKE_TIMEOUT",
		set: duration(func(d *draft) *time.Duration { return &d.HandshakeTimeout })},
	{name: "backoff_min", key: "tunnel.backoff_min", env: "NC_BACKOFF_MIN",
		set: duration(func(d *draft) *time.Duration { return &d.BackoffMin })},
	{name: "backoff_max", key: "tunnel.backoff_max", env: "NC_BACKOFF_MAX",
		set: duration(func(d *draft) *time.Duration { return &d.BackoffMax })},
	{name: "server_name", key: "tunnel.server_name", env: "NC_SERVER_NAME",
		set: text(func(d *draft) *string { return &d.ServerName })},
	{name: "insecure", key: "tunnel.insecure", env: "NC_INSECURE", flag: "insecure", bool: true,
		help: "permit a plain http:// hub that is not loopback; certificates are checked all the same",
		set:  boolean(func(d *draft) *bool { return &d.Insecure })},
	{name: "max_ws_payload", key: "tunnel.max_ws_payload",
		ignored: "frames are 16 KiB and the protocol fixes that"},

	{name: "connect_timeout", key: "limits.connect_timeout", env: "NC_CONNECT_TIMEOUT",
		set: duration(func(d *draft) *time.Duration { return &d.ConnectTimeout })},
	{name: "connect_timeout", key: "limits.connect_timeout_ms",
		set: count(func(d *draft) *time.Duration { return &d.ConnectTimeout }, time.Millisecond)},
	{name: "drain_timeout", key: "limits.drain_timeout", env: "NC_DRAIN_TIMEOUT",
		set: drainTimeout},
	{name: "max_sessions", key: "limits.max_sessions", env: "NC_MAX_SESSIONS",
		set: integer(func(d *draft) *int { return &d.MaxSessions }, 1, math.MaxInt32)},
	{name: "max_sessions", key: "limits.max_inflight_cids",
		set: integer(func(d *draft) *int { return &d.MaxSessions }, 1, math.MaxInt32)},
	{name: "memory", key: "limits.memory", env: "NC_MEMORY",
		set: size(func(d *draft) *int64 { return &d.Memory })},
	{name: "idle_timeout", key: "limits.idle_timeout_ms",
		ignored: "it would cut pooled connections; the hub's connector has an idle_timeout"},
	{name: "queue_depth_per_cid", key: "limits.queue_depth_per_cid",
		ignored: "sessions have credits instead of a queue; limits.memory bounds them"},

	{name: "https_proxy", key: "proxy.https_proxy", env: "NC_HTTPS_PROXY",
		set: proxyURL},
	{name: "no_proxy", key: "proxy.no_proxy", env: "NC_NO_PROXY",
		set: text(func(d *draft) *string { return &d.Proxy.NoProxy })},
	{name: "trust_env", key: "proxy.trust_env", env: "NC_TRUST_ENV",
		set: boolean(func(d *draft) *bool { return &d.trustEnv })},
	{name: "ca_bundle", key: "proxy.ca_bundle", env: "NC_CA_BUNDLE",
		set: text(func(d *draft) *string { return &d.CABundle })},
	{name: "ca_bundle", key: "tunnel.ca_bundle",
		set: text(func(d *draft) *string { return &d.CABundle })},

	{name: "health_host", key: "health.host", env: "NC_HEALTH_HOST",
		set: text(func(d *draft) *string { return &d.healthHost })},
	{name: "health_port", key: "health.port", env: "NC_HEALTH_PORT",
		set: integer(func(d *draft) *int { return &d.healthPort }, 0, 65535)},

	{name: "log_level", key: "observability.log_level", env: "NC_LOG_LEVEL", flag: "log-level",
		help: "debug, info, warn or error",
		set:  logLevel},
	{name: "log_format", key: "observability.log_format", env: "NC_LOG_FORMAT", flag: "log-format",
		help: "json or console",
		set:  logFormat},
	{name: "metrics_port", key: "observability.metrics_port",
		ignored: "metrics are on the health port, under /metrics"},
}

func text(field func(*draft) *string) func(*draft, string) error {
	return func(d *draft, v string) error { *field(d) = v; return nil }
}

func oneOf(field func(*draft) *string, words ...string) func(*draft, string) error {
	return func(d *draft, v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("%q is not one of %s", v, strings.Join(words, ", "))
		}
		*field(d) = v
		return nil
	}
}

func integer(field func(*draft) *int, low, high int) func(*draft, string) error {
	return func(d *draft, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < low || n > high {
			return fmt.Errorf("%q is not a whole number from %d to %d", v, low, high)
		}
		*field(d) = n
		return nil
	}
}

func links(d *draft, v string) error {
	if v == linksAuto {
		d.Links = 0
		return nil
	}
	if err := integer(func(d *draft) *int { return &d.Links }, 1, wire.MaxLinks)(d, v); err != nil {
		return fmt.Errorf("%w, and not auto", err)
	}
	return nil
}

func boolean(field func(*draft) *bool) func(*draft, string) error {
	return func(d *draft, v string) error {
		b, err := parseBool(v)
		*field(d) = b
		return err
	}
}

func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is not true or false", v)
}

// duration reads a Go duration. A bare number is refused rather than guessed
// at: the original counted some settings in seconds and some in milliseconds.
func duration(field func(*draft) *time.Duration) func(*draft, string) error {
	return func(d *draft, v string) error {
		t, err := parseDuration(v)
		if err == nil && t < time.Millisecond {
			err = fmt.Errorf("%q is too short; at least 1ms", v)
		}
		if err != nil {
			return err
		}
		*field(d) = t
		return nil
	}
}

func parseDuration(v string) (time.Duration, error) {
	t, err := time.ParseDuration(v)
	if err != nil {
		if _, e := strconv.ParseFloat(v, 64); e == nil {
			return 0, fmt.Errorf("%q has no unit; write for example %ss", v, v)
		}
		return 0, fmt.Errorf("%q is not a duration; write for example 20s or 500ms", v)
	}
	return t, nil
}

// drainTimeout is apart because 0, which cuts at once, is a choice and not
// the default.
func drainTimeout(d *draft, v string) error {
	t, err := parseDuration(v)
	if err != nil {
		return err
	}
	if t < 0 {
		return fmt.Errorf("%q is negative", v)
	}
	d.DrainTimeout = max(t, time.Nanosecond)
	return nil
}

// count reads one of the original's numbers, whose unit is in its name.
func count(field func(*draft) *time.Duration, unit time.Duration) func(*draft, string) error {
	return func(d *draft, v string) error {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a positive whole number", v)
		}
		*field(d) = time.Duration(n) * unit
		return nil
	}
}

// size reads bytes, with an optional KiB, MiB or GiB.
func size(field func(*draft) *int64) func(*draft, string) error {
	return func(d *draft, v string) error {
		num, shift := v, 0
		for i, unit := range []string{"KiB", "MiB", "GiB"} {
			if s, ok := strings.CutSuffix(v, unit); ok {
				num, shift = strings.TrimSpace(s), 10*(i+1)
			}
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64>>shift {
			return fmt.Errorf("%q is not a size; write for example 256MiB", v)
		}
		if n <<= shift; n < minMemory {
			return fmt.Errorf("%q is too little; at least 1MiB", v)
		}
		*field(d) = n
		return nil
	}
}

// proxyURL serves hubs of either scheme: an operator who names a proxy means
// it for the hub, whatever the hub's scheme.
func proxyURL(d *draft, v string) error {
	d.Proxy.HTTPS, d.Proxy.HTTP = v, v
	return checkProxyURL(v)
}

// logLevel also takes the level names of the original.
func logLevel(d *draft, v string) error {
	switch l := strings.ToLower(v); l {
	case "debug", "info", "warn", "error":
		d.LogLevel = l
	case "warning":
		d.LogLevel = "warn"
	case "critical":
		d.LogLevel = "error"
	default:
		return fmt.Errorf("%q is not one of debug, info, warn, error", v)
	}
	return nil
}

// logFormat also takes the original's word for console.
func logFormat(d *draft, v string) error {
	switch v {
	case "json", "console":
		d.LogFormat = v
	case "plain":
		d.LogFormat = "console"
	default:
		return fmt.Errorf("%q is not one of json, console", v)
	}
	return nil
}

// splitList reads a comma list. An empty element is dropped, so that a
// trailing comma is no connector.
func splitList(v string) []string {
	out := []string{}
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// parseTarget reads host:port, where an IPv6 address has brackets.
func parseTarget(v string) (Target, error) {
	i := strings.LastIndexByte(v, ':')
	if i < 0 {
		return Target{}, fmt.Errorf("%q is not host:port", v)
	}
	host, err := trimBrackets(v[:i])
	if err != nil || host == "" {
		return Target{}, fmt.Errorf("%q is not host:port; an IPv6 address needs brackets", v)
	}
	if strings.Contains(host, ":") && v[0] != '[' {
		return Target{}, fmt.Errorf("%q is not host:port; an IPv6 address needs brackets", v)
	}
	port, err := parsePort(v[i+1:])
	return Target{Host: host, Port: port}, err
}

func parsePort(v string) (int, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535", v)
	}
	return int(n), nil
}

func trimBrackets(host string) (string, error) {
	inner, open := strings.CutPrefix(host, "[")
	inner, shut := strings.CutSuffix(inner, "]")
	if open != shut {
		return "", errors.New("unpaired bracket")
	}
	return inner, nil
}
