package testpeer

import (
	"bufio"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// ScriptedLDAP is an LDAP server that answers as a script says, for what real
// ones will not do on demand: answers that are lost, late, malformed, or of
// another make of server.
type ScriptedLDAP struct {
	Addr, URL string

	target *Target
	conns  atomic.Int64
	script func(*LDAPRequest)
	over   chan struct{} // closed when the test ends
}

// LDAPServer starts a server that runs script for each request. Requests of
// one connection come one after another unless the script says Later. A script
// that does not answer leaves the client waiting.
func LDAPServer(tb testing.TB, script func(*LDAPRequest)) *ScriptedLDAP {
	tb.Helper()
	s := &ScriptedLDAP{script: script, over: make(chan struct{})}
	s.target = Serve(tb, s.serve)
	tb.Cleanup(func() { close(s.over) })
	s.Addr, s.URL = s.target.Addr, "ldap://"+s.target.Addr
	return s
}

// Conns is how many connections came in since the start.
func (s *ScriptedLDAP) Conns() int { return s.target.Accepted() }

// Over is closed when the test ends: scripts that wait must end then.
func (s *ScriptedLDAP) Over() <-chan struct{} { return s.over }

func (s *ScriptedLDAP) serve(c *net.TCPConn) {
	conn := int(s.conns.Add(1))
	in, out := bufio.NewReader(c), &lockedWriter{w: c}
	var later sync.WaitGroup
	defer later.Wait()
	for {
		p, err := ber.ReadPacket(in)
		if err != nil {
			return
		}
		r := parseLDAP(p)
		if r == nil || r.Op == ldap.ApplicationUnbindRequest {
			return
		}
		r.Conn, r.conn, r.out, r.later = conn, c, out, &later
		s.script(r)
	}
}

// lockedWriter keeps answers whole that are written side by side.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// LDAPRequest is one request and the way to answer it. Clients that are gone
// get no answer and nobody is told: their end of the test shows it.
type LDAPRequest struct {
	Conn int     // the connection's number, from 1
	Op   ber.Tag // ldap.ApplicationBindRequest, …
	// DN is what is bound as, searched or changed.
	DN         string
	Password   string
	Filter     string
	Attributes []string
	Changes    []LDAPChange
	Controls   []string // OIDs

	id    int64
	conn  *net.TCPConn
	out   io.Writer
	later *sync.WaitGroup
}

// LDAPChange is one change of a modify request.
type LDAPChange struct {
	Op        uint // ldap.AddAttribute, …
	Attribute string
	Values    []string
}

// parseLDAP returns nil for what is no request.
func parseLDAP(p *ber.Packet) *LDAPRequest {
	if len(p.Children) < 2 {
		return nil
	}
	id, _ := p.Children[0].Value.(int64)
	op := p.Children[1]
	r := &LDAPRequest{id: id, Op: op.Tag}
	if len(p.Children) > 2 {
		for _, c := range p.Children[2].Children {
			r.Controls = append(r.Controls, textOf(c, 0))
		}
	}
	switch {
	case op.Tag == ldap.ApplicationBindRequest && len(op.Children) == 3:
		r.DN, r.Password = textOf(op, 1), op.Children[2].Data.String()
	case op.Tag == ldap.ApplicationSearchRequest && len(op.Children) == 8:
		r.DN = textOf(op, 0)
		r.Filter, _ = ldap.DecompileFilter(op.Children[6]) // stays empty: no script expects such a thing
		for i := range op.Children[7].Children {
			r.Attributes = append(r.Attributes, textOf(op.Children[7], i))
		}
	case op.Tag == ldap.ApplicationModifyRequest && len(op.Children) == 2:
		r.DN = textOf(op, 0)
		for _, c := range op.Children[1].Children {
			kind, _ := c.Children[0].Value.(int64)
			change := LDAPChange{Op: uint(kind), Attribute: textOf(c.Children[1], 0)}
			for i := range c.Children[1].Children[1].Children {
				change.Values = append(change.Values, textOf(c.Children[1].Children[1], i))
			}
			r.Changes = append(r.Changes, change)
		}
	}
	return r
}

func textOf(p *ber.Packet, i int) string {
	if i >= len(p.Children) {
		return ""
	}
	return p.Children[i].Data.String()
}

// answers are the operations' answers.
var answers = map[ber.Tag]ber.Tag{
	ldap.ApplicationBindRequest:     ldap.ApplicationBindResponse,
	ldap.ApplicationSearchRequest:   ldap.ApplicationSearchResultDone,
	ldap.ApplicationModifyRequest:   ldap.ApplicationModifyResponse,
	ldap.ApplicationAddRequest:      ldap.ApplicationAddResponse,
	ldap.ApplicationDelRequest:      ldap.ApplicationDelResponse,
	ldap.ApplicationCompareRequest:  ldap.ApplicationCompareResponse,
	ldap.ApplicationExtendedRequest: ldap.ApplicationExtendedResponse,
}

// Result ends the request with a result code.
func (r *LDAPRequest) Result(code uint16, diagnostic string) { r.result(code, "", diagnostic) }

// NotFound ends it with noSuchObject and what was found on the way there.
func (r *LDAPRequest) NotFound(matched, diagnostic string) {
	r.result(ldap.LDAPResultNoSuchObject, matched, diagnostic)
}

// Referral ends it with a referral.
func (r *LDAPRequest) Referral(urls ...string) {
	r.result(ldap.LDAPResultReferral, "", "", urls...)
}

func (r *LDAPRequest) result(code uint16, matched, diagnostic string, referrals ...string) {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, answers[r.Op], nil, "")
	op.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(code), ""))
	op.AppendChild(octets(matched))
	op.AppendChild(octets(diagnostic))
	if len(referrals) > 0 {
		urls := ber.Encode(ber.ClassContext, ber.TypeConstructed, 3, nil, "")
		for _, u := range referrals {
			urls.AppendChild(octets(u))
		}
		op.AppendChild(urls)
	}
	r.send(op)
}

