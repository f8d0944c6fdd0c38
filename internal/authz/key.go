package authz

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"sync"
)

// volatile reports whether a member of a Request's context is new with every
// connection. Such members are sent to the engine and left out of the key: with
// them no answer would ever be found again. A policy that decides by the time of
// day is therefore late by up to the TTL of its last answer.
func volatile(name string) bool {
	switch name {
	case "time", "cid", "source_port":
		return true
	}
	return false
}

// maxKey bounds what one cached answer can hold. Longer keys, which only a
// client with an enormous certificate could cause, are neither cached nor
// shared.
const maxKey = 4 << 10

// keyBuffer is the scratch space of one encoding.
type keyBuffer struct {
	bytes   []byte
	members []member // sorted, of all levels that are being encoded
}

type member struct {
	name  string
	value any
}

var keyBuffers = sync.Pool{New: func() any {
	return &keyBuffer{bytes: make([]byte, 0, 1024), members: make([]member, 0, 32)}
}}

// encode writes the canonical form of r into k. It is the whole request and not
// a hash of it, so that no two requests ever share an answer by collision. It
// reports false for a request that holds a type with no canonical form; its
// answer must not be kept.
func (k *keyBuffer) encode(r *Request) bool {
	k.bytes = k.bytes[:0]
	ok := k.entity(&r.Subject)
	k.text(r.Action.Name)
	ok = k.object(r.Action.Properties, nil) && ok
	ok = k.entity(&r.Resource) && ok
	ok = k.object(r.Context, volatile) && ok
	return ok && len(k.bytes) <= maxKey
}

func (k *keyBuffer) entity(e *Entity) bool {
	k.text(e.Type)
	k.text(e.ID)
	return k.object(e.Properties, nil)
}

// text writes its length first: no choice of strings can look like another.
func (k *keyBuffer) text(s string) {
	k.bytes = binary.AppendUvarint(k.bytes, uint64(len(s)))
	k.bytes = append(k.bytes, s...)
}

// object writes a map in the order of its names.
func (k *keyBuffer) object(m map[string]any, skip func(string) bool) bool {
	from := len(k.members)
	for name, value := range m {
		if skip == nil || !skip(name) {
			k.members = append(k.members, member{name, value})
		}
	}
	slices.SortFunc(k.members[from:], func(a, b member) int { return strings.Compare(a.name, b.name) })
	to := len(k.members)
	k.bytes = binary.AppendUvarint(k.bytes, uint64(to-from))
	ok := true
	for i := from; i < to; i++ {
		k.text(k.members[i].name)
		ok = k.value(k.members[i].value) && ok
	}
	clear(k.members[from:]) // the pool keeps nobody's request alive
	k.members = k.members[:from]
	return ok
}

// value writes a type's letter and then the value. Numbers of different types
// are different values, which costs a call at worst.
func (k *keyBuffer) value(v any) bool {
	switch v := v.(type) {
	case nil:
		k.bytes = append(k.bytes, 'n')
	case string:
		k.bytes = append(k.bytes, 's')
		k.text(v)
	case bool:
		if v {
			k.bytes = append(k.bytes, 't')
		} else {
			k.bytes = append(k.bytes, 'f')
		}
	case int:
		k.number('i', uint64(v))
	case int64:
		k.number('i', uint64(v))
	case uint64:
		k.number('u', v)
	case float64:
		k.number('d', math.Float64bits(v))
	case []string:
		k.bytes = binary.AppendUvarint(append(k.bytes, 'S'), uint64(len(v)))
		for _, s := range v {
			k.text(s)
		}
	case []any:
		k.bytes = binary.AppendUvarint(append(k.bytes, 'a'), uint64(len(v)))
		for _, e := range v {
			if !k.value(e) {
				return false
			}
		}
	case map[string]any:
		k.bytes = append(k.bytes, 'm')
		return k.object(v, nil)
	default:
		return false
	}
	return true
}

func (k *keyBuffer) number(letter byte, v uint64) {
	k.bytes = binary.BigEndian.AppendUint64(append(k.bytes, letter), v)
}
