package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// Carriers that Config.Carrier may name.
const (
	CarrierAuto      = "auto"      // native, falling back to WebSocket by itself
	CarrierNative    = "native"    // frames straight on the upgraded connection, or nothing
	CarrierWebSocket = "websocket" // always WebSocket
)

// Defaults for what a Config leaves zero.
const (
	DefaultPingInterval     = 20 * time.Second
	DefaultPingTimeout      = 20 * time.Second
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultBackoffMin       = 200 * time.Millisecond
	DefaultBackoffMax       = 30 * time.Second
	DefaultConnectTimeout   = 3 * time.Second
	DefaultDrainTimeout     = 30 * time.Second
	DefaultMaxSessions      = 2000
	DefaultMemory           = 256 << 20
	DefaultHealthHost       = "0.0.0.0"
	DefaultHealthPort       = 8090
	DefaultPath             = "/tunnel"
)

// Config is all that an agent is told. [Load] builds one from a file, the
// environment and flags; a Config made by hand needs URL, AgentID, Targets and
// a TokenFile or a client certificate, and gets the defaults above for the rest. docs/agent.md
// describes each field from the operator's side.
type Config struct {
	// URL is the hub's agent endpoint: https, wss, http or ws. Without a path
	// it means /tunnel.
	URL     string
	AgentID string
	// TokenFile holds the bearer token. It is read at each connect and watched
	// while a link is up, so that a rotated token needs no restart; surrounding
	// white space is cut.
	TokenFile string
	// ClientCert and ClientKey are PEM files with a TLS client certificate, its
	// chain behind it, and its key. They are read and watched likewise.
	ClientCert, ClientKey string
	// Connectors are announced to the hub; nil means every target.
	Connectors []string
	// Targets maps a connector to what is dialed for it. Nothing else is.
	Targets map[string]Target

	// Links is how many connections to the hub the agent holds. 0 leaves it to
	// the agent: 2 to a hub near by, more to one far away (links.go).
	Links   int
	Carrier string // one of the Carrier constants; empty is CarrierAuto
	// CongestionControl of links' sockets, as [tunnel.CheckCongestionControl]
	// has it; empty is tunnel.CongestionAuto.
	CongestionControl string

	PingInterval     time.Duration // between pings on an idle link
	PingTimeout      time.Duration // a ping without an answer for so long ends the link
	HandshakeTimeout time.Duration // from the first packet to HELLO_ACK, per carrier tried
	BackoffMin       time.Duration
	BackoffMax       time.Duration
	// Insecure permits a plain HTTP hub that is not loopback: token and
	// traffic are readable on the way. It never turns off certificate checks.
	Insecure bool

	// CABundle is a PEM file whose certificates are trusted instead of the
	// system's, for the hub and for an https proxy. Read at each connect.
	CABundle string
	// ServerName is expected in the hub's certificate; empty is URL's host.
	ServerName string
	Proxy      Proxy

	ConnectTimeout time.Duration // bounds each target dial; the hub may ask for less
	MaxSessions    int           // over all links; more are refused with limit
	Memory         int64         // receive windows of all sessions together, in bytes
	DrainTimeout   time.Duration // what live sessions get after a stop signal

	// HealthAddr is where the health port listens; empty means none ([Load]
	// fills in 0.0.0.0:8090).
	HealthAddr string

	LogLevel  string // debug, info, warn or error; for the command, not used here
	LogFormat string // json or console; for the command, not used here

	// Software is sent to the hub for its logs: name and version.
	Software string

	// Warnings are remarks about the configuration that did not make it
	// wrong. New logs them.
	Warnings []string
}

// Target is a TCP service in the agent's network.
type Target struct {
	Host string // name or IP address, without brackets
	Port int
}

// String returns host:port, with brackets around an IPv6 address.
func (t Target) String() string { return net.JoinHostPort(t.Host, strconv.Itoa(t.Port)) }

// Proxy tells how the hub is reached. A loopback hub is never proxied.
type Proxy struct {
	// HTTP is the proxy for plain http hubs and HTTPS the one for https hubs,
	// as URLs; credentials in them are sent as basic auth and never logged.
	HTTP, HTTPS string
	// NoProxy lists hosts, domains and networks that are reached directly, as
	// in the NO_PROXY variable.
	NoProxy string
}

