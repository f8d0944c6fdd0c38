package agent

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Flags holds what the command line said, until [Load] applies it on top of
// file and environment.
type Flags struct {
	Config  string // -config
	Check   bool   // -check
	Version bool   // -version

	settings []flagValue
	targets  []string // name=host:port
}

type flagValue struct {
	setting *setting
	value   string
}

// RegisterFlags defines the agent's flags on fs. There is none for a secret:
// other users of the machine can read argument lists.
func RegisterFlags(fs *flag.FlagSet) *Flags {
	f := new(Flags)
	fs.StringVar(&f.Config, "config", "", "configuration `file`, YAML or JSON; default NC_CONFIG")
	fs.BoolVar(&f.Check, "check", false, "read the configuration, say what is wrong with it, and exit")
	fs.BoolVar(&f.Version, "version", false, "print the version and exit")
	fs.Func("target", "serve a connector: `name=host:port`; repeatable", func(v string) error {
		f.targets = append(f.targets, v)
		return nil
	})
	for i := range settings {
		s := &settings[i]
		add := func(v string) error {
			f.settings = append(f.settings, flagValue{s, v})
			return nil
		}
		switch {
		case s.flag == "":
		case s.bool:
			fs.BoolFunc(s.flag, s.help, add)
		default:
			fs.Func(s.flag, s.help, add)
		}
	}
	return f
}

// Load reads the configuration file at path, then the NC_* variables in env
// (os.Environ's form), then flags; what comes later wins. An empty path means
// NC_CONFIG, and without that no file. An empty value counts as not set. The
// error lists every fault, each with its file and line, variable or flag.
func Load(path string, env []string, flags *Flags) (*Config, error) {
	l := &loader{origin: make(map[string]string), seen: make(map[string]string)}
	l.d.Targets = make(map[string]Target)
	l.d.healthHost, l.d.healthPort = DefaultHealthHost, DefaultHealthPort

	vars := parseEnv(env)
	if path == "" {
		path = vars["NC_CONFIG"]
	}
	if path != "" {
		if err := l.loadFile(path); err != nil {
			return nil, err
		}
	}
	clear(l.seen)
	l.loadEnv(vars)
	clear(l.seen)
	if flags != nil {
		l.loadFlags(flags)
	}
	return l.finish(vars)
}

// A loader merges the sources in order.
type loader struct {
	d      draft
	origin map[string]string // setting name: where its value came from
	seen   map[string]string // the same, for the source being read
	errs   []error
}

func (l *loader) fail(at, format string, args ...any) {
	l.errs = append(l.errs, fmt.Errorf("%s: "+format, append([]any{at}, args...)...))
}

func (l *loader) warn(at, format string, args ...any) {
	l.d.Warnings = append(l.d.Warnings, fmt.Sprintf("%s: "+format, append([]any{at}, args...)...))
}

// apply sets one setting from the place called at.
func (l *loader) apply(s *setting, value, at string) {
	if value == "" {
		return
	}
	if s.ignored != "" {
		l.warn(at, "has no effect here: %s", s.ignored)
		return
	}
	if before, ok := l.seen[s.name]; ok {
		l.fail(at, "already set as %s; keep one", before)
		return
	}
	l.seen[s.name], l.origin[s.name] = at, at
	if err := s.set(&l.d, value); err != nil {
		l.fail(at, "%w", err)
	}
}

func parseEnv(env []string) map[string]string {
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	return vars
}

func (l *loader) loadEnv(vars map[string]string) {
	for i := range settings {
		if s := &settings[i]; s.env != "" {
			l.apply(s, vars[s.env], s.env)
		}
	}
	l.loadEnvTargets(vars)
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		known := slices.ContainsFunc(settings, func(s setting) bool { return s.env == k })
		if strings.HasPrefix(k, "NC_") && !strings.HasPrefix(k, "NC_TARGET_") && !known && k != "NC_CONFIG" {
			l.warn(k, "unknown variable, ignored")
		}
	}
}

// envTarget is the prefix of the variables that hold a connector's target:
// upper case, and '_' for '.' and '-'.
func envTarget(connector string) string {
	return "NC_TARGET_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(connector))
}

// loadEnvTargets reads NC_TARGET_<name>_HOST and _PORT for every connector
// known so far, under its exact name or the mapped one.
func (l *loader) loadEnvTargets(vars map[string]string) {
	names := slices.Clone(l.d.Connectors)
	for name := range l.d.Targets {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	users := make(map[string]string) // variable: the connector that took it
	take := func(name, suffix string) (value, at string) {
		keys := slices.Compact([]string{envTarget(name) + suffix, "NC_TARGET_" + name + suffix})
		for _, key := range keys {
			v := vars[key]
			if v == "" {
				continue
			}
			if other, ok := users[key]; ok {
				l.fail(key, "fits the connectors %q and %q; use their exact names in the variables", other, name)
			}
			users[key] = name
			if at != "" && v != value {
				l.fail(key, "differs from %s; keep one", at)
			}
			value, at = v, key
		}
		return value, at
	}
	for _, name := range names {
		t := l.d.Targets[name]
		if host, at := take(name, "_HOST"); at != "" {
			l.setHost(&t, name, host, at)
		}
		if port, at := take(name, "_PORT"); at != "" {
			l.setPort(&t, name, port, at)
		}
		if t != (Target{}) {
			l.d.Targets[name] = t
		}
	}
	l.reportStrayTargets(vars, users)
}

// reportStrayTargets speaks up about target variables that no connector
// takes. With an explicit list of connectors that may be meant; without one
// it is a slip that would go unnoticed.
func (l *loader) reportStrayTargets(vars, users map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		if !strings.HasPrefix(k, "NC_TARGET_") || vars[k] == "" || users[k] != "" {
			continue
		}
		if l.d.Connectors != nil {
			l.warn(k, "belongs to no connector in the list, ignored")
		} else {
			l.fail(k, "belongs to no connector; name the connector in NC_CONNECTORS")
		}
	}
}

