package ldapgroup_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
)

// fake is a directory in memory, reached through net.Pipe, that can be told to
// misbehave. It does what real servers will not do on demand, and in the fake
// time of a synctest bubble; the rules of real ones are tested on real ones.
type fake struct {
	root map[string][]string // the rootDSE

	mu     sync.Mutex
	groups map[string]map[string]bool // guarded by mu; members by lower-cased DN
	log    []string                   // guarded by mu; "bind", "search …", "add 3", "remove 1"
	conns  int                        // guarded by mu; open now
	most   int                        // guarded by mu; conns at most
	dials  int                        // guarded by mu
	down   bool                       // guarded by mu; dials are refused
	seen   map[string]int             // guarded by mu; requests by op

	// on, if set, sees every request before it is carried out.
	on func(r *request) reply
}

// request is what a client sent.
type request struct {
	op       string // "bind", "search", "modify", "extended"
	dn       string
	password string
	filter   string
	want     []string
	adds     []string
	removes  []string
	nth      int // of its op, from 1, over all connections
}

// reply says what to do with a request. The zero value is the usual.
type reply struct {
	code       int
	diagnostic string
	matched    string
	referral   string
	cutBefore  bool                // close without carrying it out
	cutAfter   bool                // carry it out and close
	wait       <-chan struct{}     // before anything else
	apply      bool                // carry it out although the code says no
	silent     bool                // no answer
	raw        []byte              // instead of an answer
	entry      map[string][]string // search: answer with that entry
	dns        []string            // search: answer with entries of these names
	absent     bool                // search: no entry
}

func newFake() *fake {
	return &fake{
		root:   map[string][]string{"objectClass": {"top", "OpenLDAProotDSE"}, "supportedControl": {"1.3.6.1.1.12"}},
		groups: map[string]map[string]bool{"cn=g,ou=groups": {}},
		seen:   map[string]int{},
	}
}

// active makes the fake look like a Windows domain controller.
func (f *fake) active() *fake {
	f.root = map[string][]string{"supportedCapabilities": {"1.2.840.113556.1.4.800"}}
	return f
}

const fakeGroup = "cn=g,ou=groups"

func person(i int) string { return fmt.Sprintf("uid=u%d,ou=people", i) }

func persons(from, to int) []string {
	var out []string
	for i := from; i <= to; i++ {
		out = append(out, person(i))
	}
	return out
}

func (f *fake) config() Config {
	return Config{
		Name: "fake", Dial: f.dial, Security: Plaintext, AllowPlaintextBind: true,
		Credentials: func(context.Context) (Credentials, error) { return Credentials{DN: "cn=svc", Password: "pw"}, nil },
		Groups:      []GroupRule{{DN: "ou=groups", Subtree: true, AllowReplace: true}},
		MemberBases: []string{"ou=people"},
	}
}

func (f *fake) put(members ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range members {
		f.groups[fakeGroup][m] = true
	}
}

func (f *fake) has(member string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.groups[fakeGroup][member]
}

func (f *fake) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.groups[fakeGroup])
}

// saw returns the requests that begin with what, and forgets all.
func (f *fake) saw(what string) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.log {
		if strings.HasPrefix(l, what) {
			out = append(out, l)
		}
	}
	f.log = nil
	return out
}

func (f *fake) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

var errRefused = errors.New("connection refused")

func (f *fake) dial(context.Context) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials++
	if f.down {
		return nil, errRefused
	}
	f.conns++
	f.most = max(f.most, f.conns)
	client, server := net.Pipe()
	go f.serve(server)
	return client, nil
}

func (f *fake) serve(c net.Conn) {
	defer func() {
		c.Close()
		f.mu.Lock()
		f.conns--
		f.mu.Unlock()
	}()
	// A pipe has no buffer: answers are written while the next is read.
	in, out := bufio.NewReader(c), make(chan []byte, 1000)
	defer close(out)
	go func() {
		for b := range out {
			if _, err := c.Write(b); err != nil {
				c.Close()
			}
		}
	}()
	for {
		p, err := ber.ReadPacket(in)
		if err != nil || len(p.Children) < 2 {
			return
		}
		id, op := p.Children[0].Value.(int64), p.Children[1]
		r := f.parse(op)
		if r == nil {
			return // unbind
		}
		var rep reply
		if f.on != nil {
			rep = f.on(r)
		}
		if rep.wait != nil {
			<-rep.wait
		}
		if rep.cutBefore {
			return
		}
		answers := f.answer(id, r, rep)
		if rep.cutAfter {
			return
		}
		if rep.silent {
			continue
		}
		if rep.raw != nil {
			answers = [][]byte{rep.raw}
		}
		for _, a := range answers {
			out <- a
		}
	}
}