// setDefaults fills in what was left zero.
func (c *Config) setDefaults() {
	c.CongestionControl = cmp.Or(c.CongestionControl, tunnel.CongestionAuto)
	c.Carrier = cmp.Or(c.Carrier, CarrierAuto)
	c.PingInterval = cmp.Or(c.PingInterval, DefaultPingInterval)
	c.PingTimeout = cmp.Or(c.PingTimeout, DefaultPingTimeout)
	c.HandshakeTimeout = cmp.Or(c.HandshakeTimeout, DefaultHandshakeTimeout)
	c.BackoffMin = cmp.Or(c.BackoffMin, DefaultBackoffMin)
	c.BackoffMax = cmp.Or(c.BackoffMax, DefaultBackoffMax)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, DefaultConnectTimeout)
	c.MaxSessions = cmp.Or(c.MaxSessions, DefaultMaxSessions)
	c.Memory = cmp.Or(c.Memory, DefaultMemory)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, DefaultDrainTimeout)
	c.LogLevel = cmp.Or(c.LogLevel, "info")
	c.LogFormat = cmp.Or(c.LogFormat, "json")
	if c.Connectors == nil {
		c.Connectors = slices.Sorted(maps.Keys(c.Targets))
	}
}

// validate reports every fault that shows only when all sources are merged.
// where names the place a field came from, for the message.
func (c *Config) validate(where func(setting string) string) error {
	return errors.Join(
		c.validateHub(where),
		c.validateTargets(where),
		c.validateBounds(where),
	)
}

