package l1

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/bench/pki"
)

// relayTo starts a hub and an agent in this process and returns where clients connect.
func relayTo(t *testing.T, target string) string {
	t.Helper()
	files, err := pki.Create(t.TempDir(), []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := files.ServerMutual()
	if err != nil {
		t.Fatal(err)
	}
	client, err := files.ClientMutual()
	if err != nil {
		t.Fatal(err)
	}
	clients, agents := listen(t), listen(t)
	go NewHub().Serve(clients, agents, server) // ends with the listeners
	go (&Agent{Hub: agents.Addr().String(), Target: target, Mutual: client}).Run()
	return clients.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

func TestHalfClosePasses(t *testing.T) {
	ln := listen(t)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		all, _ := io.ReadAll(c) // returns only if the FIN passed
		_, _ = c.Write(all)
	}()
	c := dial(t, relayTo(t, ln.Addr().String()))
	if _, err := c.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 100_000 {
		t.Fatalf("got %d bytes and %v behind our FIN, want 100000 and EOF", len(got), err)
	}
}

func TestResetPassesToClient(t *testing.T) {
	ln := listen(t)
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = io.ReadFull(c, make([]byte, 1))
			reset(c.(*net.TCPConn))
		}
	}()
	c := dial(t, relayTo(t, ln.Addr().String()))
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client saw %v, want a reset", err)
	}
}

func TestResetPassesToTarget(t *testing.T) {
	ln := listen(t)
	seen := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = c.Write([]byte{1})
			_, err = io.ReadAll(c)
		}
		seen <- err
	}()
	c := dial(t, relayTo(t, ln.Addr().String()))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	reset(c)
	if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("target saw %v, want a reset", err)
	}
}

func TestRefusedTargetResetsClient(t *testing.T) {
	ln := listen(t)
	ln.Close()
	c := dial(t, relayTo(t, ln.Addr().String()))
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client saw %v, want a reset", err)
	}
}
