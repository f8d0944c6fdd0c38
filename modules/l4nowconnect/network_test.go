//go:build unix

package l4nowconnect

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/modules/internal/hubtest"
)

// script is a listener that fails as told.
type script struct {
	net.Listener
	errs []error
	n    atomic.Int32
}

func (s *script) Accept() (net.Conn, error) {
	n := int(s.n.Add(1)) - 1
	if n < len(s.errs) {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", s.errs[n])}
	}
	return nil, net.ErrClosed
}

func (s *script) Addr() net.Addr { return &net.TCPAddr{Port: 1} }
func (s *script) Close() error   { return nil }

func TestPatientListener(t *testing.T) {
	var told []time.Duration
	failed := func(_ net.Addr, _ error, pause time.Duration) { told = append(told, pause) }
	s := &script{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.EINVAL, syscall.EMFILE}}
	if _, err := newPatient(s, failed).Accept(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("%v; what does not pass ends it", err)
	}
	if len(told) != 3 || told[0] != firstPause || told[1] != 2*firstPause || told[2] != 4*firstPause {
		t.Errorf("pauses %v", told)
	}
	// Close ends a pause.
	full := &script{errs: make([]error, 1000)}
	for i := range full.errs {
		full.errs[i] = syscall.EMFILE
	}
	p := newPatient(full, func(net.Addr, error, time.Duration) {})
	done := make(chan error)
	go func() {
		_, err := p.Accept()
		done <- err
	}()
	hubtest.Eventually(t, "it waits", func() bool { return full.n.Load() > 3 })
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Accept does not return")
	}
}