func (c *Config) validateHub(where func(string) string) error {
	var errs []error
	if u, err := parseHubURL(c.URL); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", where("url"), err))
	} else if !u.tls && !u.loopback && !c.Insecure {
		errs = append(errs, fmt.Errorf("%s: %s would send the token and all traffic in clear text; "+
			"use https, or permit it with tunnel.insecure, NC_INSECURE or -insecure", where("url"), u))
	}
	if c.AgentID == "" {
		errs = append(errs, fmt.Errorf("%s: no agent id; give this agent the name that the hub knows it by", where("agent_id")))
	} else if err := checkName(c.AgentID); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", where("agent_id"), err))
	}
	errs = append(errs, c.validateCredential(where))
	for name, p := range map[string]string{"https_proxy": c.Proxy.HTTPS, "http_proxy": c.Proxy.HTTP} {
		if err := checkProxyURL(p); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where(name), err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateCredential(where func(string) string) error {
	switch u, err := parseHubURL(c.URL); {
	case c.TokenFile == "" && c.ClientCert == "" && c.ClientKey == "":
		return fmt.Errorf("%s: no token file; name the file that holds this agent's token, or a client certificate", where("token_file"))
	case c.ClientCert == "" && c.ClientKey != "":
		return fmt.Errorf("%s: a key without a certificate; name the certificate's file too", where("client_key"))
	case c.ClientCert != "" && c.ClientKey == "":
		return fmt.Errorf("%s: a certificate without its key; name the key's file too", where("client_cert"))
	case c.ClientCert != "" && err == nil && !u.tls:
		return fmt.Errorf("%s: a client certificate needs TLS, and %s has none", where("client_cert"), u)
	}
	return nil
}

func (c *Config) validateTargets(where func(string) string) error {
	var errs []error
	if len(c.Connectors) == 0 {
		errs = append(errs, fmt.Errorf("%s: nothing to serve; map at least one connector to a target", where("targets")))
	}
	if len(c.Connectors) > wire.MaxConnectors {
		errs = append(errs, fmt.Errorf("%s: %d connectors, at most %d", where("connectors"), len(c.Connectors), wire.MaxConnectors))
	}
	for i, name := range c.Connectors {
		if slices.Contains(c.Connectors[:i], name) {
			errs = append(errs, fmt.Errorf("%s: connector %q is listed twice", where("connectors"), name))
		} else if _, ok := c.Targets[name]; !ok {
			errs = append(errs, fmt.Errorf("%s: connector %q has no target; set targets.%s or %s_HOST and %s_PORT",
				where("connectors"), name, name, envTarget(name), envTarget(name)))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Targets)) {
		t, at := c.Targets[name], where("targets."+name)
		if err := checkName(name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
		}
		if t.Host == "" {
			errs = append(errs, fmt.Errorf("%s: no host; say where connector %q leads", at, name))
		} else if strings.ContainsAny(t.Host, " \t\r\n/[]@") {
			errs = append(errs, fmt.Errorf("%s: %q is not a host name or IP address", at, t.Host))
		}
		if t.Port < 1 || t.Port > 65535 {
			errs = append(errs, fmt.Errorf("%s: no port from 1 to 65535; say where connector %q leads", at, name))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateBounds(where func(string) string) error {
	var errs []error
	fail := func(setting, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{where(setting)}, args...)...))
	}
	if c.Links < 0 || c.Links > wire.MaxLinks {
		fail("links", "%d links, not 1 to %d, and not 0 for auto", c.Links, wire.MaxLinks)
	}
	if !slices.Contains([]string{CarrierAuto, CarrierNative, CarrierWebSocket}, c.Carrier) {
		fail("carrier", "%q is not auto, native or websocket", c.Carrier)
	}
	if err := tunnel.CheckCongestionControl(c.CongestionControl); err != nil {
		fail("congestion_control", "%w", err)
	}
	if c.BackoffMax < c.BackoffMin {
		fail("backoff_max", "%v is less than backoff_min, %v", c.BackoffMax, c.BackoffMin)
	}
	for name, d := range map[string]time.Duration{
		"ping_interval": c.PingInterval, "ping_timeout": c.PingTimeout, "handshake_timeout": c.HandshakeTimeout,
		"backoff_min": c.BackoffMin, "connect_timeout": c.ConnectTimeout,
	} {
		if d < time.Millisecond {
			fail(name, "%v is too short; at least 1ms", d)
		}
	}
	if c.DrainTimeout < 0 {
		fail("drain_timeout", "%v is negative", c.DrainTimeout)
	}
	if c.MaxSessions < 1 {
		fail("max_sessions", "%d is not positive", c.MaxSessions)
	}
	if c.Memory < minMemory {
		fail("memory", "%d bytes are too few; at least 1MiB", c.Memory)
	}
	if c.HealthAddr != "" {
		if _, _, err := net.SplitHostPort(c.HealthAddr); err != nil {
			fail("health_host", "%q is not host:port", c.HealthAddr)
		}
	}
	return errors.Join(errs...)
}

// checkName says about a name in the configuration what wire says about one in
// a handshake.
func checkName(s string) error {
	if wire.CheckName(s) == nil {
		return nil
	}
	return fmt.Errorf("%q cannot be a name: 1 to %d letters, digits, '.', '-' and '_', the first no '.' or '-'", s, wire.MaxName)
}

// minMemory leaves room for a few sessions' first windows.
const minMemory = 1 << 20

// hubURL is where the hub listens.
type hubURL struct {
	tls      bool
	loopback bool
	host     string // without brackets
	addr     string // host:port
	path     string // as sent in the request
	header   string // Host header: without a default port
}

// String returns the URL for logs. It cannot hold a secret: parseHubURL
// refuses user information and queries.
func (u hubURL) String() string {
	scheme := "http"
	if u.tls {
		scheme = "https"
	}
	return scheme + "://" + u.header + u.path
}

// parseHubURL reads a hub's URL. Its errors do not repeat the URL, which may
// hold a password that was put there by mistake.
func parseHubURL(raw string) (hubURL, error) {
	if raw == "" {
		return hubURL{}, errors.New("no hub URL; write for example https://hub.example.com/tunnel")
	}
	p, err := url.Parse(raw)
	if err != nil || p.Hostname() == "" {
		return hubURL{}, errors.New("not a URL; write for example https://hub.example.com/tunnel")
	}
	u := hubURL{host: p.Hostname(), header: p.Host, path: p.EscapedPath()}
	port := p.Port()
	switch p.Scheme {
	case "https", "wss":
		u.tls = true
		port = cmp.Or(port, "443")
	case "http", "ws":
		port = cmp.Or(port, "80")
	default:
		return hubURL{}, fmt.Errorf("scheme %q is not https, wss, http or ws", p.Scheme)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return hubURL{}, fmt.Errorf("port %s is not from 1 to 65535", port)
	}
	switch {
	case p.User != nil:
		return hubURL{}, errors.New("holds a user name or password; the agent's secret belongs into its token file")
	case p.RawQuery != "" || p.ForceQuery || p.Fragment != "":
		return hubURL{}, errors.New("has a query or fragment; only scheme, host, port and path are used")
	}
	switch {
	case u.path == "" || u.path == "/":
		u.path = DefaultPath
	case strings.HasPrefix(u.path, "//"):
		return hubURL{}, errors.New("path begins with two slashes")
	}
	u.addr = net.JoinHostPort(u.host, port)
	u.loopback = isLoopback(u.host)
	return u, nil
}

// isLoopback reports whether host cannot leave this machine.
func isLoopback(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

// parseProxyURL reads a proxy's URL; without a scheme it means http. As with
// the hub's, errors do not repeat it.
func parseProxyURL(raw string) (*url.URL, error) {
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	p, err := url.Parse(raw)
	if err != nil || p.Hostname() == "" {
		return nil, errors.New("not a proxy URL; write for example http://proxy.example.com:3128")
	}
	if p.Scheme != "http" && p.Scheme != "https" {
		return nil, fmt.Errorf("proxy scheme %q is not http or https; the proxy must know the CONNECT method", p.Scheme)
	}
	return p, nil
}

func checkProxyURL(raw string) error {
	if raw == "" {
		return nil
	}
	_, err := parseProxyURL(raw)
	return err
}
