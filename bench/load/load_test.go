package load

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/bench/target"
)

// straight serves a target in this process and describes traffic straight to it.
func straight(t *testing.T) Spec {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go target.NewServer().Serve(ln) // ends with the listener
	addr := ln.Addr().String()
	return Spec{Addr: addr, Count: addr, Warm: 50 * time.Millisecond, Window: 200 * time.Millisecond, Hub: os.Getpid()}
}

func TestEveryKindAgainstTheTarget(t *testing.T) {
	for _, tt := range []struct {
		kind   string
		conns  int
		metric string // must be above zero
	}{
		{Down, 2, "MB/s"},
		{Up, 2, "MB/s"},
		{Closed, 4, "ops/s"},
		{Churn, 4, "conns/s"},
		{Paced, 4, "p50 us"},
		{Stalled, 4, "bulk MB/s"},
		{Idle, 20, "opened/s"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			s := straight(t)
			s.Kind, s.Conns, s.Rate, s.Bulk, s.Stalled = tt.kind, tt.conns, 50, 1, 2
			r, err := Run(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if r[tt.metric] <= 0 {
				t.Errorf("%s is %v, want more than 0; all figures: %v", tt.metric, r[tt.metric], r)
			}
			for _, bad := range []string{"errors", "unanswered", "stuck conns", "failed", "dead of 200"} {
				if r[bad] != 0 {
					t.Errorf("%s is %v, want 0", bad, r[bad])
				}
			}
		})
	}
}

func TestFidelityOfAPlainConnectionIsFull(t *testing.T) {
	s := straight(t)
	s.Kind, s.Conns = Fidelity, 4
	r, err := Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"half-close passed %", "target's RST passed %", "client's RST passed %"} {
		if r[m] != 100 {
			t.Errorf("%s is %v, want 100", m, r[m])
		}
	}
}

func TestSilentTargetIsNotMeasured(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for _, kind := range []string{Down, Closed, Churn, Idle} {
		s := Spec{Kind: kind, Addr: ln.Addr().String(), Conns: 2, Window: 50 * time.Millisecond}
		if r, err := Run(t.Context(), s); err == nil {
			t.Errorf("%s against a closed port gave figures: %v", kind, r)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var l latencies
	for i := range 100 {
		l = append(l, time.Duration(100-i)*time.Microsecond)
	}
	l = merge([]latencies{l[:30], l[30:]})
	if p50, p99 := l.at(0.5), l.at(0.99); p50 != 50 || p99 != 99 {
		t.Errorf("p50 and p99 of 1..100 us are %v and %v, want 50 and 99", p50, p99)
	}
}
