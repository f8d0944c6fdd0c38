package rules

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"

	"github.com/nowconnect/nowconnect/internal/rules"
)

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	rules {
//		file          <path>
//		poll_interval <duration>
//		allow [<id>] {
//			connector  <name>...
//			action     <action>...
//			source     <network>|<address>...
//			time       [<weekday>[-<weekday>]...] [<HH:MM>-<HH:MM>...]
//			time_zone  <zone>
//			sni        <name>...
//			client_san dns:<name>|uri:<uri>|email:<address>...
//			agent      <id>...
//			expression <cel>
//			max_duration <duration>
//			max_bytes    <size>
//		}
//		deny [<id>] { ... }
//	}
//
// allow, deny, and time in them, may stand several times, everything else once.
func (p *Rules) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the module's name
	if d.NextArg() {
		return d.Err("pdp rules takes a block and no arguments")
	}
	start, name := d.Line(), d.File()
	var read reader
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word := d.Val()
		switch word {
		case rules.EffectAllow, rules.EffectDeny:
			if err := read.rule(d); err != nil {
				return err
			}
			continue
		case "file":
			if p.File != "" {
				return d.Err("file twice in the same block")
			}
			if !d.AllArgs(&p.File) || p.File == "" {
				return d.Err("file takes one path")
			}
		case "poll_interval":
			if err := p.readInterval(d); err != nil {
				return err
			}
		default:
			return d.Errf("unrecognized option %q of pdp rules", word)
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", word)
		}
	}
	if len(read.rules) == 0 && p.File == "" {
		return fmt.Errorf("%w, at %s:%d", errEmpty, name, start)
	}
	p.Rules = read.rules
	_, err := rules.Compile(nil, rules.Source{Rules: p.Rules})
	return located(err, name, "", read.line)
}

func (p *Rules) readInterval(d *caddyfile.Dispenser) error {
	var s string
	if p.PollInterval != 0 {
		return d.Err("poll_interval twice in the same block")
	}
	if !d.AllArgs(&s) {
		return d.Err("poll_interval takes one value")
	}
	v, err := caddy.ParseDuration(s)
	if err != nil || v < minPoll {
		return d.Errf("poll_interval %q is not a duration of %s or more", s, minPoll)
	}
	p.PollInterval = caddy.Duration(v)
	return nil
}

// parseBlocks reads a file of allow and deny blocks.
func parseBlocks(path string, b []byte) ([]rules.Rule, locator, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil, nil // the tokenizer would call it an unexpected end
	}
	tokens, err := caddyfile.Tokenize(b, path)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := checkBraces(path, tokens); err != nil {
		return nil, nil, err
	}
	var read reader
	for d := caddyfile.NewDispenser(tokens); d.Next(); {
		if word := d.Val(); word != rules.EffectAllow && word != rules.EffectDeny {
			return nil, nil, d.Errf("%q is neither allow nor deny", word)
		}
		if err := read.rule(d); err != nil {
			return nil, nil, err
		}
	}
	return read.rules, read.line, nil
}

