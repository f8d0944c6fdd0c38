package demodir

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) *Server {
	t.Helper()
	s, err := Start("127.0.0.1:0", Example())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// dial binds when dn is not empty.
func dial(t *testing.T, s *Server, dn, password string) *ldap.Conn {
	t.Helper()
	c, err := ldap.DialURL("ldap://" + s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	c.SetTimeout(10 * time.Second)
	t.Cleanup(func() { c.Close() })
	if dn != "" {
		if err := c.Bind(dn, password); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// code is the LDAP result code in err, 0 for nil, -1 for any other error.
func code(err error) int {
	var e *ldap.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e.ResultCode)
	}
	return -1
}

func query0(base string, scope int, filter string, attrs ...string) *ldap.SearchRequest {
	return ldap.NewSearchRequest(base, scope, ldap.NeverDerefAliases, 0, 0, false, filter, attrs, nil)
}

// dns returns the first RDN values of what a search found, sorted.
func dns(r *ldap.SearchResult) []string {
	var out []string
	for _, e := range r.Entries {
		rdn, _, _ := strings.Cut(e.DN, ",")
		_, v, _ := strings.Cut(rdn, "=")
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

func TestStartRefusesAddressesThatOthersReach(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:389"} {
		if s, err := Start(addr, Example()); !errors.Is(err, ErrNotLoopback) {
			t.Errorf("Start(%q) = %v, %v", addr, s, err)
		}
	}
}

func TestBind(t *testing.T) {
	s := start(t)
	for _, c := range []struct {
		dn, password string
		want         int
	}{
		{AdminDN, AdminPassword, 0},
		{ReaderDN, ReaderPassword, 0},
		{"CN=Reader, DC=Example,DC=org", ReaderPassword, 0},
		{PersonDN("zoe"), "demo-zoe", 0},
		{"", "", 0},
		{AdminDN, "wrong", ldap.LDAPResultInvalidCredentials},
		{PersonDN("nobody"), "x", ldap.LDAPResultInvalidCredentials},
		{PeopleDN, "x", ldap.LDAPResultInvalidCredentials},
		{"not a dn", "x", ldap.LDAPResultInvalidDNSyntax},
		{AdminDN, "", ldap.LDAPResultUnwillingToPerform},
	} {
		conn := dial(t, s, "", "")
		_, err := conn.SimpleBind(&ldap.SimpleBindRequest{Username: c.dn, Password: c.password, AllowEmptyPassword: true})
		if got := code(err); got != c.want {
			t.Errorf("bind %q %q = %d (%v), want %d", c.dn, c.password, got, err, c.want)
		}
	}
	conn := dial(t, s, "", "")
	if err := conn.ExternalBind(); code(err) != ldap.LDAPResultAuthMethodNotSupported {
		t.Errorf("SASL bind: %v", err)
	}
}

func TestFailedBindLeavesTheConnectionAnonymous(t *testing.T) {
	c := dial(t, start(t), AdminDN, AdminPassword)
	if who, err := c.WhoAmI(nil); err != nil || who.AuthzID != "dn:"+AdminDN {
		t.Fatalf("whoami = %v, %v", who, err)
	}
	if err := c.Bind(AdminDN, "wrong"); code(err) != ldap.LDAPResultInvalidCredentials {
		t.Fatal(err)
	}
	if who, err := c.WhoAmI(nil); err != nil || who.AuthzID != "" {
		t.Fatalf("whoami after a failed bind = %v, %v", who, err)
	}
	if _, err := c.Search(query0(BaseDN, ldap.ScopeWholeSubtree, "(objectClass=*)")); code(err) != ldap.LDAPResultInsufficientAccessRights {
		t.Fatalf("anonymous search: %v", err)
	}
}

func TestSearch(t *testing.T) {
	c := dial(t, start(t), ReaderDN, ReaderPassword)
	for _, tc := range []struct {
		base   string
		scope  int
		filter string
		want   string // first RDN values, or "=N" for a count
	}{
		{BaseDN, ldap.ScopeBaseObject, "(objectClass=*)", "example"},
		{BaseDN, ldap.ScopeSingleLevel, "(objectClass=*)", "admin groups people reader"},
		{BaseDN, ldap.ScopeWholeSubtree, "(objectClass=*)", "=20"},
		{PeopleDN, ldap.ScopeWholeSubtree, "(objectClass=*)", "=13"},
		{PeopleDN, ldap.ScopeSingleLevel, "(objectClass=person)", "=12"},
		{"OU=People , DC=example,dc=ORG", ldap.ScopeSingleLevel, "(objectClass=INETORGPERSON)", "=12"},
		{PersonDN("ada"), ldap.ScopeWholeSubtree, "(uid=ada)", "ada"},
		{BaseDN, ldap.ScopeWholeSubtree, "(&(objectClass=person)(title=engineer)(!(sn=Perlman)))", "annie dennis margaret"},
		{BaseDN, ldap.ScopeWholeSubtree, "(|(uid=ada)(cn=engineers)(uid=nobody))", "ada engineers"},
		{BaseDN, ldap.ScopeWholeSubtree, "(cn=gra*)", "grace"},
		{BaseDN, ldap.ScopeWholeSubtree, "(cn=*lock*)", ""},
		{BaseDN, ldap.ScopeWholeSubtree, "(cn=a*a*e)", "ada"},
		{BaseDN, ldap.ScopeWholeSubtree, "(mail=r*a@*org)", "radia"},
		{BaseDN, ldap.ScopeWholeSubtree, "(givenName=ad*da)", ""}, // the parts may not overlap
		{BaseDN, ldap.ScopeWholeSubtree, "(sn=ünal)", "zoe"},
		{BaseDN, ldap.ScopeWholeSubtree, "(cn=grace   HOPPER)", "grace"},
		{BaseDN, ldap.ScopeWholeSubtree, "(employeeNumber>=1011)", "radia zoe"},
		{BaseDN, ldap.ScopeWholeSubtree, "(&(employeeNumber<=1002)(objectClass=person))", "ada alan"},
		{BaseDN, ldap.ScopeWholeSubtree, "(uid~=ada)", "ada"},
		{BaseDN, ldap.ScopeWholeSubtree, "(member=UID=Ada, ou=people,dc=example,dc=org)", "analysts vpn-users"},
		{BaseDN, ldap.ScopeWholeSubtree, "(member=uid=ada*)", ""}, // DNs have no substring match
		{BaseDN, ldap.ScopeWholeSubtree, "(memberOf=" + GroupDN("vpn-users") + ")", "ada grace hedy radia"},
		{BaseDN, ldap.ScopeWholeSubtree, "(&(objectClass=person)(!(memberOf=*)))", "edsger zoe"},
		{BaseDN, ldap.ScopeWholeSubtree, "(!(shoeSize=44))", ""}, // unknown attribute: undefined, and so is its negation
		{BaseDN, ldap.ScopeWholeSubtree, "(|(shoeSize=44)(uid=ada))", "ada"},
		{BaseDN, ldap.ScopeWholeSubtree, "(uid:caseExactMatch:=ada)", ""},
		{BaseDN, ldap.ScopeWholeSubtree, "(&)", "=20"},
		{BaseDN, ldap.ScopeWholeSubtree, "(|)", ""},
	} {
		r, err := c.Search(query0(tc.base, tc.scope, tc.filter, "1.1"))
		if err != nil {
			t.Errorf("%s %s: %v", tc.base, tc.filter, err)
			continue
		}
		got := strings.Join(dns(r), " ")
		if strings.HasPrefix(tc.want, "=") {
			got = fmt.Sprintf("=%d", len(r.Entries))
		}
		if got != tc.want {
			t.Errorf("%s %d %s = %q, want %q", tc.base, tc.scope, tc.filter, got, tc.want)
		}
	}
}

func TestSearchErrors(t *testing.T) {
	c := dial(t, start(t), ReaderDN, ReaderPassword)
	r, err := c.Search(query0(PersonDN("nobody"), ldap.ScopeBaseObject, "(objectClass=*)"))
	var e *ldap.Error
	if !errors.As(err, &e) || e.ResultCode != ldap.LDAPResultNoSuchObject || e.MatchedDN != PeopleDN {
		t.Errorf("missing base: %v, %v", r, err)
	}
	if _, err := c.Search(query0("not a dn", ldap.ScopeBaseObject, "(objectClass=*)")); code(err) != ldap.LDAPResultInvalidDNSyntax {
		t.Errorf("bad DN: %v", err)
	}
	if _, err := c.Search(query0("", ldap.ScopeWholeSubtree, "(objectClass=*)")); code(err) != ldap.LDAPResultNoSuchObject {
		t.Errorf("subtree of the root DSE: %v", err)
	}
	q := query0(PeopleDN, ldap.ScopeSingleLevel, "(objectClass=*)")
	q.SizeLimit = 5
	if r, err := c.Search(q); code(err) != ldap.LDAPResultSizeLimitExceeded || len(r.Entries) != 5 {
		t.Errorf("size limit: %d entries, %v", len(r.Entries), err)
	}
	q.SizeLimit = 12
	if r, err := c.Search(q); err != nil || len(r.Entries) != 12 {
		t.Errorf("size limit that is just enough: %v", err)
	}
	q = query0(PeopleDN, ldap.ScopeSingleLevel, "(objectClass=*)")
	q.Controls = []ldap.Control{ldap.NewControlString("1.2.3.4", true, "")}
	if _, err := c.Search(q); code(err) != ldap.LDAPResultUnavailableCriticalExtension {
		t.Errorf("unknown critical control: %v", err)
	}
	q.Controls = []ldap.Control{ldap.NewControlString("1.2.3.4", false, "")}
	if _, err := c.Search(q); err != nil {
		t.Errorf("unknown control that is not critical: %v", err)
	}
	deep := strings.Repeat("(!", 60) + "(uid=ada)" + strings.Repeat(")", 60)
	if _, err := c.Search(query0(BaseDN, ldap.ScopeWholeSubtree, deep)); code(err) != ldap.LDAPResultProtocolError {
		t.Errorf("deep filter: %v", err)
	}
	if _, err := c.Search(query0(PersonDN("ada"), ldap.ScopeBaseObject, "(objectClass=*)")); err != nil {
		t.Errorf("the connection should have lived on: %v", err)
	}
}

func TestAttributeSelection(t *testing.T) {
	c := dial(t, start(t), ReaderDN, ReaderPassword)
	names := func(attrs ...string) string {
		r, err := c.Search(query0(PersonDN("zoe"), ldap.ScopeBaseObject, "(objectClass=*)", attrs...))
		if err != nil || len(r.Entries) != 1 {
			t.Fatal(r, err)
		}
		var out []string
		for _, a := range r.Entries[0].Attributes {
			out = append(out, a.Name)
		}
		return strings.Join(out, " ")
	}
	all := "objectClass uid cn givenName sn title mail employeeNumber telephoneNumber"
	for _, tc := range []struct{ ask, want string }{
		{"", all}, {"*", all}, {"1.1", ""}, {"MAIL uid", "uid mail"}, {"+", ""}, {"userPassword", ""},
	} {
		if got := names(strings.Fields(tc.ask)...); got != tc.want {
			t.Errorf("asked %q, got %q, want %q", tc.ask, got, tc.want)
		}
	}
	r, err := c.Search(query0(PersonDN("radia"), ldap.ScopeBaseObject, "(objectClass=*)", "memberOf", "sn"))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Entries[0].GetAttributeValues("memberOf"); !slices.Equal(got, []string{GroupDN("engineers"), GroupDN("vpn-users")}) {
		t.Errorf("memberOf = %q", got)
	}
	q := query0(PersonDN("zoe"), ldap.ScopeBaseObject, "(objectClass=*)", "sn")
	q.TypesOnly = true
	if r, err := c.Search(q); err != nil || r.Entries[0].GetAttributeValue("sn") != "" || len(r.Entries[0].Attributes) != 1 {
		t.Errorf("typesOnly: %v", err)
	}
}

func TestPagedSearch(t *testing.T) {
	c := dial(t, start(t), ReaderDN, ReaderPassword)
	for _, size := range []uint32{1, 5, 6, 12, 100} {
		pages := 0
		paging := ldap.NewControlPaging(size)
		q := query0(PeopleDN, ldap.ScopeSingleLevel, "(objectClass=person)", "uid")
		q.Controls = []ldap.Control{paging}
		seen := map[string]bool{}
		for {
			r, err := c.Search(q)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, e := range r.Entries {
				if seen[e.DN] {
					t.Errorf("size %d: %s twice", size, e.DN)
				}
				seen[e.DN] = true
			}
			got, _ := ldap.FindControl(r.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
			if got == nil {
				t.Fatalf("size %d: no paging control in the answer", size)
			}
			if len(got.Cookie) == 0 {
				break
			}
			paging.SetCookie(got.Cookie)
		}
		if want := (12 + int(size) - 1) / int(size); len(seen) != 12 || pages != want {
			t.Errorf("size %d: %d people on %d pages, want 12 on %d", size, len(seen), pages, want)
		}
	}
}

func TestRootDSEIsOpenToAnonymous(t *testing.T) {
	c := dial(t, start(t), "", "")
	r, err := c.Search(query0("", ldap.ScopeBaseObject, "(objectClass=*)", "+"))
	if err != nil || len(r.Entries) != 1 {
		t.Fatal(r, err)
	}
	e := r.Entries[0]
	if e.GetAttributeValue("namingContexts") != BaseDN || e.GetAttributeValue("supportedControl") != ldap.ControlTypePaging {
		t.Errorf("root DSE: %v", e.Attributes)
	}
}

func modification(dn string, f func(*ldap.ModifyRequest)) *ldap.ModifyRequest {
	m := ldap.NewModifyRequest(dn, nil)
	f(m)
	return m
}

func TestModifyMembers(t *testing.T) {
	s := start(t)
	c := dial(t, s, AdminDN, AdminPassword)
	ada, alan, annie, edsger, zoe := PersonDN("ada"), PersonDN("alan"), PersonDN("annie"), PersonDN("edsger"), PersonDN("zoe")
	group := GroupDN("analysts") // ada, alan, katherine
	members := func() string {
		r, err := c.Search(query0(group, ldap.ScopeBaseObject, "(objectClass=*)", "member"))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, v := range r.Entries[0].GetAttributeValues("member") {
			out = append(out, strings.TrimPrefix(strings.SplitN(v, ",", 2)[0], "uid="))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, tc := range []struct {
		what string
		f    func(*ldap.ModifyRequest)
		code int
		then string
	}{
		{"add new", func(m *ldap.ModifyRequest) { m.Add("member", []string{zoe}) }, 0, "ada alan katherine zoe"},
		{"add existing", func(m *ldap.ModifyRequest) { m.Add("member", []string{zoe}) }, 20, "ada alan katherine zoe"},
		{"add existing, other spelling", func(m *ldap.ModifyRequest) { m.Add("Member", []string{strings.ToUpper(zoe)}) }, 20, "ada alan katherine zoe"},
		{"add one new and one existing", func(m *ldap.ModifyRequest) { m.Add("member", []string{edsger, ada}) }, 20, "ada alan katherine zoe"},
		{"add the same twice", func(m *ldap.ModifyRequest) { m.Add("member", []string{edsger, edsger}) }, 20, "ada alan katherine zoe"},
		{"add two", func(m *ldap.ModifyRequest) { m.Add("MEMBER", []string{edsger, annie}) }, 0, "ada alan annie edsger katherine zoe"},
		{"delete one", func(m *ldap.ModifyRequest) { m.Delete("member", []string{zoe}) }, 0, "ada alan annie edsger katherine"},
		{"delete absent", func(m *ldap.ModifyRequest) { m.Delete("member", []string{zoe}) }, 16, "ada alan annie edsger katherine"},
		{"delete one present and one absent", func(m *ldap.ModifyRequest) { m.Delete("member", []string{ada, zoe}) }, 16, "ada alan annie edsger katherine"},
		{"two changes, the second fails", func(m *ldap.ModifyRequest) {
			m.Delete("member", []string{ada})
			m.Add("member", []string{alan})
		}, 20, "ada alan annie edsger katherine"},
		{"replace", func(m *ldap.ModifyRequest) { m.Replace("member", []string{ada, alan}) }, 0, "ada alan"},
		{"replace with nothing", func(m *ldap.ModifyRequest) { m.Replace("member", nil) }, 65, "ada alan"},
		{"delete all", func(m *ldap.ModifyRequest) { m.Delete("member", nil) }, 65, "ada alan"},
		{"swap the last ones", func(m *ldap.ModifyRequest) {
			m.Delete("member", []string{ada, alan})
			m.Add("member", []string{zoe})
		}, 0, "zoe"},
		{"delete the last one", func(m *ldap.ModifyRequest) { m.Delete("member", []string{zoe}) }, 65, "zoe"},
		{"not a DN", func(m *ldap.ModifyRequest) { m.Add("member", []string{"not a dn"}) }, 21, "zoe"},
		{"empty value", func(m *ldap.ModifyRequest) { m.Add("member", []string{""}) }, 21, "zoe"},
		{"unknown attribute", func(m *ldap.ModifyRequest) { m.Add("membre", []string{ada}) }, 17, "zoe"},
		{"memberOf", func(m *ldap.ModifyRequest) { m.Add("memberOf", []string{ada}) }, 19, "zoe"},
		{"objectClass", func(m *ldap.ModifyRequest) { m.Replace("objectClass", []string{"top"}) }, 53, "zoe"},
		{"increment", func(m *ldap.ModifyRequest) { m.Increment("member", "1") }, 21, "zoe"},
	} {
		err := c.Modify(modification(group, tc.f))
		if got := code(err); got != tc.code {
			t.Errorf("%s: %d (%v), want %d", tc.what, got, err, tc.code)
		}
		if got := members(); got != tc.then {
			t.Errorf("%s: members are %q, want %q", tc.what, got, tc.then)
		}
	}
	add := func(m *ldap.ModifyRequest) { m.Add("member", []string{edsger}) }
	for _, tc := range []struct {
		who, password, dn string
		code              int
	}{
		{AdminDN, AdminPassword, GroupDN("nobody"), 32},
		{AdminDN, AdminPassword, PersonDN("ada"), 65},
		{ReaderDN, ReaderPassword, group, 50},
		{ReaderDN, ReaderPassword, GroupDN("nobody"), 32},
		{PersonDN("ada"), "demo-ada", group, 50},
		{"", "", group, 8},
	} {
		if err := dial(t, s, tc.who, tc.password).Modify(modification(tc.dn, add)); code(err) != tc.code {
			t.Errorf("%q modifies %q: %v, want %d", tc.who, tc.dn, err, tc.code)
		}
	}
	if got := members(); got != "zoe" {
		t.Errorf("members are %q after refused requests", got)
	}
}

func TestEntriesAreFixed(t *testing.T) {
	s := start(t)
	admin, reader := dial(t, s, AdminDN, AdminPassword), dial(t, s, ReaderDN, ReaderPassword)
	if err := admin.Del(ldap.NewDelRequest(PersonDN("ada"), nil)); code(err) != 53 {
		t.Errorf("delete: %v", err)
	}
	if err := admin.ModifyDN(ldap.NewModifyDNRequest(PersonDN("ada"), "uid=x", true, "")); code(err) != 53 {
		t.Errorf("rename: %v", err)
	}
	a := ldap.NewAddRequest(PersonDN("x"), nil)
	a.Attribute("objectClass", []string{"person"})
	if err := admin.Add(a); code(err) != 53 {
		t.Errorf("add: %v", err)
	}
	if err := reader.Add(a); code(err) != 50 {
		t.Errorf("add by the reader: %v", err)
	}
}

func TestCompareAndUnknownExtension(t *testing.T) {
	c := dial(t, start(t), ReaderDN, ReaderPassword)
	for _, tc := range []struct {
		dn, attr, value string
		match           bool
		code            int
	}{
		{PersonDN("ada"), "sn", "LOVELACE", true, 0},
		{PersonDN("ada"), "sn", "Turing", false, 0},
		{GroupDN("analysts"), "member", "UID=ada,ou=people, dc=example,dc=org", true, 0},
		{PersonDN("zoe"), "memberOf", GroupDN("analysts"), false, 16},
		{PersonDN("zoe"), "shoeSize", "44", false, 17},
		{PersonDN("nobody"), "sn", "x", false, 32},
	} {
		got, err := c.Compare(tc.dn, tc.attr, tc.value)
		if got != tc.match || code(err) != tc.code {
			t.Errorf("compare %s %s=%s: %v, %v", tc.dn, tc.attr, tc.value, got, err)
		}
	}
	if _, err := c.Extended(ldap.NewExtendedRequest("1.2.3", nil)); code(err) != ldap.LDAPResultProtocolError {
		t.Errorf("unknown extended operation: %v", err)
	}
}

func TestConcurrentClients(t *testing.T) {
	s := start(t)
	var wg sync.WaitGroup
	for i := range 8 {
		c := dial(t, s, AdminDN, AdminPassword)
		wg.Go(func() {
			for n := range 50 {
				who := PersonDN(people[(i+n)%len(people)][0])
				m := modification(GroupDN("engineers"), func(m *ldap.ModifyRequest) {
					if n%2 == 0 {
						m.Add("member", []string{who})
					} else {
						m.Delete("member", []string{who})
					}
				})
				if got := code(c.Modify(m)); got != 0 && got != 16 && got != 20 && got != 65 {
					t.Errorf("modify: %d", got)
				}
				if _, err := c.Search(query0(BaseDN, ldap.ScopeWholeSubtree, "(memberOf=*)", "*", "+")); err != nil {
					t.Errorf("search: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCloseEndsIdleClients(t *testing.T) {
	s := start(t)
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for s.NumConns() < len(conns) {
		time.Sleep(time.Millisecond)
	}
	done := make(chan struct{})
	go func() { s.Close(); s.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for idle clients")
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after Close: %d, %v", n, err)
		}
	}
	if _, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Error("still listening")
	}
}

func TestHostileBytesEndOnlyTheirConnection(t *testing.T) {
	s := start(t)
	for _, b := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00", "\x30\x80", "\x30\x84\xff\xff\xff\xff", "\x30\x89", "\x30\x00",
		"\x30\x03\x02\x01\x01", "\x30\x05\x02\x01\x01\x04\x00", "\x30\x05\x04\x01\x01\x42\x00", "\x30\x05\x02\x01\x01\x63\x00",
		"\x30\x05\x02\x01\x01\x60\x00", "\x30\x05\x02\x01\x01\x66\x00", "\x30\x05\x02\x01\x01\x6e\x00", "\x30\x05\x02\x01\x01\x77\x00",
		"\x30\x05\x02\x01\x01\x7e\x00",
	} {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(b))
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		var buf bytes.Buffer
		if _, err := buf.ReadFrom(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: neither answer nor end", b)
		}
		c.Close()
	}
	dial(t, s, ReaderDN, ReaderPassword) // and the server still serves
}

func TestLdapsearch(t *testing.T) {
	bin, err := exec.LookPath("ldapsearch")
	if err != nil {
		t.Fatal("ldapsearch is not installed: run make deps, or install ldap-utils")
	}
	s := start(t)
	out, err := exec.Command(bin, "-H", "ldap://"+s.Addr(), "-x", "-D", ReaderDN, "-w", ReaderPassword, "-LLL", "-o", "ldif-wrap=no",
		"-E", "pr=2/noprompt", "-b", BaseDN, "(&(objectClass=person)(memberOf="+GroupDN("engineers")+"))", "cn").CombinedOutput()
	if err != nil || strings.Count(string(out), "dn: ") != 5 || !strings.Contains(string(out), "cn: Radia Perlman") {
		t.Errorf("ldapsearch: %v\n%s", err, out)
	}
	out, err = exec.Command(bin, "-H", "ldap://"+s.Addr(), "-x", "-D", ReaderDN, "-w", "wrong", "-b", BaseDN).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 49 {
		t.Errorf("ldapsearch with a wrong password: %v\n%s", err, out)
	}
	modify := exec.Command("ldapmodify", "-H", "ldap://"+s.Addr(), "-x", "-D", AdminDN, "-w", AdminPassword)
	modify.Stdin = strings.NewReader("dn: " + GroupDN("analysts") + "\nchangetype: modify\nadd: member\nmember: " + PersonDN("zoe") + "\nmember: " + PersonDN("hedy") + "\n")
	if out, err := modify.CombinedOutput(); err != nil {
		t.Errorf("ldapmodify: %v\n%s", err, out)
	}
	out, err = exec.Command("ldapcompare", "-H", "ldap://"+s.Addr(), "-x", "-D", ReaderDN, "-w", ReaderPassword, GroupDN("analysts"), "member:"+PersonDN("hedy")).CombinedOutput()
	if !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("ldapcompare: %v\n%s", err, out)
	}
}
