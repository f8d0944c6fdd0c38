package linklistener_test

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
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

func init() {
	caddy.RegisterModule(counter{&writes, "test_writes"})
	caddy.RegisterModule(counter{&records, "test_records"})
}

// What passed the listener wrappers test_writes, below ours, and test_records,
// between ours and TLS, of all servers that have them.
var writes, records tally

// tally counts writes and their bytes.
type tally struct{ n, bytes atomic.Int64 }

// counter is a listener wrapper that counts.
type counter struct {
	to   *tally
	name string
}

func (k counter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: caddy.ModuleID("caddy.listeners." + k.name), New: func() caddy.Module { return &k }}
}

func (k *counter) WrapListener(ln net.Listener) net.Listener   { return countingListener{ln, k.to} }
func (*counter) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

type countingListener struct {
	net.Listener
	to *tally
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l.to}, nil
}

type countingConn struct {
	net.Conn
	to *tally
}

func (c countingConn) Write(p []byte) (int, error) {
	c.to.n.Add(1)
	c.to.bytes.Add(int64(len(p)))
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
	target := testpeer.Serve(t, func(c *net.TCPConn) { // takes all, and then says how much it was
		n, _ := io.Copy(io.Discard, c)
		_ = binary.Write(c, binary.BigEndian, n)
	})
	host, port, err := net.SplitHostPort(target.Addr)
	if err != nil {
		t.Fatal(err)
	}
	h.Agent(func(c *agent.Config) {
		c.URL, c.CABundle, c.Carrier = "https://"+h.HTTP+"/tunnel", ca.File, carrier
		p, _ := strconv.Atoi(port)
		c.Targets["echo"] = agent.Target{Host: host, Port: p}
	})
	return h
}

// send sends size bytes to the target, and returns how many records and how
// many writes to the link's socket the hub made for each MB of them.
func send(t *testing.T, h *hubtest.Hub, size int64) (recordsPerMB, writesPerMB float64) {
	t.Helper()
	r, w, b := records.n.Load(), writes.n.Load(), writes.bytes.Load()
	c := h.Dial()
	_, _ = io.Copy(c, testpeer.Pattern(size)) // what is missing is missed below
	_ = c.CloseWrite()
	var n int64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil || n != size {
		t.Fatalf("%d bytes of %d arrived, %v", n, size, err)
	}
	mb := float64(writes.bytes.Load()-b) / 1e6
	return float64(records.n.Load()-r) / mb, float64(writes.n.Load()-w) / mb
}

// A TLS record has 16 KiB at most: at least 61 for a MB. Without the wrapper each
// is a write. How many it takes beyond that hangs on how the bytes come, so
// records and writes are those of one run.
func TestRecordsLeaveTogether(t *testing.T) {
	const size, perMB = 16 << 20, 61
	for _, carrier := range []string{agent.CarrierNative, agent.CarrierWebSocket} {
		t.Run(carrier, func(t *testing.T) {
			r, w := send(t, start(t, "test_writes\ntest_records\ntls", carrier), size)
			t.Logf("without the wrapper: %.1f records and %.1f writes per MB", r, w)
			if r < perMB || w < perMB {
				t.Errorf("without the wrapper: %.1f records and %.1f writes per MB, want at least %d", r, w, perMB)
			}
			r, w = send(t, start(t, "test_writes\nnowconnect\ntest_records\ntls", carrier), size)
			t.Logf("with the wrapper: %.1f records and %.1f writes per MB", r, w)
			if r < perMB || w > r*2/3 {
				t.Errorf("with the wrapper: %.1f records and %.1f writes per MB, want two thirds at most", r, w)
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
