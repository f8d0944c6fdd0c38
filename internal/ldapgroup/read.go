package ldapgroup

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

const (
	defaultPage = 1000
	maxPage     = 10_000
)

// etag is a hash of the set of members.
func (c *contents) etag() string {
	keys := slices.Clone(c.keys)
	slices.Sort(keys)
	h := sha256.New()
	var b []byte
	for _, k := range slices.Compact(keys) {
		b = append(append(b[:0], k...), 0) // 0 is in no key
		h.Write(b)
	}
	return `"` + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18]) + `"`
}

// after is what the group holds once ops succeeded: those that did not find
// their member in the wanted state have changed it.
func (c *contents) after(adds, removes []*op) *contents {
	gone := make(map[string]bool, len(removes))
	for _, o := range removes {
		gone[o.name.key] = true
	}
	out := &contents{}
	for _, k := range c.keys {
		if !gone[k] {
			out.keys = append(out.keys, k)
		}
	}
	for _, o := range adds {
		j, i := o.refs[0].job, o.refs[0].index
		j.mu.Lock()
		r := j.results[i]
		j.mu.Unlock()
		if r.Outcome == Added || r.Outcome == AlreadyMember && r.Note != NotePrimaryGroup {
			out.keys = append(out.keys, o.name.key)
		}
	}
	return out
}

// snapshot is a group's members in the order of pages.
type snapshot struct {
	group  *group
	keys   []string // sorted
	values []string // in the order of keys
	etag   string
	taken  time.Time
}

func (c *contents) snapshot(g *group) *snapshot {
	s := &snapshot{group: g, keys: slices.Clone(c.keys), values: slices.Clone(c.values), etag: c.etag(), taken: time.Now()}
	sort.Sort((*byKey)(s))
	return s
}

type byKey snapshot

func (s *byKey) Len() int           { return len(s.keys) }
func (s *byKey) Less(i, j int) bool { return s.keys[i] < s.keys[j] }
func (s *byKey) Swap(i, j int) {
	s.keys[i], s.keys[j] = s.keys[j], s.keys[i]
	s.values[i], s.values[j] = s.values[j], s.values[i]
}

// page cuts the members after the key out.
func (s *snapshot) page(given, after string, limit int) *Page {
	begin := 0
	if after != "" {
		begin = sort.Search(len(s.keys), func(i int) bool { return s.keys[i] > after })
	}
	end := min(begin+limit, len(s.keys))
	p := &Page{
		Group: given, Canonical: s.group.name.raw, Kind: s.group.kind,
		Members: slices.Clone(s.values[begin:end]), Total: len(s.keys), ETag: s.etag,
	}
	if end < len(s.keys) {
		p.Next = cursor(s.etag, s.keys[end-1])
	}
	return p
}

var errCursor = errors.New("cursor is not one of this engine's")

// cursor names the snapshot that a page was cut from and its last key: the
// members after that key are the next page also when the snapshot is gone.
func cursor(etag, key string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(etag + key))
}

// etagLen is the length of an ETag with its quotes.
const etagLen = 26

func parseCursor(s string) (etag, key string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) <= etagLen || len(b) > 2*maxNameBytes+etagLen || b[0] != '"' || b[etagLen-1] != '"' {
		return "", "", errCursor
	}
	return string(b[:etagLen]), string(b[etagLen:]), nil
}

// snapshots keeps what was read for the pages that follow, so that they are
// of one reading and cost the directory nothing.
type snapshots struct {
	mu   sync.Mutex
	kept []*snapshot // guarded by mu; the oldest first
}

const (
	keepSnapshots   = 4
	snapshotMembers = 200_000 // larger ones are not kept
	snapshotTime    = 30 * time.Second
)

func (p *snapshots) keep(s *snapshot) {
	if len(s.keys) > snapshotMembers {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = slices.DeleteFunc(p.kept, func(o *snapshot) bool { return o.group.name.key == s.group.name.key })
	if len(p.kept) >= keepSnapshots {
		p.kept = slices.Delete(p.kept, 0, 1)
	}
	p.kept = append(p.kept, s)
}

// find returns the snapshot of a group that a cursor speaks of.
func (p *snapshots) find(group, etag string) *snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = slices.DeleteFunc(p.kept, func(s *snapshot) bool { return time.Since(s.taken) > snapshotTime })
	for _, s := range p.kept {
		if s.etag == etag && s.group.name.key == group {
			return s
		}
	}
	return nil
}

// Read returns a page of the group's members. The pages of one reading, up to
// half a minute old, go together; later ones continue after the last member
// returned. Primary groups list nobody in Active Directory: those members are
// found by [Engine.IsMember] only.
func (e *Engine) Read(ctx context.Context, group string, o ReadOptions) (*Page, error) {
	const op = "read members"
	ctx, end, err := e.begin(ctx, op, group)
	if err != nil {
		return nil, err
	}
	defer end()
	n, refused := e.allowed(op, group)
	if refused != nil {
		return nil, refused
	}
	limit := min(o.Limit, maxPage)
	if limit <= 0 {
		limit = defaultPage
	}
	after := ""
	if o.Cursor != "" {
		var etag string
		if etag, after, err = parseCursor(o.Cursor); err != nil {
			return nil, e.groupError(op, group, ClassInvalid, err)
		}
		if s := e.pages.find(n.key, etag); s != nil {
			return s.page(group, after, limit), nil
		}
	}
	s := e.session(ctx)
	defer s.close()
	g, _, err := s.resolve(op, group)
	if err != nil {
		return nil, err
	}
	c, err := s.read(op, g)
	if err != nil {
		return nil, err
	}
	shot := c.snapshot(g)
	page := shot.page(group, after, limit)
	if page.Next != "" {
		e.pages.keep(shot)
	}
	return page, nil
}

// sortedNames is for reports.
func sortedNames(s []string) string { return strings.Join(slices.Sorted(slices.Values(s)), ", ") }
