//go:build unix

package hub

import (
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/rules"
)

// BenchmarkRulesDecision is all that policy costs a connection: choosing the
// agent, the question, the answer of the rules, the permit, and with "audited"
// the two lines in the log.
func BenchmarkRulesDecision(b *testing.B) {
	for _, c := range []struct {
		rules   int
		audited bool
	}{{3, false}, {3, true}, {200, false}} {
		name := fmt.Sprint(c.rules, "-rules")
		if c.audited {
			name += "-audited"
		}
		b.Run(name, func(b *testing.B) {
			var more []rules.Rule
			for i := range c.rules - 3 {
				more = append(more, rules.Rule{ID: fmt.Sprint("site-", i), Effect: rules.EffectAllow, Sources: []string{fmt.Sprintf("172.16.%d.0/24", i)}})
			}
			w := newWorld(b, config(with(dir("a1"), ruleBook(b, more...))))
			if c.audited {
				w.h.SetAudit(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel)), 1)
			}
			w.agent(login{id: "a1"})
			client := &Client{Connector: "dir", Addr: netip.MustParseAddrPort("10.1.2.3:4567"), Listener: "127.0.0.1:389"}
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				s := &session{name: w.h.sessionName(), conn: w.h.connectors["dir"], started: time.Now(), sampled: true, client: client}
				w.decideOnce(b, s)
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// decideOnce does for a session what open does, but for opening it.
func (w *world) decideOnce(b *testing.B, s *session) {
	w.h.mu.Lock()
	l := w.h.lawLocked(s.conn)
	w.h.mu.Unlock()
	links := w.h.choose(s.conn, l.k)
	q := question{law: l, phase: phaseAccept}
	if v := w.h.decide(b.Context(), s, &q, links[0].agent.id); v != nil {
		b.Fatalf("%+v", v)
	}
	w.h.chosen(links[0])
	w.h.mu.Lock()
	w.h.grantLocked(s, q.answer, q.asked)
	w.h.leases.remove(s)
	w.h.mu.Unlock()
	w.h.auditDecision(s, &q)
	w.h.auditEnd(s, &Outcome{Agent: q.agent, Decision: q.answer})
}

// cpu returns what the process has used: on a busy machine the time on the wall
// says little.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
