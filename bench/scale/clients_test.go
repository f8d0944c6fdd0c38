package scale

import (
	"encoding/json"
	"io"
	"net"
	"testing"

	"github.com/nowconnect/nowconnect/bench/target"
)

// The orders of a whole run, carried out towards the target itself.
func TestClientsCarryOutOrders(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- target.NewServer().Serve(ln) }()
	defer func() { ln.Close(); <-served }()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()

	orders, in := io.Pipe()
	out, replies := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- ServeOrders(orders, replies) }()
	enc, dec := json.NewEncoder(in), json.NewDecoder(out)
	do := func(o Order) (r Reply) {
		t.Helper()
		if err := enc.Encode(o); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	here := []string{ln.Addr().String()}
	for _, c := range []struct {
		order        Order
		done, failed int
	}{
		{Order{Do: Open, Addrs: here, N: 100}, 100, 0},
		{Order{Do: Open, Addrs: append(here, gone.Addr().String()), N: 10}, 5, 5},
		{Order{Do: Check, N: 1000}, 105, 0},
		{Order{Do: Close, N: 5}, 5, 0},
		{Order{Do: Check, N: 1000}, 100, 0},
		{Order{Do: First, Addrs: here, N: 20}, 20, 0},
		{Order{Do: "dance"}, 0, 1},
	} {
		r := do(c.order)
		if r.Done != c.done || r.Failed != c.failed || (r.Error != "") != (c.failed > 0) {
			t.Errorf("%s %d: %+v, want %d done and %d failed", c.order.Do, c.order.N, r, c.done, c.failed)
		}
		if (r.P50 > 0) != (c.order.Do == First) || r.P99 < r.P50 {
			t.Errorf("%s: took %v, %v", c.order.Do, r.P50, r.P99)
		}
	}
	in.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
