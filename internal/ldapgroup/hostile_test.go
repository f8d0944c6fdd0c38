package ldapgroup_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// ranged answers like a domain controller that hands out n members, step by
// step, and the plain attribute without values.
func ranged(d *fake, n, step int, spoil func(name string, values []string) (string, []string)) {
	d.on = func(r *request) reply {
		if r.op != "search" || r.dn != fakeGroup || r.filter != "(objectClass=*)" {
			return reply{}
		}
		from := 0
		for _, w := range r.want {
			if _, err := fmt.Sscanf(w, "member;range=%d-*", &from); err == nil {
				break
			}
		}
		to := min(from+step, n)
		name := fmt.Sprintf("member;range=%d-%d", from, to-1)
		if to == n {
			name = fmt.Sprintf("member;Range=%d-*", from)
		}
		values := persons(from, to-1)
		if spoil != nil {
			name, values = spoil(name, values)
		}
		e := map[string][]string{"objectClass": {"group"}, name: values, "member;lang-en": {person(99999)}}
		if from == 0 {
			e["member"] = nil
		}
		return reply{entry: e}
	}
}

func TestRangedRetrieval(t *testing.T) {
	d := newFake().active()
	ranged(d, 3700, 1500, nil)
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		p, err := e.Read(context.Background(), fakeGroup, ReadOptions{Limit: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(p.Members)
		want := persons(0, 3699)
		slices.Sort(want)
		if !slices.Equal(p.Members, want) || p.Total != 3700 {
			t.Errorf("%d members of %d", len(p.Members), p.Total)
		}
	})
}

func TestRangesThatLeadNowhere(t *testing.T) {
	for name, spoil := range map[string]func(string, []string) (string, []string){
		"backwards": func(string, []string) (string, []string) { return "member;range=0-0", persons(1, 1) },
		"empty":     func(n string, _ []string) (string, []string) { return n, nil },
		"no number": func(string, []string) (string, []string) { return "member;range=x-y", persons(1, 1) },
		"gap":       func(string, []string) (string, []string) { return "member;range=7-9", persons(1, 1) },
		"huge":      func(string, []string) (string, []string) { return "member;range=0-99999999999999999999", persons(1, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newFake().active()
			n := 0
			ranged(d, 10_000, 1500, func(name string, values []string) (string, []string) {
				if n++; n == 1 {
					return name, values // the group's kind is asked first
				}
				return spoil(name, values)
			})
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				_, err := e.Read(context.Background(), fakeGroup, ReadOptions{})
				if class(err) != ClassDirectory {
					t.Errorf("got %v", err)
				}
				if n := len(d.saw("search")); n > 10 {
					t.Errorf("%d searches", n)
				}
			})
		})
	}
}

// An endless supply of small ranges ends at the size allowed.
func TestRangesWithoutEnd(t *testing.T) {
	d := newFake().active()
	ranged(d, 1<<40, 100, nil)
	bubble(t, d, func(c *Config) { c.MaxResponseBytes = 100_000 }, func(t *testing.T, e *Engine) {
		_, err := e.Read(context.Background(), fakeGroup, ReadOptions{})
		if class(err) != ClassDirectory || !strings.Contains(err.Error(), "larger") {
			t.Errorf("got %v", err)
		}
	})
}

func TestHostileAnswers(t *testing.T) {
	deep := []byte{0x04, 0x00}
	for range 60 {
		deep = append([]byte{0x30, byte(len(deep))}, deep...)
	}
	many := append([]byte{0x30, 0x84, 0x00, 0x30, 0x00, 0x00}, make([]byte, 3<<20)...) // 1.5 million elements of two bytes
	for name, raw := range map[string][]byte{
		"1 GB":              {0x30, 0x84, 0x40, 0x00, 0x00, 0x00, 0x02, 0x01, 0x02},
		"4 GB":              {0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02, 0x01, 0x02},
		"length of lengths": {0x30, 0x88, 0, 0, 0, 1, 0, 0, 0, 0},
		"no length":         {0x30, 0x80, 0x02, 0x01, 0x02},
		"1 GB inside":       {0x30, 0x0b, 0x02, 0x01, 0x02, 0x04, 0x84, 0x40, 0x00, 0x00, 0x00, 0x61, 0x61},
		"deep":              deep,
		"many":              many,
		"no message":        []byte("SSH-2.0-OpenSSH_9.2\r\n"),
		"not an answer":     {0x30, 0x03, 0x02, 0x01, 0x02},
		"empty":             {0x30, 0x00, 0x15},
	} {
		t.Run(name, func(t *testing.T) {
			d := newFake()
			d.on = func(r *request) reply {
				if r.op == "search" && r.dn != "" {
					return reply{raw: raw}
				}
				return reply{}
			}
			bubble(t, d, nil, func(t *testing.T, e *Engine) {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				begin := time.Now()
				_, err := e.Read(context.Background(), fakeGroup, ReadOptions{})
				runtime.ReadMemStats(&after)
				if c := class(err); c != ClassDirectory && c != ClassUnavailable && c != ClassTimeout {
					t.Errorf("got %v", err)
				}
				if took := time.Since(begin); took > time.Minute {
					t.Errorf("it took %s", took)
				}
				if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
					t.Errorf("%d MB were allocated", n>>20)
				}
				// The pool has not kept the connection that went wrong.
				d.on = nil
				if got := brief(change(t, e, persons(1, 1), nil)); got != "added/true" {
					t.Errorf("then: %s", got)
				}
			})
		})
	}
}

// A search for one entry is not answered with entries for ever.
func TestEntriesWithoutEnd(t *testing.T) {
	d := newFake()
	one := entryPacket(3, fakeGroup, map[string][]string{"objectClass": {"groupOfNames"}})
	d.on = func(r *request) reply {
		if r.op == "search" && r.dn != "" {
			return reply{raw: slices.Repeat(one, 10_000)}
		}
		return reply{}
	}
	bubble(t, d, nil, func(t *testing.T, e *Engine) {
		_, err := e.Read(context.Background(), fakeGroup, ReadOptions{})
		if err == nil {
			t.Error("that was a group")
		}
	})
}
