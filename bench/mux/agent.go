package mux

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// UpgradeName is the protocol name in the Upgrade header.
const UpgradeName = "ncbench-mux"

// Agent dials the hub as nowconnect-agent does (TLS, HTTP/1.1 upgrade with a
// bearer token, several links) and serves streams over Engine.
type Agent struct {
	Engine, Hub, Target, Token string
	Links                      int
	TLS                        *tls.Config
}

// Run dials and serves until the process ends.
func (a *Agent) Run() {
	var wg sync.WaitGroup
	for range a.Links {
		wg.Go(func() {
			for {
				_ = a.serveOne() // the hub may not be up yet; nobody reads a log here
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	wg.Wait()
}

func (a *Agent) serveOne() error {
	s, err := a.dial()
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		st, err := s.Accept()
		if err != nil {
			return err
		}
		go a.serveStream(st)
	}
}

func (a *Agent) dial() (Session, error) {
	d := tls.Dialer{Config: a.TLS, NetDialer: &net.Dialer{Timeout: 5 * time.Second}}
	conn, err := d.DialContext(context.Background(), "tcp", a.Hub)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodGet, "https://"+a.Hub+"/tunnel", http.NoBody)
	if err != nil {
		conn.Close()
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", UpgradeName)
	req.Header.Set("Authorization", "Bearer "+a.Token)
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("mux agent: hub answered %s", resp.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return NewSession(a.Engine, conn, br, false)
}

func (a *Agent) serveStream(st Stream) {
	c, err := net.DialTimeout("tcp", a.Target, 5*time.Second)
	if err != nil {
		st.Close()
		return
	}
	Relay(c.(*net.TCPConn), st)
}
