package testpeer

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProxyForwards(t *testing.T) {
	p := TCPProxy(t, Echo(t).Addr)
	roundTrip(t, p.Addr)
	if p.Accepted() != 1 {
		t.Errorf("accepted %d, want 1", p.Accepted())
	}
	if !eventually(5*time.Second, nil, func() bool { return p.Open() == 0 }) {
		t.Errorf("%d connections still open", p.Open())
	}
}

func TestProxyPassesOnResets(t *testing.T) {
	c := dial(t, TCPProxy(t, Resetter(t, 1).Addr).Addr)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !IsReset(err) {
		t.Errorf("read: %v, want the target's reset", err)
	}
	got := make(chan error, 1)
	target := Serve(t, func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		got <- err
	})
	c = dial(t, TCPProxy(t, target.Addr).Addr)
	c.Write([]byte("x"))
	reset(c)
	if err := <-got; !IsReset(err) {
		t.Errorf("the target sees %v, want the client's reset", err)
	}
}

func TestProxyBlackholeAndHeal(t *testing.T) {
	p := TCPProxy(t, Echo(t).Addr)
	c := dial(t, p.Addr)
	ping := func(c net.Conn, within time.Duration) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		return read(c, within)
	}
	if err := ping(c, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Blackhole()
	p.Blackhole() // twice is the same
	late := dial(t, p.Addr)
	for _, c := range []net.Conn{c, late} {
		if err := ping(c, 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("through the black hole: %v, want a timeout", err)
		}
	}
	p.Heal()
	p.Heal()
	for _, c := range []net.Conn{c, late} { // what was held arrives
		if err := read(c, 10*time.Second); err != nil {
			t.Errorf("after healing: %v", err)
		}
	}
}

func TestProxyStrandsOnlyWhatIsOpen(t *testing.T) {
	ended := make(chan error, 1)
	target := Serve(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.Write([]byte("y"))
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	p := TCPProxy(t, target.Addr)
	lost := dial(t, p.Addr)
	lost.Write([]byte("x"))
	if err := read(lost, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	p.Strand()
	lost.Write([]byte("x"))
	reset(lost)
	passing := dial(t, p.Addr)
	passing.Write([]byte("x"))
	if err := read(passing, 10*time.Second); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	passing.CloseWrite()
	if err := <-ended; err != nil {
		t.Errorf("the new connection ends with %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the stranded target learns of the end: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if !eventually(5*time.Second, nil, func() bool { return p.Open() == 1 }) {
		t.Errorf("%d connections open, want the stranded one", p.Open())
	}
	p.CutRST()
	if err := <-ended; !IsReset(err) {
		t.Errorf("the stranded target ends with %v", err)
	}
}

func read(c net.Conn, within time.Duration) error {
	c.SetReadDeadline(time.Now().Add(within))
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// A peer that closes behind the black hole is not heard of until it heals.
func TestProxyBlackholeSwallowsFIN(t *testing.T) {
	closed := make(chan struct{})
	target := Serve(t, func(*net.TCPConn) { <-closed })
	p := TCPProxy(t, target.Addr)
	c := dial(t, p.Addr)
	if !eventually(5*time.Second, nil, func() bool { return target.Open() == 1 }) {
		t.Fatal("not connected")
	}
	p.Blackhole()
	close(closed)
	if err := read(c, 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("through the black hole: %v, want a timeout", err)
	}
	p.Heal()
	if err := read(c, 10*time.Second); !errors.Is(err, io.EOF) {
		t.Errorf("after healing: %v, want EOF", err)
	}
}

// A test may end while its proxy is a black hole; LeakCheck judges.
func TestProxyEndsAsABlackhole(t *testing.T) {
	p := TCPProxy(t, Echo(t).Addr)
	c := dial(t, p.Addr)
	p.Blackhole()
	c.Write([]byte("held"))
	dial(t, p.Addr)
}

func TestProxyCutRST(t *testing.T) {
	got := make(chan error, 1)
	target := Serve(t, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		got <- err
	})
	p := TCPProxy(t, target.Addr)
	c := dial(t, p.Addr)
	if err := read(c, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	p.CutRST()
	if err := read(c, 10*time.Second); !IsReset(err) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if err := <-got; !IsReset(err) {
		t.Errorf("the target sees %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", p.Addr); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

func TestProxyDelays(t *testing.T) {
	p := TCPProxy(t, Echo(t).Addr)
	p.Delay(50 * time.Millisecond)
	c := dial(t, p.Addr)
	for range 2 {
		began := time.Now()
		c.Write([]byte("x"))
		if err := read(c, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		if rtt := time.Since(began); rtt < 100*time.Millisecond {
			t.Errorf("round trip %v, want 100ms at least", rtt)
		}
	}
}

// A delay is latency, not a rate: many chunks are under way at once.
func TestProxyDelayKeepsThroughput(t *testing.T) {
	p := TCPProxy(t, Echo(t).Addr)
	p.Delay(100 * time.Millisecond)
	began := time.Now()
	roundTrip(t, p.Addr) // 32 chunks or more, each way
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("a megabyte took %v: chunks wait for each other", d)
	}
}

func connect(t *testing.T, proxy, auth, target string) (*net.TCPConn, *http.Response) {
	t.Helper()
	c := dial(t, proxy)
	io.WriteString(c, "CONNECT "+target+" HTTP/1.1\r\nHost: "+target+"\r\n"+auth+"\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return c, resp
}

func TestConnectProxy(t *testing.T) {
	e := Echo(t)
	p := ConnectProxy(t, ConnectProxyOptions{})
	c, resp := connect(t, p.Addr, "", e.Addr)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	c.Write([]byte("x"))
	if err := read(c, 10*time.Second); err != nil {
		t.Error(err)
	}
	c.CloseWrite()
	if err := read(c, 10*time.Second); !errors.Is(err, io.EOF) {
		t.Errorf("after our FIN: %v, want EOF", err)
	}
	if _, resp := connect(t, p.Addr, "", Refuse(t)); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("to a dead target: %s", resp.Status)
	}
	if p.Tunnels() != 1 || p.Refused() != 1 || p.Targets()[0] != e.Addr {
		t.Errorf("%d tunnels to %v, %d refused", p.Tunnels(), p.Targets(), p.Refused())
	}
	get, err := http.Get(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	get.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if get.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %s", get.Status)
	}
}

func TestConnectProxyAsksForCredentials(t *testing.T) {
	e := Echo(t)
	p := ConnectProxy(t, ConnectProxyOptions{User: "u", Password: "p w"})
	_, resp := connect(t, p.Addr, "", e.Addr)
	if resp.StatusCode != http.StatusProxyAuthRequired || !strings.HasPrefix(resp.Header.Get("Proxy-Authenticate"), "Basic ") {
		t.Errorf("without credentials: %s %v", resp.Status, resp.Header)
	}
	req := httptest.NewRequest(http.MethodGet, "/", nil)
	req.SetBasicAuth("u", "p w")
	if _, resp = connect(t, p.Addr, "Proxy-Authorization: "+req.Header.Get("Authorization")+"\r\n", e.Addr); resp.StatusCode != http.StatusOK {
		t.Errorf("with credentials: %s", resp.Status)
	}
	if p.Tunnels() != 1 {
		t.Errorf("%d tunnels, want 1", p.Tunnels())
	}
}
