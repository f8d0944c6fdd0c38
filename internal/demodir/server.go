package demodir

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
)

// Server answers LDAP on one loopback listener. Close it.
type Server struct {
	tree *Tree
	ln   net.Listener
	done sync.WaitGroup // the accept loop and every connection

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu; nil once closed
	closed bool
}

// ErrNotLoopback is returned for an address that others could reach.
var ErrNotLoopback = errors.New("demo directory listens on loopback addresses only")

// Start listens on addr, which must be a loopback address with a port (0 picks
// a free one), and serves t until Close. From here on t belongs to the server.
func Start(addr string, t *Tree) (*Server, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("demo directory: %w", err)
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%w: %s", ErrNotLoopback, addr)
	}
	ln, err := net.ListenTCP("tcp", tcp)
	if err != nil {
		return nil, fmt.Errorf("demo directory: %w", err)
	}
	s := &Server{tree: t, ln: ln, conns: map[net.Conn]struct{}{}}
	s.done.Add(1)
	go s.accept()
	return s, nil
}

// Addr returns the address as host:port.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// NumConns returns how many clients are connected.
func (s *Server) NumConns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Close ends every connection and waits for its goroutine. It may be called
// twice.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.ln.Close()
		for c := range s.conns {
			c.Close()
		}
	}
	s.mu.Unlock()
	s.done.Wait()
}

func (s *Server) accept() {
	defer s.done.Done()
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say: others will be closed
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if !s.register(c) {
			c.Close()
			return
		}
		go func() {
			defer s.done.Done()
			defer s.forget(c)
			(&session{tree: s.tree, conn: c, r: bufio.NewReader(c), w: bufio.NewWriter(c)}).serve()
		}()
	}
}

// register counts c in, unless Close was first: the same lock decides both.
func (s *Server) register(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = struct{}{}
	s.done.Add(1)
	return true
}

