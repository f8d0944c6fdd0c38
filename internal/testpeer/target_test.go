package testpeer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

func sum(t *testing.T, r io.Reader) [32]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// roundTrip sends a megabyte to an echo and checks what returns.
func roundTrip(t *testing.T, addr string) {
	t.Helper()
	c := dial(t, addr)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, Pattern(1<<20))
		c.CloseWrite()
		sent <- err
	}()
	if sum(t, c) != sum(t, Pattern(1<<20)) {
		t.Error("the echo differs from what was sent")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestEcho(t *testing.T) {
	e := Echo(t)
	roundTrip(t, e.Addr)
	if e.Accepted() != 1 {
		t.Errorf("accepted %d, want 1", e.Accepted())
	}
	if !eventually(5*time.Second, nil, func() bool { return e.Open() == 0 }) {
		t.Errorf("%d connections still open", e.Open())
	}
}

func TestPatternShowsEveryShift(t *testing.T) {
	b, err := io.ReadAll(Pattern(1 << 17))
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []int{1, 256, 4096, 16376, 16384, 65536} {
		if bytes.Equal(b[:len(b)-by], b[by:]) {
			t.Errorf("the pattern repeats after %d bytes", by)
		}
	}
}

func TestRefuse(t *testing.T) {
	addr := Refuse(t)
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want connection refused", err)
	}
	if ln, err := net.Listen("tcp", addr); err == nil {
		ln.Close()
		t.Error("somebody else can listen on the refusing port")
	}
}

func TestBlackhole(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := new(net.Dialer).DialContext(ctx, "tcp", Blackhole(t))
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("dial: %v, want a timeout", err)
	}
}

func TestSilentNeitherReadsNorWrites(t *testing.T) {
	c := dial(t, Silent(t).Addr)
	c.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestResetterResets(t *testing.T) {
	c := dial(t, Resetter(t, 3).Addr)
	if _, err := c.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !IsReset(err) {
		t.Errorf("read: %v, want a reset", err)
	}
}

func TestHalfCloseTargets(t *testing.T) {
	c := dial(t, SendAfterFIN(t, 1<<20).Addr)
	c.CloseWrite()
	if sum(t, c) != sum(t, Pattern(1<<20)) {
		t.Error("what came after the FIN is not the pattern")
	}
	target, got := FINFirst(t)
	c = dial(t, target.Addr)
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v, want EOF", n, err)
	}
	if _, err := io.Copy(c, Pattern(1<<20)); err != nil {
		t.Error(err)
	}
	c.CloseWrite()
	if n := <-got; n != 1<<20 {
		t.Errorf("the target got %d bytes", n)
	}
}
