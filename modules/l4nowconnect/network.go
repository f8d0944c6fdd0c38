package l4nowconnect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() { caddy.RegisterNetwork(nowconnect.Network, listen) }

// listen makes a listener of TCP for an address such as nowconnect/:389. It
// exists for two reasons. caddy-l4 v0.1.2 stops to accept for good at the first
// error, say when the process is out of file descriptors for a moment, which
// anybody can bring about who can open enough connections to any port of the
// hub; and writes about it at level debug only: see patient. And Caddy opens a
// socket anew at each reload and closes the old one, which resets whoever waits
// in its queue: see socket.
func listen(ctx context.Context, _, host, ports string, offset uint, config net.ListenConfig) (any, error) {
	addr, err := caddy.ParseNetworkAddress("tcp/" + net.JoinHostPort(host, ports))
	if err != nil {
		return nil, err
	}
	return shared.listen(ctx, addr.JoinHostPort(offset), func() (net.Listener, error) {
		inner, err := addr.Listen(ctx, offset, config)
		if err != nil {
			return nil, err
		}
		l, ok := inner.(net.Listener)
		if !ok {
			return nil, fmt.Errorf("a %T does not accept connections", inner)
		}
		return newPatient(l, acceptFailed), nil
	})
}

// patient is a listener that does not give up when the machine is short of
// something.
type patient struct {
	net.Listener
	failed func(addr net.Addr, err error, pause time.Duration)

	once   sync.Once
	closed chan struct{}
}

// The pauses after failures in a row, as in net/http.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = time.Second
)

func newPatient(l net.Listener, failed func(net.Addr, error, time.Duration)) *patient {
	return &patient{Listener: l, failed: failed, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (p *patient) Accept() (net.Conn, error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		c, err := p.Listener.Accept()
		if err == nil || !passes(err) {
			return c, err
		}
		p.failed(p.Addr(), err, pause)
		select {
		case <-time.After(pause):
		case <-p.closed:
			return nil, net.ErrClosed
		}
	}
}

// Close implements net.Listener.
func (p *patient) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.Listener.Close()
}

// passes reports whether a listener that fails with err may succeed later.
func passes(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, // the process or the machine is full
		syscall.ECONNABORTED,          // the client has gone while it waited
		syscall.EPROTO, syscall.EPERM, // a firewall had something against it
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// acceptLog keeps a machine that stays full from filling the log.
var acceptLog = nowconnect.NewLogLimiter(1, 5)

func acceptFailed(addr net.Addr, err error, pause time.Duration) {
	if app := nowconnect.Current(); app != nil {
		for _, connector := range served.by(addr) {
			if app.HasConnector(connector) {
				app.Hub().Metrics().Connector(connector).AcceptError()
			}
		}
	}
	if suppressed, ok := acceptLog.Allow(); ok {
		caddy.Log().Named("nowconnect").Error("cannot accept clients for now: trying again",
			zap.Stringer("listener", addr), zap.Error(err), zap.Duration("pause", pause), suppressed)
	}
}

// served knows which connectors clients of a port come to. A listener is not
// told what will be done with its connections; this learns it from the first
// client of each.
var served ports

type ports struct {
	mu  sync.RWMutex
	all map[int]map[string]bool // connectors by port; guarded by mu
}

// learn notes that a client of addr came to a connector.
func (p *ports) learn(addr net.Addr, connector string) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return
	}
	p.mu.RLock()
	known := p.all[tcp.Port][connector]
	p.mu.RUnlock()
	if known {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = make(map[int]map[string]bool)
	}
	if p.all[tcp.Port] == nil {
		p.all[tcp.Port] = make(map[string]bool)
	}
	p.all[tcp.Port][connector] = true
}

// by returns the connectors that clients of addr came to.
func (p *ports) by(addr net.Addr) []string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Collect(maps.Keys(p.all[tcp.Port]))
}