func (f *fake) parse(op *ber.Packet) *request {
	text := func(p *ber.Packet) string { return p.Data.String() }
	r := &request{}
	switch op.Tag {
	case ldap.ApplicationBindRequest:
		r.op, r.dn, r.password = "bind", text(op.Children[1]), text(op.Children[2])
	case ldap.ApplicationSearchRequest:
		r.op, r.dn = "search", text(op.Children[0])
		r.filter, _ = ldap.DecompileFilter(op.Children[6])
		for _, a := range op.Children[7].Children {
			r.want = append(r.want, text(a))
		}
	case ldap.ApplicationModifyRequest:
		r.op, r.dn = "modify", text(op.Children[0])
		for _, change := range op.Children[1].Children {
			for _, v := range change.Children[1].Children[1].Children {
				if change.Children[0].Value.(int64) == ldap.AddAttribute {
					r.adds = append(r.adds, text(v))
				} else {
					r.removes = append(r.removes, text(v))
				}
			}
		}
	case ldap.ApplicationExtendedRequest:
		r.op = "extended"
	default:
		return nil
	}
	line := r.op
	switch {
	case r.op == "search":
		line += " " + r.dn + " " + r.filter
	case len(r.adds) > 0:
		line = fmt.Sprintf("add %d", len(r.adds))
	case r.op == "modify":
		line = fmt.Sprintf("remove %d", len(r.removes))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, line)
	f.seen[r.op]++
	r.nth = f.seen[r.op]
	return r
}

// answer carries the request out and encodes what there is to say.
func (f *fake) answer(id int64, r *request, rep reply) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch r.op {
	case "bind":
		return [][]byte{result(id, ldap.ApplicationBindResponse, rep)}
	case "extended":
		return [][]byte{result(id, ldap.ApplicationExtendedResponse, rep)}
	case "modify":
		if rep.code == 0 || rep.apply {
			if code := f.modify(r); rep.code == 0 {
				rep.code = code
			}
		}
		return [][]byte{result(id, ldap.ApplicationModifyResponse, rep)}
	}
	var out [][]byte
	dn := strings.ToLower(r.dn)
	entry := rep.entry
	if entry == nil {
		entry = f.entry(dn, r.filter)
	}
	if rep.code == 0 && entry == nil && f.groups[dn] == nil {
		rep.code = ldap.LDAPResultNoSuchObject
	}
	if strings.HasPrefix(r.filter, "(|") && rep.dns == nil {
		rep.dns, rep.absent = f.children(r), true
	}
	for _, dn := range rep.dns {
		out = append(out, entryPacket(id, dn, map[string][]string{"objectClass": {"person"}}))
	}
	if rep.code == 0 && !rep.absent && len(entry) > 0 {
		out = append(out, entryPacket(id, r.dn, entry))
	}
	return append(out, result(id, ldap.ApplicationSearchResultDone, rep))
}

// entry finds what a base search finds: nil when there is no such entry, empty
// when it does not match.
func (f *fake) entry(dn, filter string) map[string][]string {
	if dn == "" {
		return f.root
	}
	if g, ok := f.groups[dn]; ok {
		if _, value, _ := strings.Cut(filter, "="); filter != "(objectClass=*)" && !g[strings.ToLower(strings.Trim(value, "()"))] {
			return map[string][]string{}
		}
		class := "groupOfNames"
		if f.root["supportedCapabilities"] != nil {
			class = "group"
		}
		e := map[string][]string{"objectClass": {class}, "member": {}}
		for m := range g {
			e["member"] = append(e["member"], m)
		}
		return e
	}
	if strings.HasSuffix(dn, "ou=people") && !strings.Contains(dn, "nobody") {
		return map[string][]string{"objectClass": {"person"}}
	}
	return nil
}

// children finds what a search for several people finds.
func (f *fake) children(r *request) (dns []string) {
	for _, v := range strings.Split(strings.Trim(r.filter, "(|)"), ")(") {
		if dn := v + "," + r.dn; f.entry(dn, "(objectClass=*)") != nil {
			dns = append(dns, dn)
		}
	}
	return dns
}

// modify is all or nothing.
func (f *fake) modify(r *request) int {
	g := f.groups[strings.ToLower(r.dn)]
	if g == nil {
		return ldap.LDAPResultNoSuchObject
	}
	for _, a := range r.adds {
		if g[strings.ToLower(a)] {
			return ldap.LDAPResultAttributeOrValueExists
		}
	}
	for _, d := range r.removes {
		if !g[strings.ToLower(d)] {
			return ldap.LDAPResultNoSuchAttribute
		}
	}
	for _, a := range r.adds {
		g[strings.ToLower(a)] = true
	}
	for _, d := range r.removes {
		delete(g, strings.ToLower(d))
	}
	return 0
}

func message(id int64, op *ber.Packet) []byte {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	p.AppendChild(op)
	return p.Bytes()
}

func octets(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}

func result(id int64, tag ber.Tag, rep reply) []byte {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	op.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, rep.code, ""))
	op.AppendChild(octets(rep.matched))
	op.AppendChild(octets(rep.diagnostic))
	if rep.referral != "" {
		ref := ber.Encode(ber.ClassContext, ber.TypeConstructed, 3, nil, "")
		ref.AppendChild(octets(rep.referral))
		op.AppendChild(ref)
	}
	return message(id, op)
}

func entryPacket(id int64, dn string, attributes map[string][]string) []byte {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	op.AppendChild(octets(dn))
	list := ber.NewSequence("")
	for name, values := range attributes {
		a := ber.NewSequence("")
		a.AppendChild(octets(name))
		set := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range values {
			set.AppendChild(octets(v))
		}
		a.AppendChild(set)
		list.AppendChild(a)
	}
	op.AppendChild(list)
	return message(id, op)
}

// change is Change with a background context that must not fail as a whole.
func change(t *testing.T, e *Engine, adds, removes []string) *Result {
	t.Helper()
	r, err := e.Change(context.Background(), fakeGroup, adds, removes, ChangeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
