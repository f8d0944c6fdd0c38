package obs

import (
	"testing"
	"time"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// observer is tunnel.Observer, repeated here because obs stands below tunnel.
type observer interface {
	FrameSent(n int)
	FrameReceived(n int)
	Written(n int)
	WriteTime(d time.Duration)
	DrainTime(d time.Duration)
	FinSent()
	FinReceived()
	RstSent()
	RstReceived()
}

var (
	_ observer = (*Connector)(nil)
	_ observer = (*AgentConnector)(nil)
)

// frame records what one DATA frame each way costs a session's observer. The
// durations wander, so that histograms meet many buckets.
func frame(o observer, i int) {
	d := time.Duration(i%5000) * 2 * time.Microsecond
	o.FrameSent(i % wire.MaxData)
	o.FrameReceived(i % wire.MaxData)
	o.Written(i % wire.MaxData)
	o.WriteTime(d)
	o.DrainTime(d)
	o.FinSent()
	o.FinReceived()
	o.RstSent()
	o.RstReceived()
}

func TestRecordingDoesNotAllocate(t *testing.T) {
	check := func(name string, record func(i int)) {
		t.Helper()
		i := 0
		if n := testing.AllocsPerRun(10000, func() { record(i); i++ }); n != 0 {
			t.Errorf("%s: %v allocations per record, want none", name, n)
		}
	}
	for _, native := range []bool{false, true} {
		m := New(Options{NativeHistograms: native})
		c, a := m.Connector("addomain"), m.Agent("premise-1")
		check("hub frame", func(i int) { frame(c, i) })
		check("hub session", func(i int) {
			c.Accepted()
			c.PDP(authz.Allow, i%2 == 0, time.Duration(i))
			c.OpenTime(time.Duration(i))
			c.Duration(time.Duration(i))
			c.Closed(wire.ReasonFin)
			c.Closed(wire.ReasonUnknown)
			c.ListenerError(ErrorWrite)
			c.Overflow(SideHub)
		})
		check("hub link", func(i int) {
			a.RTT(time.Duration(i))
			a.Reconnected(wire.ReasonLinkLost)
		})
	}
	agent := NewAgentMetrics()
	c := agent.Connector("addomain")
	check("agent frame", func(i int) { frame(c, i) })
	check("agent session", func(i int) {
		c.Opened()
		c.DialTime(time.Duration(i))
		c.Closed(wire.ReasonFin)
	})
}

func BenchmarkFrame(b *testing.B) {
	for name, o := range map[string]Options{"classic": {}, "native": {NativeHistograms: true}} {
		c := New(o).Connector("addomain")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				frame(c, i)
			}
		})
	}
}
