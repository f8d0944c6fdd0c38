package ldapgroup_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/nowconnect/nowconnect/internal/ldapgroup"
	"github.com/nowconnect/nowconnect/internal/testpeer"
)

func TestTLS(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{TLS: true, Seed: groupsLDIF()})
	dialTo := func(addr string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", addr) }
	}
	roots := d.CA.Pool
	for _, tt := range []struct {
		name     string
		security Security
		addr     string
		tls      *tls.Config
		wrong    bool
	}{
		{"ldaps", LDAPS, d.TLSAddr, &tls.Config{RootCAs: roots, ServerName: "localhost"}, false},
		{"starttls", StartTLS, d.Addr, &tls.Config{RootCAs: roots, ServerName: "localhost"}, false},
		{"ldaps, another name", LDAPS, d.TLSAddr, &tls.Config{RootCAs: roots, ServerName: "ad.example.org"}, true},
		{"starttls, another name", StartTLS, d.Addr, &tls.Config{RootCAs: roots, ServerName: "ad.example.org"}, true},
		{"ldaps, another authority", LDAPS, d.TLSAddr, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}, true},
		{"starttls, another authority", StartTLS, d.Addr, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(d)
			c.Security, c.Dial, c.TLS, c.AllowPlaintextBind = tt.security, dialTo(tt.addr), tt.tls, false
			asked := false
			credentials := c.Credentials
			c.Credentials = func(ctx context.Context) (Credentials, error) { asked = true; return credentials(ctx) }
			m, err := engine(t, c).IsMember(context.Background(), d.GroupDN("gon"), d.UserDN(1))
			if !tt.wrong {
				if err != nil || !m.IsMember {
					t.Errorf("got %+v, %v", m, err)
				}
				return
			}
			var cert *tls.CertificateVerificationError
			if class(err) != ClassDirectory || !errors.As(err, &cert) {
				t.Errorf("got %v", err)
			}
			if asked {
				t.Error("credentials were read for a server that was not verified")
			}
		})
	}
}

// A server that has no StartTLS is not bound to.
func TestStartTLSRefused(t *testing.T) {
	for _, rep := range []reply{{code: 2}, {code: 52}, {raw: []byte("nonsense")}, {raw: []byte{0x30, 0x84, 0x40, 0, 0, 0}}, {cutBefore: true}, {silent: true}} {
		d := newFake()
		d.on = func(r *request) reply {
			if r.op == "extended" {
				return rep
			}
			return reply{}
		}
		bubble(t, d, func(c *Config) { c.Security, c.TLS = StartTLS, &tls.Config{ServerName: "x"} }, func(t *testing.T, e *Engine) {
			_, err := e.Check(context.Background())
			if class(err) == "" {
				t.Errorf("%+v: got %v", rep, err)
			}
			if n := len(d.saw("bind")); n != 0 {
				t.Errorf("%+v: %d binds in the clear", rep, n)
			}
		})
	}
}

// Dial may be slow to notice that nobody waits any more.
func TestLateDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFake()
		c := d.config()
		c.Dial = func(ctx context.Context) (net.Conn, error) {
			time.Sleep(time.Minute)
			return d.dial(ctx)
		}
		e, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begin := time.Now()
		if err := e.Ping(ctx); class(err) != ClassTimeout || time.Since(begin) != time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		e.Close()
		synctest.Wait()
		if d.conns != 0 {
			t.Errorf("%d connections are left", d.conns)
		}
	})
}

func TestServerClosesIdleConnections(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{IdleTimeout: time.Second, Seed: groupsLDIF()})
	p := testpeer.TCPProxy(t, d.Addr)
	target, err := ParseURL("ldap://" + p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	c := config(d)
	c.Dial = target.Dial
	e := engine(t, c)
	for _, want := range []string{"added/true", "already_member/false"} {
		r, err := e.Change(context.Background(), d.GroupDN("gon"), people("4"), nil, ChangeOptions{})
		if err != nil || brief(r) != want {
			t.Fatalf("got %v, %v", r, err)
		}
		if want != "added/true" {
			break
		}
		for deadline := time.Now().Add(20 * time.Second); p.Open() > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("slapd keeps idle connections")
			}
		}
	}
}

// Many callers come to the wanted state in the end, also while connections are
// cut under them all the time.
func TestManyCallersOnOpenLDAP(t *testing.T) {
	d := testpeer.Slapd(t, testpeer.SlapdOptions{People: 200, Seed: groupsLDIF()})
	for _, cuts := range []bool{false, true} {
		t.Run(fmt.Sprintf("cuts=%v", cuts), func(t *testing.T) {
			c := config(d)
			if cuts {
				p := testpeer.TCPProxy(t, d.Addr)
				target, err := ParseURL("ldap://" + p.Addr)
				if err != nil {
					t.Fatal(err)
				}
				c.Dial = target.Dial
				done := make(chan struct{})
				var cutter sync.WaitGroup
				cutter.Go(func() {
					for tick := time.NewTicker(100 * time.Millisecond); ; {
						select {
						case <-tick.C:
							p.CutRST()
						case <-done:
							return
						}
					}
				})
				defer cutter.Wait()
				defer close(done)
			}
			set(t, d, d.GroupDN("gon"), "member", d.UserDN(1))
			set(t, d, d.GroupDN("gou"), "uniqueMember", d.UserDN(1))
			e := engine(t, c)
			last := 200
			if cuts {
				last = 60
			}
			converge(t, d, e, last)
			for group, attribute := range map[string]string{"gon": "member", "gou": "uniqueMember"} {
				if got := values(t, d, d.GroupDN(group), attribute); len(got) != 1+(last-8)/2 {
					t.Errorf("%s has %d members, want %d", group, len(got), 1+(last-8)/2)
				}
			}
		})
	}
}

// converge has workers add and remove members of two groups. Those of one
// group own disjoint members; the last word is "in" for the even ones from 10 to
// last.
func converge(t *testing.T, d *testpeer.Directory, e *Engine, last int) {
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			group := d.GroupDN([]string{"gon", "gou"}[w%2])
			for i := 10 + w/2; i <= last; i += 8 {
				for _, in := range []bool{true, true, false, false, i%2 == 0} {
					intend(t, e, group, d.UserDN(i), in)
				}
			}
		})
	}
	wg.Wait()
}

// intend repeats one change until it is acknowledged, as a client would.
func intend(t *testing.T, e *Engine, group, member string, in bool) {
	adds, removes := []string{member}, []string(nil)
	if !in {
		adds, removes = removes, adds
	}
	for range 20 {
		r, err := e.Change(context.Background(), group, adds, removes, ChangeOptions{})
		if err == nil && r.Complete() {
			return
		}
		if c := class(err); err != nil && c != ClassUnavailable || err == nil && r.Members[0].Outcome != Unknown {
			t.Errorf("%s: %v, %v", member, r, err)
			return
		}
	}
	t.Errorf("%s: never acknowledged", member)
}
