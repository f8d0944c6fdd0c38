package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
)

// ReasonDefault is the reason when no rule had anything to say.
const ReasonDefault = "default_deny"

// Source is where rules come from: a prefix for the ids of those without one,
// and the rules.
type Source struct {
	Prefix string
	Rules  []Rule
}

// RuleError is a mistake in one rule.
type RuleError struct {
	Prefix string // of the source
	Index  int    // in the source
	ID     string
	Err    error
}

// Error implements error.
func (e *RuleError) Error() string {
	return fmt.Sprintf("rule %d (%q): %v", e.Index+1, e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *RuleError) Unwrap() error { return e.Err }

// Set is a compiled set of rules.
type Set struct {
	hash      string
	ids       []string
	connector map[string]*lists // by connector, for those that a rule names
	rest      *lists            // for all others
}

// lists are the rules that can apply to one connector.
type lists struct {
	deny, allow []*compiled
}

// Compile makes a set of rules from several sources, whose order does not
// matter. knows, when not nil, tells whether a connector exists. The error is a
// *RuleError.
func Compile(knows func(connector string) bool, sources ...Source) (*Set, error) {
	s := &Set{connector: make(map[string]*lists), rest: new(lists)}
	digest := sha256.New()
	seen := make(map[string]bool)
	var all []*compiled
	for _, src := range sources {
		for i := range src.Rules {
			r := src.Rules[i]
			if r.ID == "" {
				r.ID = fmt.Sprintf("%s%s-%d", src.Prefix, r.Effect, i+1)
			}
			c, err := compile(&r, knows)
			if err == nil && seen[r.ID] {
				err = fieldErrorf("id", "another rule has it")
			}
			if err != nil {
				return nil, &RuleError{src.Prefix, i, r.ID, err}
			}
			seen[r.ID] = true
			b, err := json.Marshal(r)
			if err != nil {
				return nil, &RuleError{src.Prefix, i, r.ID, err}
			}
			digest.Write(append(b, '\n'))
			s.ids = append(s.ids, r.ID)
			all = append(all, c)
		}
	}
	s.hash = hex.EncodeToString(digest.Sum(nil)[:6])
	s.index(all)
	return s, nil
}

// index sorts rules by the connectors that they are about.
func (s *Set) index(all []*compiled) {
	for _, c := range all {
		for _, name := range c.connectors {
			s.connector[name] = new(lists)
		}
	}
	for _, c := range all {
		if len(c.connectors) == 0 {
			s.rest.add(c)
		}
		for name, l := range s.connector {
			if len(c.connectors) == 0 || slices.Contains(c.connectors, name) {
				l.add(c)
			}
		}
	}
}

func (l *lists) add(c *compiled) {
	if c.deny {
		l.deny = append(l.deny, c)
	} else {
		l.allow = append(l.allow, c)
	}
}

// Check finds mistakes in one rule. The error is a *FieldError.
func Check(r Rule) error {
	_, err := compile(&r, nil)
	return err
}

// Hash identifies what the rules say: twelve hexadecimal digits.
func (s *Set) Hash() string { return s.hash }

// Len returns the number of rules.
func (s *Set) Len() int { return len(s.ids) }

// compiled is a rule that can be asked. It is read-only.
type compiled struct {
	id         string
	deny       bool
	connectors []string
	actions    []string // nil: all
	sources    []netip.Prefix
	schedule   *schedule
	sni        []hostPattern
	sans       []sanPattern
	agents     []string
	expression *expression

	maxDuration time.Duration // 0: no bound
	maxBytes    int64
}

func compile(r *Rule, knows func(string) bool) (*compiled, error) {
	c := &compiled{id: r.ID, connectors: r.Connectors, agents: r.Agents}
	switch r.Effect {
	case EffectAllow:
	case EffectDeny:
		c.deny = true
	default:
		return nil, fieldErrorf("effect", "%q is neither allow nor deny", r.Effect)
	}
	if r.ID != "" {
		if err := checkName(r.ID); err != nil {
			return nil, &FieldError{"id", err}
		}
		if r.ID == ReasonDefault {
			return nil, fieldErrorf("id", "%s is the reason when no rule applies", ReasonDefault)
		}
	}
	if err := c.compileNames(r, knows); err != nil {
		return nil, err
	}
	var err error
	if c.actions, err = actionsOf(r); err != nil {
		return nil, &FieldError{"actions", err}
	}
	if c.sources, err = parseSources(r.Sources); err != nil {
		return nil, &FieldError{"sources", err}
	}
	if c.schedule, err = newSchedule(r.Times, r.TimeZone); err != nil {
		return nil, err
	}
	if c.sni, err = parseAll(r.SNI, parseHost); err != nil {
		return nil, &FieldError{"sni", err}
	}
	if c.sans, err = parseAll(r.ClientSANs, parseSAN); err != nil {
		return nil, &FieldError{"client_sans", err}
	}
	if r.Expression != "" {
		if c.expression, err = newExpression(r.Expression); err != nil {
			return nil, &FieldError{"expression", err}
		}
	}
	if err := c.compileObligations(r); err != nil {
		return nil, err
	}
	if !c.deny && !c.conditional() {
		return nil, fieldErrorf("effect", "allow without a condition lets everybody in; if that is meant, write the sources 0.0.0.0/0 and ::/0")
	}
	return c, nil
}

// actions are all that there are.
var actions = []string{
	authz.ActionConnect, "group.members.read", "group.members.add", "group.members.remove", "group.members.replace",
}

// actionsOf returns what the rule is about; nil is everything.
func actionsOf(r *Rule) ([]string, error) {
	if r.Actions == nil {
		if r.Effect == EffectAllow {
			return []string{authz.ActionConnect}, nil
		}
		return nil, nil
	}
	if len(r.Actions) == 0 {
		return nil, errors.New("empty list")
	}
	for i, a := range r.Actions {
		if !slices.Contains(actions, a) {
			return nil, fmt.Errorf("%q is not one of %q", a, actions)
		}
		if slices.Contains(r.Actions[:i], a) {
			return nil, fmt.Errorf("%q twice", a)
		}
	}
	return r.Actions, nil
}

func (c *compiled) compileNames(r *Rule, knows func(string) bool) error {
	if err := checkNames(r.Connectors); err != nil {
		return &FieldError{"connectors", err}
	}
	for _, name := range r.Connectors {
		if knows != nil && !knows(name) {
			return fieldErrorf("connectors", "there is no connector %q", name)
		}
	}
	if err := checkNames(r.Agents); err != nil {
		return &FieldError{"agents", err}
	}
	return nil
}

// compileObligations reads what a permit is given under.
func (c *compiled) compileObligations(r *Rule) error {
	if r.MaxDuration != "" {
		var err error
		if c.maxDuration, err = time.ParseDuration(r.MaxDuration); err != nil || c.maxDuration < time.Second {
			return fieldErrorf("max_duration", "%q is not a duration of a second or more, such as 8h", r.MaxDuration)
		}
	}
	if c.maxBytes = r.MaxBytes; c.maxBytes < 0 {
		return fieldErrorf("max_bytes", "%d is negative", c.maxBytes)
	}
	if c.deny && c.maxDuration != 0 {
		return fieldErrorf("max_duration", "a rule that denies permits nothing")
	}
	if c.deny && c.maxBytes != 0 {
		return fieldErrorf("max_bytes", "a rule that denies permits nothing")
	}
	return nil
}

// conditional reports whether anything but the connector restricts the rule.
func (c *compiled) conditional() bool {
	return len(c.sources) > 0 || c.schedule != nil || len(c.sni) > 0 || len(c.sans) > 0 || len(c.agents) > 0 || c.expression != nil
}

func parseAll[T any](words []string, parse func(string) (T, error)) ([]T, error) {
	if words == nil {
		return nil, nil
	}
	if len(words) == 0 {
		return nil, errors.New("empty list")
	}
	all := make([]T, 0, len(words))
	for _, w := range words {
		p, err := parse(w)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// Decide answers r. An Allow has a lease up to the next moment at which a
// schedule could change the answer.
func (s *Set) Decide(r *authz.Request) authz.Decision {
	d := authz.Decision{Outcome: authz.Deny, Reason: ReasonDefault, Policy: s.hash}
	if r.Resource.Type != "connector" {
		return d // rules are about connectors
	}
	l, ok := s.connector[r.Resource.ID]
	if !ok {
		l = s.rest
	}
	f := facts{r: r}
	var doubt *compiled
	for _, c := range l.deny {
		switch c.match(&f) {
		case yes:
			d.Reason = c.id
			return d
		case unknown:
			if doubt == nil {
				doubt = c
			}
		}
	}
	if doubt != nil {
		return s.inDoubt(doubt, r)
	}
	for _, c := range l.allow {
		switch c.match(&f) {
		case yes:
			d.Outcome, d.Reason, d.Lease = authz.Allow, c.id, f.lease()
			d.MaxDuration, d.MaxBytes = c.maxDuration, c.maxBytes
			return d
		case unknown:
			if doubt == nil {
				doubt = c
			}
		}
	}
	if doubt != nil {
		return s.inDoubt(doubt, r)
	}
	return d
}

// inDoubt asks the rule once more, this time for what it misses.
func (s *Set) inDoubt(c *compiled, r *authz.Request) authz.Decision {
	f := facts{r: r, explain: true}
	c.match(&f)
	return authz.Decision{Reason: c.id, Policy: s.hash, Err: fmt.Errorf("rule %q cannot be decided: %w", c.id, errors.Join(f.why...))}
}

// verdict is what a condition, or a rule as a whole, comes to.
type verdict uint8

const (
	no verdict = iota
	yes
	unknown // the request does not tell
)

// match asks all conditions: one that does not hold settles it, also when
// another cannot be decided. The schedule comes last of the cheap ones, so that
// only rules that otherwise apply shorten the lease.
func (c *compiled) match(f *facts) verdict {
	v := yes
	if c.actions != nil && !slices.Contains(c.actions, f.r.Action.Name) {
		return no
	}
	if c.sources != nil {
		v = worse(v, f.fromAny(c.sources))
	}
	if v != no && c.sni != nil {
		v = worse(v, f.asksForAny(c.sni))
	}
	if v != no && c.sans != nil {
		v = worse(v, f.hasAny(c.sans))
	}
	if v != no && c.agents != nil {
		v = worse(v, f.servedByAny(c.agents))
	}
	if v != no && c.schedule != nil {
		v = worse(v, f.within(c.schedule))
	}
	if v != no && c.expression != nil {
		v = worse(v, f.holds(c.expression))
	}
	return v
}

func worse(a, b verdict) verdict {
	switch {
	case a == no || b == no:
		return no
	case a == unknown:
		return a
	}
	return b
}

// expressionLease bounds a permit that came from, or past, an expression about
// the time: when that changes cannot be told beforehand.
const expressionLease = time.Minute
