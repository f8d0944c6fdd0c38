package l4nowconnect

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"github.com/pires/go-proxyproto"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// hidden is a layer that does not say what is below it.
type hidden struct{ net.Conn }

func tcpPair(t *testing.T) *net.TCPConn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = s.Close() })
	return s.(*net.TCPConn)
}

func TestEndpointFindsSocketAndHalfClose(t *testing.T) {
	tcp := tcpPair(t)
	cx := func(c net.Conn) *layer4.Connection { return layer4.WrapConnection(c, nil, zap.NewNop()) }
	overTLS := tls.Server(cx(tcp), &tls.Config{})
	for name, c := range map[string]struct {
		conn   net.Conn
		socket bool
		same   bool        // bytes move on conn itself
		half   closeWriter // what ends one direction; nil: nothing can
	}{
		"tcp":                {tcp, true, true, tcp},
		"tls":                {overTLS, true, true, overTLS},
		"tls on tls":         {tls.Server(cx(overTLS), &tls.Config{}), true, true, nil},
		"PROXY":              {proxyproto.NewConn(cx(tcp)), true, false, tcp},
		"PROXY inside tls":   {proxyproto.NewConn(cx(overTLS)), true, false, overTLS},
		"hidden":             {hidden{tcp}, false, true, nil},
		"PROXY over hidden":  {proxyproto.NewConn(cx(hidden{tcp})), false, true, nil},
		"tls over something": {tls.Server(hidden{tcp}, &tls.Config{}), false, true, nil},
	} {
		conn, socket := endpoint(c.conn)
		if (socket == tcp) != c.socket {
			t.Errorf("%s: socket %v", name, socket)
		}
		if (conn == c.conn) != c.same {
			t.Errorf("%s: bytes move on a %T", name, conn)
		}
		if h, ok := conn.(*halfCloser); ok && h.below != c.half {
			t.Errorf("%s: half-close by a %T", name, h.below)
		}
		if _, ok := conn.(closeWriter); !ok && c.half != nil {
			t.Errorf("%s: no half-close", name)
		}
	}
}

func TestAddrPort(t *testing.T) {
	for _, c := range []struct {
		addr net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 5}, "192.0.2.1:5"}, // held in 16 bytes
		{&net.TCPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5}, "[2001:db8::1]:5"},
		{&net.UnixAddr{Name: "/run/x", Net: "unix"}, "invalid AddrPort"},
		{stringAddr("[::ffff:192.0.2.1]:5"), "192.0.2.1:5"},
	} {
		if got := addrPort(c.addr); got.String() != c.want {
			t.Errorf("%v: %v, want %s", c.addr, got, c.want)
		}
	}
	if addrPort(&net.TCPAddr{IP: net.ParseIP("192.0.2.1")}).Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Error("IPv4 is not IPv4")
	}
}

type stringAddr string

func (stringAddr) Network() string  { return "tcp" }
func (a stringAddr) String() string { return string(a) }

// broken panics as soon as it is looked at.
type broken struct{ net.Conn }

func (broken) SetDeadline(time.Time) error { panic("broken connection") }

// caddy-l4 does not recover: a panic that leaves Handle ends the process.
func TestHandleSurvivesPanics(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	h := &Handler{Connector: "echo", logger: zap.New(core), refused: nowconnect.NewLogLimiter(1, 1)}
	if err := h.Handle(layer4.WrapConnection(broken{tcpPair(t)}, nil, zap.NewNop()), nil); err != nil {
		t.Error(err)
	}
	if logs.FilterMessage("panic while serving a connection").Len() != 1 {
		t.Errorf("log: %v", logs.All())
	}
}