func (s *Server) forget(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// session is one client's connection, owned by its goroutine.
type session struct {
	tree *Tree
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	user string // key of the entry that bound; "" is anonymous
}

// maxRequest bounds one request; nothing the demo does needs more.
const maxRequest = 1 << 20

// writeTimeout ends a client that asks and does not read.
const writeTimeout = time.Minute

// result is an LDAPResult. The zero value is success.
type result struct {
	code       int64
	matched    string
	diagnostic string
}

func (s *session) serve() {
	for {
		p, err := readMessage(s.r)
		if err != nil {
			return // the client left, or what it sent is not LDAP
		}
		id, ok := p.Children[0].Value.(int64)
		if !ok || !s.answer(id, p) {
			return
		}
		s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if s.w.Flush() != nil {
			return
		}
	}
}

// readMessage reads an LDAPMessage of at least an id and an operation. The
// length is judged before anything is allocated for it.
func readMessage(r *bufio.Reader) (*ber.Packet, error) {
	head, err := r.Peek(2)
	if err != nil {
		return nil, err
	}
	if head[0] != 0x30 {
		return nil, errors.New("not a SEQUENCE")
	}
	size, n := int(head[1]), 2
	if size >= 0x80 {
		n += size & 0x7f
		if n < 3 || n > 6 {
			return nil, errors.New("length of the message is indefinite or too long")
		}
		if head, err = r.Peek(n); err != nil {
			return nil, err
		}
		size = 0
		for _, b := range head[2:] {
			size = size<<8 | int(b)
		}
	}
	if size > maxRequest {
		return nil, fmt.Errorf("message of %d bytes, at most %d", size, maxRequest)
	}
	p, err := ber.ReadPacket(r)
	if err != nil {
		return nil, err
	}
	if len(p.Children) < 2 || p.Children[1].ClassType != ber.ClassApplication {
		return nil, errors.New("not an LDAPMessage")
	}
	return p, nil
}

// answer handles one request and reports whether the connection goes on.
func (s *session) answer(id int64, p *ber.Packet) bool {
	op := p.Children[1]
	switch op.Tag {
	case ldap.ApplicationUnbindRequest:
		return false
	case ldap.ApplicationAbandonRequest:
		return true // requests are served in turn: there is nothing left to abandon
	}
	paging, bad := readControls(p)
	if bad != nil {
		s.reply(id, responseTag(op.Tag), *bad, nil)
		return true
	}
	switch op.Tag {
	case ldap.ApplicationBindRequest:
		s.reply(id, ldap.ApplicationBindResponse, s.bind(op), nil)
	case ldap.ApplicationSearchRequest:
		r, control := s.search(id, op, paging)
		s.reply(id, ldap.ApplicationSearchResultDone, r, control)
	case ldap.ApplicationModifyRequest:
		s.reply(id, ldap.ApplicationModifyResponse, s.modify(op), nil)
	case ldap.ApplicationCompareRequest:
		s.reply(id, ldap.ApplicationCompareResponse, s.compare(op), nil)
	case ldap.ApplicationExtendedRequest:
		s.extended(id, op)
	case ldap.ApplicationAddRequest, ldap.ApplicationDelRequest, ldap.ApplicationModifyDNRequest:
		s.reply(id, responseTag(op.Tag), s.fixed(), nil)
	default:
		return false
	}
	return true
}

// responseTag is the application tag that answers a request's.
func responseTag(request ber.Tag) ber.Tag {
	if request == ldap.ApplicationSearchRequest {
		return ldap.ApplicationSearchResultDone
	}
	return request + 1
}

// bind implements simple bind. A failed one leaves the connection anonymous
// (RFC 4511 §4.2.1).
func (s *session) bind(op *ber.Packet) result {
	s.user = ""
	if len(op.Children) < 3 {
		return malformed("bind")
	}
	if v, _ := op.Children[0].Value.(int64); v != 3 {
		return result{code: ldap.LDAPResultProtocolError, diagnostic: "only LDAP version 3"}
	}
	if op.Children[2].Tag != 0 {
		return result{code: ldap.LDAPResultAuthMethodNotSupported, diagnostic: "only simple bind"}
	}
	dn, password := text(op.Children[1]), text(op.Children[2])
	if password == "" {
		if dn == "" {
			return result{}
		}
		// RFC 4513 §5.1.2: a client with an empty password must not believe
		// that it authenticated.
		return result{code: ldap.LDAPResultUnwillingToPerform, diagnostic: "unauthenticated bind (DN with no password) disallowed"}
	}
	key, err := parseKey(dn)
	if err != nil {
		return result{code: ldap.LDAPResultInvalidDNSyntax, diagnostic: "invalid DN"}
	}
	if !s.tree.checkPassword(key, password) {
		return result{code: ldap.LDAPResultInvalidCredentials}
	}
	s.user = key
	return result{}
}

const oidWhoAmI = "1.3.6.1.4.1.4203.1.11.3"

func (s *session) extended(id int64, op *ber.Packet) {
	if len(op.Children) > 0 && text(op.Children[0]) == oidWhoAmI {
		who := ""
		if e := s.tree.byKey[s.user]; e != nil {
			who = "dn:" + e.dn
		}
		value := ber.NewString(ber.ClassContext, ber.TypePrimitive, 11, who, "responseValue")
		s.send(id, encodeResult(ldap.ApplicationExtendedResponse, result{}, value), nil)
		return
	}
	// StartTLS among them: RFC 4511 §4.12 asks for protocolError.
	s.reply(id, ldap.ApplicationExtendedResponse, result{code: ldap.LDAPResultProtocolError, diagnostic: "unsupported extended operation"}, nil)
}

func malformed(what string) result {
	return result{code: ldap.LDAPResultProtocolError, diagnostic: "malformed " + what}
}

// reply sends a response that ends a request.
func (s *session) reply(id int64, tag ber.Tag, r result, control *ber.Packet) {
	s.send(id, encodeResult(tag, r), control)
}

func encodeResult(tag ber.Tag, r result, more ...*ber.Packet) *ber.Packet {
	p := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "response")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, r.code, "resultCode"))
	p.AppendChild(octets(r.matched))
	p.AppendChild(octets(r.diagnostic))
	for _, m := range more {
		p.AppendChild(m)
	}
	return p
}

// send buffers one LDAPMessage. A write error shows at the next flush.
func (s *session) send(id int64, op, control *ber.Packet) {
	m := ber.NewSequence("LDAPMessage")
	m.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, "messageID"))
	m.AppendChild(op)
	if control != nil {
		controls := ber.Encode(ber.ClassContext, ber.TypeConstructed, 0, nil, "controls")
		controls.AppendChild(control)
		m.AppendChild(controls)
	}
	s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	s.w.Write(m.Bytes())
}

func octets(v string) *ber.Packet {
	return ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, v, "")
}
