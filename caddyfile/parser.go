package caddyfile

import (
	"math"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// option reads one option, its name being the current token, up to its last
// token.
type option func(d *caddyfile.Dispenser) error

// parser reads a block of options.
type parser struct {
	options    map[string]option // at most once each
	repeatable map[string]option
}

// parse reads the block that begins after the current token. block is what the
// user calls it.
func (p parser) parse(d *caddyfile.Dispenser, block string) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		word := d.Val()
		read, once := p.options[word]
		if !once {
			read = p.repeatable[word]
		}
		switch {
		case read == nil:
			return d.Errf("unrecognized option %q of %s", word, block)
		case once && seen[word]:
			return d.Errf("%s twice in the same block", word)
		}
		seen[word] = true
		if err := read(d); err != nil {
			return err
		}
		if d.NextBlock(nesting + 1) {
			return d.Errf("%s takes no block", word)
		}
	}
	return nil
}

// value reads the one value of the option that is the current token.
func value(d *caddyfile.Dispenser) (string, error) {
	what := d.Val()
	var s string
	if !d.AllArgs(&s) {
		return "", d.Errf("%s takes one value", what)
	}
	return s, nil
}

func name(field *string) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		if err := nowconnect.CheckName(s); err != nil {
			return d.Errf("%s: %v", what, err)
		}
		*field = s
		return nil
	}
}

func congestionControl(field *string) option {
	return func(d *caddyfile.Dispenser) error {
		s, err := value(d)
		if err != nil {
			return err
		}
		if err := tunnel.CheckCongestionControl(s); err != nil {
			return d.Errf("congestion_control %v", err)
		}
		*field = s
		return nil
	}
}

func count(field *int) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return d.Errf("%s %q is not a count of 1 or more", what, s)
		}
		*field = n
		return nil
	}
}

// size reads bytes, with a unit or without.
func size(field *int64) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		n, err := humanize.ParseBytes(s)
		if err != nil || n < 1 || n > math.MaxInt64 {
			return d.Errf("%s %q is not a size such as 256MiB", what, s)
		}
		*field = int64(n)
		return nil
	}
}

func duration(field *caddy.Duration) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		v, err := caddy.ParseDuration(s)
		if err != nil || v <= 0 {
			return d.Errf("%s %q is not a duration above zero, such as 20s", what, s)
		}
		*field = caddy.Duration(v)
		return nil
	}
}

// durationOrOff reads a duration, or "off", which is the zero value, said for
// the reader.
func durationOrOff(field *caddy.Duration) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		if s == "off" {
			return nil
		}
		v, err := caddy.ParseDuration(s)
		if err != nil || v <= 0 {
			return d.Errf("%s %q is neither a duration above zero, such as 30m, nor off", what, s)
		}
		*field = caddy.Duration(v)
		return nil
	}
}

// durationOrMinus reads a duration, or "off", which is -1: there 0 means the
// default.
func durationOrMinus(field *caddy.Duration) option {
	read := durationOrOff(field)
	return func(d *caddyfile.Dispenser) error {
		err := read(d)
		if err == nil && *field == 0 {
			*field = -1
		}
		return err
	}
}

// part reads a number from 0 to 1.
func part(field **float64) option {
	return func(d *caddyfile.Dispenser) error {
		what := d.Val()
		s, err := value(d)
		if err != nil {
			return err
		}
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || !(f >= 0 && f <= 1) {
			return d.Errf("%s %q is not a number from 0 to 1", what, s)
		}
		*field = &f
		return nil
	}
}
