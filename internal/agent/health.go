package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

const (
	// silence is how long a client may say nothing before it gets the plain
	// word. It exceeds TCP's least retransmission timeout (200 ms), so that a
	// lost packet does not turn an HTTP request into a silent client.
	silence = 250 * time.Millisecond

	// maxHealthConns bounds the port's connections; more are closed at once.
	maxHealthConns = 64

	// healthTime bounds reading a request's header, and then answering it.
	healthTime = 5 * time.Second
)

// healthPort serves two kinds of client on one port. A client that says
// nothing gets OK, or READY once a link is up, and a close: that is the
// original's protocol, for nc and TCP probes. A client that speaks is an HTTP
// client.
type healthPort struct {
	agent *Agent
	ln    net.Listener
	http  *http.Server
	conns chan net.Conn // sniffed connections, to the HTTP server
	slots chan struct{} // one token per open connection
	done  chan struct{} // closed by close
	once  sync.Once
	wg    sync.WaitGroup // sniffing goroutines
}

func newHealthPort(a *Agent) *healthPort {
	h := &healthPort{
		agent: a,
		conns: make(chan net.Conn), slots: make(chan struct{}, maxHealthConns), done: make(chan struct{}),
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(a.metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(insecureGauge(a.insecure()))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: healthTime}))
	h.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: healthTime, ReadTimeout: healthTime, WriteTimeout: 2 * healthTime,
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       zap.NewStdLog(a.log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
	}
	// One request per connection: it bounds how long each may live.
	h.http.SetKeepAlivesEnabled(false)
	return h
}

// insecureGauge shows what the log said at the start, for whoever did not read
// it then.
func insecureGauge(on bool) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nowconnect_agent_insecure",
		Help: "1 when the hub is reached without TLS over a network, else 0.",
	})
	if on {
		g.Set(1)
	}
	return g
}

func (h *healthPort) listen() error {
	ln, err := net.Listen("tcp", h.agent.cfg.HealthAddr)
	h.ln = ln
	return err
}

// serve runs until close and waits for all it started.
func (h *healthPort) serve() {
	h.agent.log.Info("health port listens", zap.Stringer("addr", h.ln.Addr()))
	h.wg.Go(func() { _ = h.http.Serve(sniffed{h}) }) // ends with ErrServerClosed
	for {
		conn, err := h.ln.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			h.wg.Wait()
			return
		case err != nil:
			// Such as running out of descriptors: it passes, and must not end
			// the port.
			h.agent.log.Warn("health port cannot accept", zap.Error(err))
			time.Sleep(100 * time.Millisecond)
			continue
		}
		select {
		case h.slots <- struct{}{}:
			h.wg.Go(func() { h.sniff(&healthConn{Conn: conn, slots: h.slots}) })
		default:
			_ = conn.Close()
		}
	}
}

func (h *healthPort) close() {
	h.once.Do(func() {
		close(h.done)
		_ = h.ln.Close()
		_ = h.http.Close()
	})
}

// sniff waits briefly for the client to speak and decides.
func (h *healthPort) sniff(conn *healthConn) {
	conn.r = bufio.NewReaderSize(conn.Conn, 512)
	_ = conn.SetReadDeadline(time.Now().Add(silence))
	if _, err := conn.r.Peek(1); err != nil {
		h.word(conn)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	select {
	case h.conns <- conn:
	case <-h.done:
		_ = conn.Close()
	}
}

// word answers a silent client, and one that has only half-closed.
func (h *healthPort) word(conn net.Conn) {
	text := "OK"
	if h.agent.Ready() {
		text = "READY"
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(text)) // a TCP probe has left already
	_ = conn.Close()
}

func (h *healthPort) healthz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readiness is the body of /readyz.
type readiness struct {
	Status     string      `json:"status"` // ready, not_ready or draining
	Agent      string      `json:"agent"`
	Connectors []string    `json:"connectors"`
	Sessions   int         `json:"sessions"`
	Links      []linkState `json:"links"` // by link number
}

func (h *healthPort) readyz(w http.ResponseWriter, _ *http.Request) {
	a := h.agent
	r := readiness{Status: "ready", Agent: a.cfg.AgentID, Connectors: a.cfg.Connectors, Sessions: a.sessions.count()}
	for _, s := range a.links {
		if !s.used.Load() {
			break // they come into use in order
		}
		r.Links = append(r.Links, s.current())
	}
	code := http.StatusOK
	switch {
	case a.sessions.isLeaving():
		r.Status, code = "draining", http.StatusServiceUnavailable
	case !a.Ready():
		r.Status, code = "not_ready", http.StatusServiceUnavailable
	}
	writeJSON(w, code, r)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client has left
}

// sniffed is the listener that hands speaking clients to the HTTP server.
type sniffed struct{ *healthPort }

func (s sniffed) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s sniffed) Close() error   { return nil } // healthPort.close does it
func (s sniffed) Addr() net.Addr { return s.ln.Addr() }

// healthConn gives back its slot when closed, and the sniffed bytes first.
type healthConn struct {
	net.Conn
	r     *bufio.Reader
	slots chan struct{}
	once  sync.Once
}

func (c *healthConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *healthConn) Close() error {
	c.once.Do(func() { <-c.slots })
	return c.Conn.Close()
}
