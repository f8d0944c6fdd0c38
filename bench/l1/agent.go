package l1

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// Agent keeps PoolSize idle connections open at the hub.
type Agent struct {
	Hub, Target string // host:port
	Mutual      *tls.Config
}

// Run dials and serves until the process ends.
func (a *Agent) Run() {
	var wg sync.WaitGroup
	for range PoolSize {
		wg.Go(func() {
			for {
				if err := a.fillOne(); err != nil {
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
}

// fillOne opens one pooled connection and returns once it is in use, so that
// the caller opens the next.
func (a *Agent) fillOne() error {
	d := net.Dialer{Timeout: dialLimit}
	conn, err := tls.DialWithDialer(&d, "tcp", a.Hub, a.Mutual)
	if err != nil {
		return err
	}
	if err := awaitStart(conn); err != nil {
		conn.NetConn().Close()
		return err
	}
	go a.serve(conn)
	return nil
}

// awaitStart beats until the hub sends start.
func awaitStart(conn *tls.Conn) error {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(beatEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if _, err := conn.Write([]byte{beat}); err != nil {
					return
				}
			case <-stop:
				return
			}
		}
	}()
	var b [1]byte
	_, err := conn.Read(b[:])
	close(stop)
	<-stopped
	if err == nil && b[0] != start {
		err = errUnexpected
	}
	return err
}

func (a *Agent) serve(conn *tls.Conn) {
	link := conn.NetConn().(*net.TCPConn)
	defer link.Close()
	c, err := net.DialTimeout("tcp", a.Target, dialLimit)
	if err != nil {
		reset(link)
		return
	}
	target := c.(*net.TCPConn)
	defer target.Close()
	if _, err := conn.Write([]byte{dialled}); err != nil {
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		oneWay(target, conn, target, conn)
	}()
	oneWay(conn, target, target, conn)
	<-sent
}
