package nowconnect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func listenerOn(t testing.TB, server, address string, layer4 bool) listener {
	t.Helper()
	addr, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	return listener{server, layer4, addr, transport(addr.Network), hostKey(addr.Host)}
}

// Any two are compared here, as meetings must not do.
func TestMeetingsAreThoseOfEverybodyWithEverybody(t *testing.T) {
	pick := func(of ...string) string { return of[rand.IntN(len(of))] }
	found := 0
	for range 500 {
		var all []listener
		for i := range 2 + rand.IntN(12) {
			from := 1 + rand.IntN(20)
			address := pick("", "tcp4/", "udp/", "nowconnect/", "unix/") + pick("", "0.0.0.0", "[::]", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "host", "HOST") +
				":" + strconv.Itoa(from) + pick("", "-"+strconv.Itoa(from+rand.IntN(4)))
			all = append(all, listenerOn(t, strconv.Itoa(i), address, rand.IntN(3) > 0))
		}
		var want, got []string
		for i, x := range all {
			for _, y := range all[:i] {
				if x.transport != "" && x.transport == y.transport && (x.layer4 || y.layer4) && x.addr.StartPort != 0 &&
					x.addr.StartPort <= y.addr.EndPort && y.addr.StartPort <= x.addr.EndPort &&
					(x.host == y.host || x.host == anyHost || y.host == anyHost) {
					want = append(want, fmt.Sprint(x, y))
				}
			}
		}
		for x, y := range meetings(all) {
			got = append(got, fmt.Sprint(x, y))
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%v\nmeet as %q\nwant %q", all, got, want)
		}
		found += len(want)
	}
	if found == 0 {
		t.Error("nobody met anybody")
	}
}

// With everybody compared to everybody this would take minutes.
func TestManyListenersAreCheckedSoon(t *testing.T) {
	var all []listener
	for i := range 20_000 {
		all = append(all, listenerOn(t, strconv.Itoa(i), ":"+strconv.Itoa(1+i), true),
			listenerOn(t, strconv.Itoa(i), fmt.Sprintf("10.%d.%d.1:389", i/256, i%256), true))
	}
	began := time.Now()
	n := 0
	for range meetings(all) {
		n++
	}
	if n != 20_000 { // all of them with the one on :389
		t.Errorf("%d meetings", n)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}