func (l *loader) setHost(t *Target, name, host, at string) {
	inner, err := trimBrackets(host)
	if err != nil {
		l.fail(at, "%q is not a host name or IP address", host)
		return
	}
	t.Host, l.origin["targets."+name] = inner, at
}

func (l *loader) setPort(t *Target, name, port, at string) {
	n, err := parsePort(port)
	if err != nil {
		l.fail(at, "%w", err)
		n = 1 // told already; validate need not tell it again
	}
	t.Port, l.origin["targets."+name] = n, at
}

func (l *loader) loadFlags(f *Flags) {
	for _, v := range f.settings {
		l.apply(v.setting, v.value, "-"+v.setting.flag)
	}
	for _, v := range f.targets {
		name, addr, ok := strings.Cut(v, "=")
		if !ok {
			l.fail("-target", "%q is not name=host:port", v)
			continue
		}
		t, err := parseTarget(addr)
		if err != nil {
			l.fail("-target "+name, "%w", err)
			continue
		}
		l.d.Targets[name] = t
		l.origin["targets."+name] = "-target " + name
		// Whoever names a target on the command line wants it served.
		if l.d.Connectors != nil && !slices.Contains(l.d.Connectors, name) {
			l.d.Connectors = append(l.d.Connectors, name)
		}
	}
}

// finish settles what depends on several settings and judges the whole.
func (l *loader) finish(vars map[string]string) (*Config, error) {
	l.useProxyVariables(vars)
	c := &l.d.Config
	if l.d.healthPort != 0 {
		c.HealthAddr = net.JoinHostPort(l.d.healthHost, strconv.Itoa(l.d.healthPort))
	}
	c.setDefaults()
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	if err := c.validate(l.where); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Targets)) {
		if !slices.Contains(c.Connectors, name) {
			l.warn(l.where("targets."+name), "connector %q is not in the list of connectors and will not be served", name)
		}
	}
	if u, _ := parseHubURL(c.URL); c.Insecure && u.tls {
		l.warn(l.where("insecure"), "has no effect on an https hub: its certificate is always verified")
	}
	if int64(c.MaxSessions)*firstWindow > c.Memory {
		l.warn(l.where("memory"), "%d bytes hold the first windows of %d sessions, max_sessions is %d; more will be refused",
			c.Memory, c.Memory/firstWindow, c.MaxSessions)
	}
	return c, nil
}

// useProxyVariables takes the proxy that the environment names, if the
// operator trusts it and named none.
func (l *loader) useProxyVariables(vars map[string]string) {
	find := func(name string) (value, at string) {
		for _, k := range []string{name, strings.ToLower(name)} {
			if vars[k] != "" {
				return vars[k], k
			}
		}
		return "", ""
	}
	httpsProxy, httpsAt := find("HTTPS_PROXY")
	httpProxy, httpAt := find("HTTP_PROXY")
	noProxy, _ := find("NO_PROXY")
	switch p := &l.d.Proxy; {
	case p.HTTPS != "": // an explicit one stands
	case l.d.trustEnv:
		p.HTTPS, p.HTTP = httpsProxy, httpProxy
		l.origin["https_proxy"], l.origin["http_proxy"] = httpsAt, httpAt
		if p.NoProxy == "" {
			p.NoProxy = noProxy
		}
	case httpsProxy != "":
		l.warn(httpsAt, "is set and not used; NC_TRUST_ENV=true or proxy.trust_env uses it")
	}
}

// where tells where a setting came from, or how to give it.
func (l *loader) where(name string) string {
	if at := l.origin[name]; at != "" {
		return at
	}
	if rest, ok := strings.CutPrefix(name, "targets"); ok {
		if rest == "" {
			return "targets, NC_CONNECTORS or -target"
		}
		return name
	}
	for _, s := range settings {
		if s.name != name {
			continue
		}
		var ways []string
		for _, w := range []string{s.key, s.env, "-" + s.flag} {
			if len(w) > 1 {
				ways = append(ways, w)
			}
		}
		if n := len(ways); n > 1 {
			return strings.Join(ways[:n-1], ", ") + " or " + ways[n-1]
		}
		return strings.Join(ways, "")
	}
	return name
}

// firstWindow is what the hub may send to a session before it is granted
// more, in bytes.
const firstWindow = 64 << 10
