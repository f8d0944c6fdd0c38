package linklistener_test

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/nowconnect/nowconnect"
	"github.com/nowconnect/nowconnect/internal/agent"
	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func init() { caddy.RegisterModule(counter{}) }

// writes counts the writes to sockets, and their bytes, of all servers with
// the listener wrapper "test_counter".
var writes, bytes atomic.Int64

// counter is a listener wrapper below ours.
type counter struct{}

func (counter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.listeners.test_counter", New: func() caddy.Module { return new(counter) }}
}

func (counter) WrapListener(ln net.Listener) net.Listener     { return countingListener{ln} }
func (counter) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

type countingListener struct{ net.Listener }

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c}, nil
}

type countingConn struct{ net.Conn }

func (c countingConn) Write(p []byte) (int, error) {
	writes.Add(1)
	bytes.Add(int64(len(p)))
	return c.Conn.Write(p)
}

func (c countingConn) NetConn() net.Conn { return c.Conn }

// start runs a hub behind TLS with these listener wrappers, and an agent.
func start(t *testing.T, wrappers, carrier string) *hubtest.Hub {
	t.Helper()
	h, ca := hubtest.New(t), testpeer.NewCA(t)
	cert := ca.Issue(t, "127.0.0.1")
	h.Load(h.Caddyfile(hubtest.Basic,
		hubtest.Layer4+"\n\tservers {\n\t\tlistener_wrappers {\n"+wrappers+"\n\t\t}\n\t}",
		h.Expand("https://$HTTP {\n\tbind 127.0.0.1\n\ttls \""+cert.CertFile+"\" \""+cert.KeyFile+"\"\n\tnowconnect_agent /tunnel\n}")))
	h.Agent(func(c *agent.Config) {
		c.URL, c.CABundle, c.Carrier = "https://"+h.HTTP+"/tunnel", ca.File, carrier
	})
	return h
}

// echo sends size bytes through the echo, and returns how often the hub wrote
// to the link's socket for each MB.
func echo(t *testing.T, h *hubtest.Hub, size int64) float64 {
	t.Helper()
	w, b := writes.Load(), bytes.Load()
	c := h.Dial()
	go func() {
		_, _ = io.Copy(c, testpeer.Pattern(size)) // what is missing is missed below
		_ = c.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != size {
		t.Fatalf("%d bytes of %d came back, %v", n, size, err)
	}
	return float64(writes.Load()-w) / (float64(bytes.Load()-b) / 1e6)
}

// A TLS record has 16 KiB at most, so that without the wrapper a MB takes at
// least 61 writes.
func TestRecordsLeaveTogether(t *testing.T) {
	const size, perRecord = 16 << 20, 61
	for _, carrier := range []string{agent.CarrierNative, agent.CarrierWebSocket} {
		t.Run(carrier, func(t *testing.T) {
			without := echo(t, start(t, "test_counter\ntls", carrier), size)
			with := echo(t, start(t, "test_counter\nnowconnect\ntls", carrier), size)
			t.Logf("writes per MB: %.1f without, %.1f with the wrapper", without, with)
			if without < perRecord || with > without*2/3 {
				t.Errorf("writes per MB: %.1f without, %.1f with the wrapper; want at least %d, and two thirds of it at most", without, with, perRecord)
			}
		})
	}
}

// Without TLS there is nothing to gather: all goes through as it comes, and
// what is not a link goes through too.
func TestWithoutTLSItDoesNothing(t *testing.T) {
	h := hubtest.New(t)
	h.Load(h.Caddyfile(hubtest.Basic, hubtest.Layer4+"\n\tservers {\n\t\tlistener_wrappers {\nnowconnect\n\t\t}\n\t}",
		strings.Replace(hubtest.Site, "nowconnect_metrics", "root * $DIR\n\tfile_server\n\tnowconnect_metrics", 1)))
	h.Agent(nil)
	hubtest.RoundTrip(t, h.Dial(), "without TLS")
	text := strings.Repeat("0123456789", 100_000)
	h.Write("big", text)
	if status, body, _ := h.Get("/big"); status != 200 || body != text {
		t.Errorf("a file through the wrapper: %d, %d bytes", status, len(body))
	}
}
