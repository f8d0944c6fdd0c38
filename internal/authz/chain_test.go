package authz

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestChain(t *testing.T) {
	allow := func(reason string, lease time.Duration, cached bool) Decision {
		return Decision{Outcome: Allow, Reason: reason, Lease: lease, Cached: cached, Policy: "of " + reason}
	}
	deny := Decision{Outcome: Deny, Reason: "no", Cached: true}
	fail := Fail(KindTimeout, errors.New("late"))
	open := Decision{Outcome: Allow, Reason: "on_error allow", Err: fail.Err} // nobody could be asked
	openTo := func(d Decision) Decision { d.Err = fail.Err; return d }
	for name, c := range map[string]struct {
		answers []Decision
		want    Decision
		asked   int
	}{
		"none":                {nil, Decision{Err: errNobody}, 0},
		"one":                 {[]Decision{allow("a", 0, true)}, allow("a", 0, true), 1},
		"last allow wins":     {[]Decision{allow("a", 0, true), allow("b", 0, true)}, allow("b", 0, true), 2},
		"one was asked":       {[]Decision{allow("a", 0, false), allow("b", 0, true)}, allow("b", 0, false), 2},
		"shortest lease":      {[]Decision{allow("a", 3, true), allow("b", 0, true), allow("c", 5, true)}, allow("c", 3, true), 3},
		"own lease":           {[]Decision{allow("a", 0, true), allow("b", 5, true)}, allow("b", 5, true), 2},
		"open stays open":     {[]Decision{open, allow("b", 0, true)}, openTo(allow("b", 0, false)), 2},
		"opens later":         {[]Decision{allow("a", 5, true), open}, Decision{Outcome: Allow, Reason: open.Reason, Err: fail.Err, Lease: 5}, 2},
		"deny ends":           {[]Decision{deny, allow("b", 0, false)}, deny, 1},
		"deny later":          {[]Decision{allow("a", 3, false), deny, fail}, deny, 2},
		"error ends":          {[]Decision{fail, allow("b", 0, false)}, fail, 1},
		"error before deny":   {[]Decision{allow("a", 0, true), fail, deny}, fail, 2},
		"zero is an error":    {[]Decision{{}, allow("b", 0, false)}, Decision{}, 1},
		"unknown is no allow": {[]Decision{{Outcome: 9}, allow("b", 0, false)}, Decision{Outcome: 9}, 1},
	} {
		asked := 0
		var links []Decider
		for _, d := range c.answers {
			links = append(links, DeciderFunc(func(context.Context, *Request) Decision { asked++; return d }))
		}
		if got := Chain(links...).Decide(t.Context(), connect("192.0.2.1", 1)); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if asked != c.asked {
			t.Errorf("%s: %d asked, want %d", name, asked, c.asked)
		}
	}
}
