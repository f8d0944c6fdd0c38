//go:build unix

package l4nowconnect

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

func listenTCP() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

// tenant is one configuration: it answers each client with its name.
type tenant struct {
	net.Listener
	done chan error // how Accept ended
}

func newTenant(ctx context.Context, t *testing.T, p *sockets, name byte) *tenant {
	t.Helper()
	l, err := p.listen(ctx, "here", listenTCP)
	if err != nil {
		t.Fatal(err)
	}
	n := &tenant{l, make(chan error, 1)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				n.done <- err
				return
			}
			_, _ = c.Write([]byte{name})
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return n
}

func (n *tenant) wantEnd(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-n.done:
		if !errors.Is(err, want) {
			t.Errorf("Accept ends with %v, want %v", err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Accept does not return")
	}
}

func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func wantServedBy(t *testing.T, c net.Conn, name byte) {
	t.Helper()
	var b [1]byte
	if _, err := c.Read(b[:]); err != nil || b[0] != name {
		t.Fatalf("served by %q, %v; want %q", b[0], err, name)
	}
}

func wantFree(t *testing.T, p *sockets, addr net.Addr) {
	t.Helper()
	hubtest.Eventually(t, "nobody listens", func() bool {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) > 0 {
		t.Errorf("%d sockets are still known", len(p.all))
	}
}

func TestSocketGoesFromOneConfigurationToTheNext(t *testing.T) {
	var p sockets
	a := newTenant(t.Context(), t, &p, 'a')
	wantServedBy(t, dial(t, a.Addr()), 'a')
	b := newTenant(t.Context(), t, &p, 'b')
	if a.Addr().String() != b.Addr().String() {
		t.Fatalf("two sockets: %v and %v", a.Addr(), b.Addr())
	}
	wantServedBy(t, dial(t, a.Addr()), 'a') // until it closes
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	a.wantEnd(t, net.ErrClosed)
	wantServedBy(t, dial(t, b.Addr()), 'b')
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	b.wantEnd(t, net.ErrClosed)
	wantFree(t, &p, b.Addr())
}

// Clients that wait in the queue are served by whoever comes next.
func TestQueueSurvivesTheConfiguration(t *testing.T) {
	var p sockets
	first, err := p.listen(t.Context(), "here", listenTCP)
	if err != nil {
		t.Fatal(err)
	}
	clients := make([]net.Conn, 50)
	for i := range clients {
		clients[i] = dial(t, first.Addr())
	}
	second := newTenant(t.Context(), t, &p, 'b')
	_ = first.Close()
	for _, c := range clients {
		wantServedBy(t, c, 'b')
	}
	_ = second.Close()
	wantFree(t, &p, first.Addr())
}

// A configuration that fails to start leaves its listeners open, says caddy-l4
// v0.1.2; its context is what ends then.
func TestConfigurationThatDoesNotStart(t *testing.T) {
	var p sockets
	a := newTenant(t.Context(), t, &p, 'a')
	ctx, fail := context.WithCancel(t.Context())
	b := newTenant(ctx, t, &p, 'b')
	fail()
	b.wantEnd(t, net.ErrClosed)
	wantServedBy(t, dial(t, a.Addr()), 'a')
	c := newTenant(t.Context(), t, &p, 'c')
	_ = a.Close()
	wantServedBy(t, dial(t, c.Addr()), 'c')
	_ = c.Close()
	wantFree(t, &p, c.Addr())
}

func TestBrokenSocketIsOpenedAnew(t *testing.T) {
	var p sockets
	s := &script{errs: []error{syscall.EINVAL}}
	l, err := p.listen(t.Context(), "here", func() (net.Listener, error) { return s, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Accept(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Accept: %v", err)
	}
	b := newTenant(t.Context(), t, &p, 'b')
	_ = l.Close()
	wantServedBy(t, dial(t, b.Addr()), 'b')
	refused := errors.New("refused")
	if _, err := p.listen(t.Context(), "elsewhere", func() (net.Listener, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("listen: %v", err)
	}
	_ = b.Close()
	wantFree(t, &p, b.Addr())
}

func TestNobodyIsResetWhileConfigurationsChange(t *testing.T) {
	var p sockets
	now := newTenant(t.Context(), t, &p, 'x')
	addr := now.Addr()
	stop := make(chan struct{})
	var served atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", addr.String())
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Errorf("after %d: %v", served.Load(), err)
				}
				_ = c.Close()
				served.Add(1)
			}
		})
	}
	for range 300 {
		next := newTenant(t.Context(), t, &p, 'x')
		_ = now.Close()
		now.wantEnd(t, net.ErrClosed)
		now = next
	}
	hubtest.Eventually(t, "clients are served", func() bool { return served.Load() > 100 })
	close(stop)
	wg.Wait()
	_ = now.Close()
	wantFree(t, &p, addr)
}
