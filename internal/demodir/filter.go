package demodir

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// truth is the three-valued logic of RFC 4511 §4.5.1.7: a comparison with an
// attribute that nobody knows is undefined, and so is its negation.
type truth uint8

const (
	undefined truth = iota
	no
	yes
)

func is(b bool) truth {
	if b {
		return yes
	}
	return no
}

// filter judges one entry. The tree's lock is held.
type filter func(t *Tree, e *entry) truth

// maxFilterDepth bounds the nesting of and, or and not.
const maxFilterDepth = 32

// compileFilter turns a Filter from a search request into a function. An error
// means that the request is malformed.
func compileFilter(p *ber.Packet, depth int) (filter, error) {
	if depth > maxFilterDepth {
		return nil, fmt.Errorf("filter nested deeper than %d", maxFilterDepth)
	}
	if p.ClassType != ber.ClassContext {
		return nil, fmt.Errorf("filter has class %d", p.ClassType)
	}
	switch p.Tag {
	case ldap.FilterAnd:
		return compileAll(p, depth, yes, no)
	case ldap.FilterOr:
		return compileAll(p, depth, no, yes)
	case ldap.FilterNot:
		return compileNot(p, depth)
	case ldap.FilterPresent:
		name := text(p)
		return func(t *Tree, e *entry) truth {
			if !t.knows(name) {
				return undefined
			}
			return is(len(t.valuesOf(e, name)) > 0)
		}, nil
	case ldap.FilterSubstrings:
		return compileSubstrings(p)
	case ldap.FilterEqualityMatch, ldap.FilterApproxMatch, ldap.FilterGreaterOrEqual, ldap.FilterLessOrEqual:
		return compileCompare(p)
	case ldap.FilterExtensibleMatch:
		return func(*Tree, *entry) truth { return undefined }, nil // no matching rules here
	}
	return nil, fmt.Errorf("unknown filter choice %d", p.Tag)
}

// compileAll is and (start yes, one no decides) and or (the other way round).
func compileAll(p *ber.Packet, depth int, start, decides truth) (filter, error) {
	parts := make([]filter, len(p.Children))
	for i, c := range p.Children {
		var err error
		if parts[i], err = compileFilter(c, depth+1); err != nil {
			return nil, err
		}
	}
	return func(t *Tree, e *entry) truth {
		result := start
		for _, f := range parts {
			switch f(t, e) {
			case decides:
				return decides
			case undefined:
				result = undefined
			}
		}
		return result
	}, nil
}

func compileNot(p *ber.Packet, depth int) (filter, error) {
	if len(p.Children) != 1 {
		return nil, fmt.Errorf("not with %d filters", len(p.Children))
	}
	f, err := compileFilter(p.Children[0], depth+1)
	if err != nil {
		return nil, err
	}
	return func(t *Tree, e *entry) truth {
		switch f(t, e) {
		case yes:
			return no
		case no:
			return yes
		}
		return undefined
	}, nil
}

func compileCompare(p *ber.Packet) (filter, error) {
	if len(p.Children) != 2 {
		return nil, fmt.Errorf("assertion with %d parts", len(p.Children))
	}
	name, want, choice := text(p.Children[0]), text(p.Children[1]), p.Tag
	return func(t *Tree, e *entry) truth {
		if !t.knows(name) {
			return undefined
		}
		return is(slices.ContainsFunc(t.valuesOf(e, name), func(v string) bool {
			switch choice {
			case ldap.FilterGreaterOrEqual:
				return compareValues(v, want) >= 0
			case ldap.FilterLessOrEqual:
				return compareValues(v, want) <= 0
			default: // equality; approxMatch may be the same (RFC 4511 §4.5.1.7.6)
				return equalValues(name, v, want)
			}
		}))
	}, nil
}

// substring is an assertion as initial*any*…*final, folded.
type substring struct {
	initial, final string
	any            []string
}

func compileSubstrings(p *ber.Packet) (filter, error) {
	if len(p.Children) != 2 || len(p.Children[1].Children) == 0 {
		return nil, fmt.Errorf("malformed substring filter")
	}
	name := text(p.Children[0])
	var s substring
	for _, c := range p.Children[1].Children {
		// No trimming: in "John *" the space belongs to the assertion.
		part := strings.ToLower(text(c))
		switch c.Tag {
		case ldap.FilterSubstringsInitial:
			s.initial = part
		case ldap.FilterSubstringsAny:
			s.any = append(s.any, part)
		case ldap.FilterSubstringsFinal:
			s.final = part
		default:
			return nil, fmt.Errorf("unknown substring choice %d", c.Tag)
		}
	}
	return func(t *Tree, e *entry) truth {
		// A DN has no substring match (RFC 4519 gives member none).
		if !t.knows(name) || isDNAttr(name) {
			return undefined
		}
		return is(slices.ContainsFunc(t.valuesOf(e, name), s.matches))
	}, nil
}

func (s substring) matches(v string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(v), s.initial)
	if !ok {
		return false
	}
	for _, part := range s.any {
		if _, rest, ok = strings.Cut(rest, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, s.final)
}

// knows reports whether any entry of the tree was given this attribute, which
// is all the schema there is.
func (t *Tree) knows(name string) bool { return t.known[strings.ToLower(name)] != "" }

func isDNAttr(name string) bool {
	return strings.EqualFold(name, "member") || strings.EqualFold(name, "memberOf")
}

func equalValues(name, a, b string) bool {
	if isDNAttr(name) {
		return dnKey(a) == dnKey(b)
	}
	return foldValue(a) == foldValue(b)
}

// compareValues orders numbers as numbers and the rest as folded text.
func compareValues(a, b string) int {
	x, errX := strconv.ParseInt(a, 10, 64)
	y, errY := strconv.ParseInt(b, 10, 64)
	if errX == nil && errY == nil {
		return cmp.Compare(x, y)
	}
	return strings.Compare(foldValue(a), foldValue(b))
}

// text returns the bytes of a primitive as a string. Context-tagged primitives
// have no Value, so Data serves for both kinds.
func text(p *ber.Packet) string { return p.Data.String() }
