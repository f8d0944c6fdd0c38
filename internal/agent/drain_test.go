package agent

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/nowconnect/nowconnect/internal/testpeer"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// TestDrainLetsSessionsFinish: a stop signal costs no session that ends within
// drain_timeout.
func TestDrainLetsSessionsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newMemHub(t)
		leave := make(chan struct{})
		hub.target = func(c net.Conn) {
			go func() { <-leave; _ = c.Close() }() // a pipe has no half-close to tell the end by
			_, _ = io.Copy(c, c)
		}
		run := runOne(t, hub)
		l := hub.nextLink(t)
		client, result := l.openClient(t, "echo")
		echoPipe(t, client, "before")
		run.stop()
		synctest.Wait()
		if run.Ready() {
			t.Error("ready while draining")
		}
		if !l.link.Draining() {
			t.Error("the hub was not told")
		}
		echoPipe(t, client, "while draining")
		time.Sleep(10 * time.Second)
		echoPipe(t, client, "later")
		select {
		case <-run.done:
			t.Fatal("Run ended before its session")
		default:
		}
		start := time.Now()
		close(leave)
		_ = client.Close()
		if r := <-result; r.Reason != wire.ReasonFin {
			t.Errorf("ended with %+v", r)
		}
		<-run.done
		if d := time.Since(start); d > time.Second {
			t.Errorf("Run took %v to notice that all is done", d)
		}
		e := run.logs.FilterMessage("drained").All()
		if len(e) != 1 || e[0].Level != zapcore.InfoLevel || e[0].ContextMap()["finished"] != int64(1) || e[0].ContextMap()["cut"] != int64(0) {
			t.Errorf("report %v", e)
		}
	})
}

func TestDrainCutsAfterItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newMemHub(t)
		run := runOne(t, hub)
		l := hub.nextLink(t)
		result := l.open(t, "echo")
		synctest.Wait()
		start := time.Now()
		run.stop()
		if r := <-result; r.Reason != wire.ReasonShutdown || !r.Remote {
			t.Errorf("the session ended with %+v", r)
		}
		<-run.done
		if d := time.Since(start); d < DefaultDrainTimeout || d > DefaultDrainTimeout+time.Second {
			t.Errorf("cut after %v", d)
		}
		e := run.logs.FilterMessage("drained, and cut sessions that were still live").All()
		if len(e) != 1 || e[0].Level != zapcore.WarnLevel {
			t.Fatalf("report %v", e)
		}
		m := e[0].ContextMap()
		if names, _ := m["cut_sessions"].([]any); len(names) != 1 || names[0] != "echo/s-echo" || m["finished"] != int64(0) {
			t.Errorf("report %v", m)
		}
	})
}

// TestSecondSignalCutsAtOnce is Cut, which the command calls for it.
func TestSecondSignalCutsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newMemHub(t)
		run := runOne(t, hub)
		result := hub.nextLink(t).open(t, "echo")
		synctest.Wait()
		run.stop()
		time.Sleep(time.Second)
		start := time.Now()
		run.Cut()
		<-run.done
		if d := time.Since(start); d > time.Second {
			t.Errorf("took %v", d)
		}
		if r := <-result; r.Reason != wire.ReasonShutdown {
			t.Errorf("the session ended with %+v", r)
		}
	})
}

// TestDrainRefusesLatecomers opens a session that the hub sent before it read
// our DRAIN.
func TestDrainRefusesLatecomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newMemHub(t)
		run := runOne(t, hub)
		l := hub.nextLink(t)
		live := l.open(t, "echo")
		synctest.Wait()
		// Only the registry drains yet: what a DRAIN that is under way looks
		// like from the hub.
		run.sessions.beginDrain()
		late := l.open(t, "echo")
		if r := <-late; r.Reason != wire.ReasonDraining {
			t.Errorf("a latecomer got %+v", r)
		}
		l.carrier.Close()
		if r := <-live; r.Reason != wire.ReasonLinkLost {
			t.Errorf("the live one got %+v", r)
		}
		run.stop()
		run.Cut()
		<-run.done
	})
}

// TestStopWhileConnecting ends an agent that is in the middle of a handshake,
// or between two attempts.
func TestStopWhileConnecting(t *testing.T) {
	for _, down := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			hub := newMemHub(t)
			hub.down.Store(down)
			a, logs := hub.agent(t, Config{Links: 2})
			if !down {
				a.dialer.dial = silentPipe(t)
			}
			run := runMem(t, a, logs)
			time.Sleep(5 * time.Second)
			start := time.Now()
			run.stop()
			<-run.done
			if d := time.Since(start); d > 0 {
				t.Errorf("down %v: took %v", down, d)
			}
		})
	}
}

// TestStoppedAgentReportsLostSessions: a link that breaks during a drain is no
// success.
func TestStoppedAgentReportsLostSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newMemHub(t)
		run := runOne(t, hub)
		l := hub.nextLink(t)
		result := l.open(t, "echo")
		synctest.Wait()
		run.stop()
		time.Sleep(time.Second)
		l.carrier.Close()
		<-result
		<-run.done
		m := run.logs.FilterMessage("drained").All()[0].ContextMap()
		if m["lost"] != int64(1) || m["finished"] != int64(0) {
			t.Errorf("report %v", m)
		}
	})
}

// TestDrainLosesNoBytes: the hub's client does not read yet, so that the
// session is over for the agent while the hub still holds much of it.
func TestDrainLosesNoBytes(t *testing.T) {
	const size = firstWindow
	hub := newTestHub(t, nil)
	hub.smallBuffers = true
	cfg := testConfig(t, hub)
	cfg.Targets["big"] = targetOf(t, testpeer.SendAfterFIN(t, size).Addr)
	a := startAgent(t, cfg)
	eventually(t, "a link", func() bool { return hub.link(0) != nil })
	s := hub.open(t, 0, "big")
	_ = s.client.(*net.TCPConn).CloseWrite()
	eventually(t, "the session is over for the agent", func() bool { return a.sawEnd(t, "big") })
	held := s.Queued()
	a.stop()
	<-a.done
	got, err := io.Copy(io.Discard, s.client)
	if got != size || err != nil {
		t.Errorf("the client got %d of %d bytes, %v; the hub held %d when the agent left", got, size, err, held)
	}
	if held == 0 {
		t.Error("the hub held nothing: this tested nothing")
	}
}

// sawEnd reports whether a session of the connector has ended in order, as the
// agent sees it.
func (r *running) sawEnd(t *testing.T, connector string) bool {
	t.Helper()
	for _, e := range r.logs.FilterMessage("session ended").All() {
		if m := e.ContextMap(); m["connector"] == connector && m["reason"] == "fin" {
			return true
		}
	}
	return false
}

func echoPipe(t *testing.T, c net.Conn, text string) {
	t.Helper()
	go func() { _, _ = io.WriteString(c, text) }() // a pipe's Write waits for its reader
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
}
