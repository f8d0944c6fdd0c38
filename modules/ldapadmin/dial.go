package ldapadmin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/internal/wire"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// self is where connections of this handler come from, for policies and
// allow_cidrs.
var self = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// selfSubject is who they are to the policy. Callers are judged by themselves,
// request by request.
var selfSubject = authz.Entity{Type: "service", ID: "ldap_admin"}

// lingerTime is how long the directory may take to answer the end of a
// connection by its own, before the session is reset.
const lingerTime = 5 * time.Second

// tunnelDialer connects to a connector through the hub without leaving the
// process. Close it after the connections.
type tunnelDialer struct {
	hub       *hub.Hub
	connector string
	onDrain   func() // gives up connections that are kept for later; must not wait

	mu     sync.Mutex
	live   map[*tunnelConn]struct{} // nil once closed
	serves sync.WaitGroup           // one per live connection
}

var errDialerClosed = errors.New("ldap_admin is stopping")

// dial begins a session. It does not wait for it: what the client writes
// follows the request for it through the tunnel, and a refusal is an error of
// the first Read.
func (d *tunnelDialer) dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	life, end := context.WithCancel(context.Background())
	c := &tunnelConn{Conn: ours, end: end, done: make(chan struct{})}
	d.mu.Lock()
	if d.live == nil {
		d.mu.Unlock()
		end()
		_ = ours.Close()
		_ = theirs.Close()
		return nil, errDialerClosed
	}
	d.live[c] = struct{}{}
	d.serves.Add(1)
	d.mu.Unlock()
	go d.serve(life, c, &hub.Client{
		Connector: d.connector, Conn: theirs, Addr: netip.AddrPortFrom(self, 0),
		Listener: "ldap_admin", Subject: &selfSubject, Life: life, OnDrain: d.onDrain,
	})
	return c, nil
}

// serve runs one session to its end. close waits for it.
func (d *tunnelDialer) serve(life context.Context, c *tunnelConn, cl *hub.Client) {
	defer d.serves.Done()
	defer c.end()
	c.finish(d.hub.ServeClient(life, cl))
	d.mu.Lock()
	delete(d.live, c)
	d.mu.Unlock()
}

// close resets what is left and waits until it is gone.
func (d *tunnelDialer) close() {
	d.mu.Lock()
	for c := range d.live {
		c.end()
	}
	d.live = nil
	d.mu.Unlock()
	d.serves.Wait()
}

// auditLogger returns the logger "nowconnect.audit" of the configuration in
// force, or the given one when there is none.
func auditLogger(own *zap.Logger) *zap.Logger {
	if app := nowconnect.Current(); app != nil {
		return app.Logger().Named("audit")
	}
	return own
}

// tunnelConn is the client's end of a session.
type tunnelConn struct {
	net.Conn
	end  context.CancelFunc // resets the session
	done chan struct{}      // closed when the session is over and the next two are set
	why  wire.Reason
	text string

	once   sync.Once
	linger *time.Timer // guarded by mu
	mu     sync.Mutex
}

// Read tells why the session ended, where the pipe would only say that it did.
func (c *tunnelConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		if reason := c.reason(); reason != nil {
			return n, reason
		}
	}
	return n, err
}

// reasonPatience is how long the reason may come after the end. The hub tells
// it at once.
const reasonPatience = time.Second

func (c *tunnelConn) reason() error {
	t := time.NewTimer(reasonPatience)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C:
		return nil
	}
	if c.why == wire.ReasonFin || c.why == wire.ReasonRst {
		return nil
	}
	return fmt.Errorf("the hub ended the session: %s: %s", c.why, c.text)
}

// Close ends the connection in order, and after a while in any case.
func (c *tunnelConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		select {
		case <-c.done:
		default:
			c.linger = time.AfterFunc(lingerTime, c.end)
		}
	})
	return err
}

// finish is told the outcome once.
func (c *tunnelConn) finish(o hub.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why, c.text = o.Reason, o.Message
	close(c.done)
	if c.linger != nil {
		c.linger.Stop()
	}
}