// checkBraces finds a block without an end, which the dispenser takes as ended:
// half a file must not count as a whole one.
func checkBraces(path string, tokens []caddyfile.Token) error {
	var open []int
	for _, t := range tokens {
		switch {
		case t.Quoted():
		case t.Text == "{":
			open = append(open, t.Line)
		case t.Text == "}" && len(open) == 0:
			return fmt.Errorf("%s:%d: } without {", path, t.Line)
		case t.Text == "}":
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("%s:%d: { without }", path, open[len(open)-1])
	}
	return nil
}

// locator tells the line of a rule, or of one field in it.
type locator func(index int, field string) int

// located adds file and line to an error about a rule of one source.
func located(err error, file, prefix string, line locator) error {
	var re *rules.RuleError
	if !errors.As(err, &re) || re.Prefix != prefix {
		return err
	}
	field := ""
	if fe := (*rules.FieldError)(nil); errors.As(err, &fe) {
		field = fe.Field
	}
	return fmt.Errorf("%w, at %s:%d", err, file, line(re.Index, field))
}

// reader collects rules and where their words stand.
type reader struct {
	rules []rules.Rule
	lines []map[string]int // by JSON name of the field
}

func (r *reader) line(index int, field string) int {
	if n := r.lines[index][field]; n > 0 {
		return n
	}
	return r.lines[index]["effect"]
}

// rule reads one, of which the current token is the effect.
func (r *reader) rule(d *caddyfile.Dispenser) error {
	rule := rules.Rule{Effect: d.Val()}
	lines := map[string]int{"effect": d.Line(), "id": d.Line()}
	switch args := d.RemainingArgs(); len(args) {
	case 0:
	case 1:
		rule.ID = args[0]
	default:
		return d.Errf("%s takes one id and a block", rule.Effect)
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word, line := d.Val(), d.Line()
		o, ok := options[word]
		if !ok {
			return d.Errf("unrecognized option %q of %s", word, rule.Effect)
		}
		if _, again := lines[o.field]; again && word != "time" {
			return d.Errf("%s twice in the same rule", word)
		}
		lines[o.field] = line
		if err := readOption(d, word, o, &rule); err != nil {
			return err
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", word)
		}
	}
	r.rules = append(r.rules, rule)
	r.lines = append(r.lines, lines)
	return nil
}

// readOption reads one option and checks it by itself, where its line is known.
func readOption(d *caddyfile.Dispenser, word string, o optionReader, rule *rules.Rule) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s needs a value", word)
	}
	if o.single && len(args) > 1 {
		return d.Errf("%s takes one value; quote one with spaces", word)
	}
	for _, a := range args {
		if a == "" {
			return d.Errf("%s has an empty value", word)
		}
	}
	if word == "max_bytes" { // the only value with a unit
		n, err := humanize.ParseBytes(args[0])
		if err != nil || n < 1 || n > math.MaxInt64 {
			return d.Errf("max_bytes %q is not a size such as 10GiB", args[0])
		}
		args = []string{strconv.FormatUint(n, 10)}
	}
	o.set(rule, args)
	alone := rules.Rule{Effect: rules.EffectDeny}
	o.set(&alone, args)
	if o.permits { // and a rule that denies may not have it
		alone = rules.Rule{Effect: rules.EffectAllow, Sources: []string{"::/0"}}
		o.set(&alone, args)
	}
	if word == "time_zone" { // is about times
		if _, err := time.LoadLocation(args[0]); err != nil {
			return d.Errf("time_zone: %v", err)
		}
		return nil
	}
	if err := rules.Check(alone); err != nil {
		return d.Errf("%s: %v", word, errors.Unwrap(err))
	}
	return nil
}

// optionReader puts an option's values into the field of that JSON name.
type optionReader struct {
	field   string
	single  bool
	permits bool // it is about what an allow permits
	set     func(r *rules.Rule, args []string)
}

var options = map[string]optionReader{
	"connector":  {field: "connectors", set: func(r *rules.Rule, args []string) { r.Connectors = args }},
	"action":     {field: "actions", set: func(r *rules.Rule, args []string) { r.Actions = args }},
	"source":     {field: "sources", set: func(r *rules.Rule, args []string) { r.Sources = args }},
	"time":       {field: "times", set: func(r *rules.Rule, args []string) { r.Times = append(r.Times, timeOf(args)) }},
	"time_zone":  {field: "time_zone", single: true, set: func(r *rules.Rule, args []string) { r.TimeZone = args[0] }},
	"sni":        {field: "sni", set: func(r *rules.Rule, args []string) { r.SNI = args }},
	"client_san": {field: "client_sans", set: func(r *rules.Rule, args []string) { r.ClientSANs = args }},
	"agent":      {field: "agents", set: func(r *rules.Rule, args []string) { r.Agents = args }},
	"expression": {field: "expression", single: true, set: func(r *rules.Rule, args []string) { r.Expression = args[0] }},

	"max_duration": {field: "max_duration", single: true, permits: true, set: func(r *rules.Rule, args []string) { r.MaxDuration = args[0] }},
	"max_bytes": {field: "max_bytes", single: true, permits: true, set: func(r *rules.Rule, args []string) {
		r.MaxBytes, _ = strconv.ParseInt(args[0], 10, 64) // readOption has checked it
	}},
}

// timeOf sorts a line's words: those with a colon are hours.
func timeOf(words []string) (t rules.Time) {
	for _, w := range words {
		if strings.Contains(w, ":") {
			t.Hours = append(t.Hours, w)
		} else {
			t.Weekdays = append(t.Weekdays, w)
		}
	}
	return t
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Rules)(nil)
