package agent

import (
	"sync"
	"time"
)

const (
	// retryNative is how long a fallback to WebSocket holds.
	retryNative = 10 * time.Minute

	// provenPatience is how many spoiled attempts in a row it takes to doubt
	// the native carrier once it has worked in this process: a restarting hub
	// breaks connections just as an intermediary does.
	provenPatience = 3
)

// carrierChoice decides which carrier to try. All links share it: they take
// the same way to the hub.
type carrierChoice struct {
	mode string // Config.Carrier

	mu        sync.Mutex
	proven    bool      // the native carrier has worked
	failures  int       // spoiled native attempts in a row
	webSocket time.Time // until then WebSocket goes first
}

// first returns the carrier to try first.
func (c *carrierChoice) first() string {
	if c.mode != CarrierAuto {
		return c.mode
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.webSocket) {
		return CarrierWebSocket
	}
	return CarrierNative
}

// spoiled notes that something on the way spoiled an attempt and reports
// whether WebSocket is worth trying now.
func (c *carrierChoice) spoiled(carrier string) bool {
	if c.mode != CarrierAuto {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if carrier == CarrierWebSocket {
		c.webSocket = time.Time{} // the way has changed: begin anew
		return false
	}
	c.failures++
	return !c.proven || c.failures >= provenPatience
}

// worked notes that a carrier led to a login. It reports whether that begins a
// fallback to WebSocket.
func (c *carrierChoice) worked(carrier string) (fellBack bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if carrier == CarrierNative {
		c.proven, c.failures, c.webSocket = true, 0, time.Time{}
		return false
	}
	if c.mode != CarrierAuto || time.Now().Before(c.webSocket) {
		return false
	}
	c.webSocket = time.Now().Add(retryNative)
	c.proven, c.failures = false, 0
	return true
}
