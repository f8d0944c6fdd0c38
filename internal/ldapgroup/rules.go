package ldapgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// rule is a GroupRule with its names parsed.
type rule struct {
	GroupRule
	name        name
	placeholder name // the zero name when there is none
}

// defaultMaxRemovals is the share of a group's members that one Replace may
// remove unless its rule says otherwise.
const defaultMaxRemovals = 0.2

func parseRules(rules []GroupRule) ([]*rule, error) {
	out := make([]*rule, 0, len(rules))
	for _, r := range rules {
		n, err := parseName(r.DN)
		if err != nil {
			return nil, fmt.Errorf("group %q: %w", r.DN, err)
		}
		if r.MaxRemovals < 0 || r.MaxRemovals > 1 {
			return nil, fmt.Errorf("group %q: removals allowed must be between 0 and 1", r.DN)
		}
		if r.MaxRemovals == 0 {
			r.MaxRemovals = defaultMaxRemovals
		}
		parsed := &rule{GroupRule: r, name: n}
		if r.Placeholder != "" {
			if parsed.placeholder, err = parseName(r.Placeholder); err != nil {
				return nil, fmt.Errorf("placeholder %q: %w", r.Placeholder, err)
			}
		}
		out = append(out, parsed)
	}
	// The first that fits counts: the deepest, an exact one before a subtree.
	slices.SortStableFunc(out, func(a, b *rule) int {
		if d := b.name.depth() - a.name.depth(); d != 0 {
			return d
		}
		if a.Subtree == b.Subtree {
			return 0
		} else if b.Subtree {
			return -1
		}
		return 1
	})
	return out, nil
}

func (n name) depth() int { return strings.Count(n.key, keySeparator) + 1 }

// ruleFor returns the rule for a group, nil when it is not allowed.
func (e *Engine) ruleFor(g name) *rule {
	for _, r := range e.rules {
		if r.name.key == g.key || r.Subtree && g.below(r.name) {
			return r
		}
	}
	return nil
}

// memberAllowed reports whether a member's name is where members may be.
func (e *Engine) memberAllowed(m name) bool {
	return e.cfg.AnyMember || slices.ContainsFunc(e.memberBases, m.below)
}

var (
	errGroupNotAllowed  = errors.New("no rule allows this group")
	errMemberNotAllowed = errors.New("member is in none of the allowed bases")
	errIsPlaceholder    = errors.New("member is the group's placeholder")
	errProtected        = errors.New("built-in or administrative group; an exact rule must name it")
)
