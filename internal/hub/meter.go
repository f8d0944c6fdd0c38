package hub

import (
	"fmt"
	"sync/atomic"

	"github.com/nowconnect/nowconnect/internal/obs"
	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// meter counts a session's bytes for the obligation max_bytes, beside what the
// connector's statistics count.
type meter struct {
	*obs.Connector
	session *session
	limit   atomic.Int64 // 0: none
	bytes   atomic.Int64 // both directions
}

// FrameSent implements tunnel.Observer.
func (m *meter) FrameSent(n int) {
	m.Connector.FrameSent(n)
	m.count(n)
}

// FrameReceived implements tunnel.Observer. It counts before the frame is
// passed on, so that what exceeds the limit never is.
func (m *meter) FrameReceived(n int) {
	m.Connector.FrameReceived(n)
	m.count(n)
}

func (m *meter) count(n int) {
	total := m.bytes.Add(int64(n))
	if limit := m.limit.Load(); limit > 0 && total > limit {
		m.session.end(wire.ReasonRevoked, usedUp(limit))
	}
}

// over returns the verdict for a limit that was set too late.
func (m *meter) over() *verdict {
	if limit := m.limit.Load(); limit > 0 && m.bytes.Load() > limit {
		return &verdict{wire.ReasonRevoked, usedUp(limit)}
	}
	return nil
}

func usedUp(limit int64) string { return fmt.Sprintf("max_bytes %d are used up", limit) }

var _ tunnel.Observer = (*meter)(nil)