// LDAPAttribute is an attribute of an entry.
type LDAPAttribute struct {
	Name   string
	Values []string
}

// Entry sends an entry found. Result must follow.
func (r *LDAPRequest) Entry(dn string, attributes ...LDAPAttribute) {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	op.AppendChild(octets(dn))
	list := ber.NewSequence("")
	for _, a := range attributes {
		attribute := ber.NewSequence("")
		attribute.AppendChild(octets(a.Name))
		values := ber.Encode(ber.ClassUniversal, ber.TypeConstructed, ber.TagSet, nil, "")
		for _, v := range a.Values {
			values.AppendChild(octets(v))
		}
		attribute.AppendChild(values)
		list.AppendChild(attribute)
	}
	op.AppendChild(list)
	r.send(op)
}

// Reference sends a search result that points elsewhere. Result must follow.
func (r *LDAPRequest) Reference(url string) {
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultReference, nil, "")
	op.AppendChild(octets(url))
	r.send(op)
}

// Disconnecting sends a Notice of Disconnection with the code, and closes.
func (r *LDAPRequest) Disconnecting(code uint16) {
	notice := &LDAPRequest{Op: ldap.ApplicationExtendedRequest, out: r.out}
	op := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationExtendedResponse, nil, "")
	op.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, int64(code), ""))
	op.AppendChild(octets(""))
	op.AppendChild(octets(""))
	op.AppendChild(ber.NewString(ber.ClassContext, ber.TypePrimitive, 10, "1.3.6.1.4.1.1466.20036", ""))
	notice.send(op)
	r.Close()
}

// Raw sends bytes as they are.
func (r *LDAPRequest) Raw(b []byte) {
	r.out.Write(b) // a client that is gone need not be told
}

// Close ends the connection in order, Reset out of order.
func (r *LDAPRequest) Close() { r.conn.Close() }

// Reset ends the connection as a server that crashed does.
func (r *LDAPRequest) Reset() { reset(r.conn) }

// Later runs f apart: the connection's next requests do not wait for it.
func (r *LDAPRequest) Later(f func()) { r.later.Go(f) }

func (r *LDAPRequest) send(op *ber.Packet) {
	m := ber.NewSequence("")
	m.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, r.id, ""))
	m.AppendChild(op)
	r.Raw(m.Bytes())
}

func octets(s string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, s, "")
}
