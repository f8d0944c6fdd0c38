package agent

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/nowconnect/nowconnect/internal/tunnel"
	"github.com/nowconnect/nowconnect/internal/wire"
)

// stage names how far an attempt to make a link came.
type stage string

const (
	stageToken   stage = "read token"
	stageCA      stage = "read CA bundle"
	stageCert    stage = "read client certificate"
	stageDial    stage = "connect"
	stageProxy   stage = "pass proxy"
	stageTLS     stage = "TLS handshake"
	stageUpgrade stage = "HTTP upgrade"
	stageHello   stage = "login"
)

// A ConnectError tells why an attempt to make a link failed.
type ConnectError struct {
	Stage   stage
	Status  int    // of the hub's HTTP answer, or the proxy's; 0 when there was none
	FromHub bool   // our hub gave the answer, not something before it
	Carrier string // what was asked for; empty before it mattered
	Err     error
}

// Error says at which stage and why.
func (e *ConnectError) Error() string {
	s := string(e.Stage)
	if e.Carrier != "" {
		s += " (" + e.Carrier + ")"
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// spoiled reports whether something between us and the hub may be to blame for
// not letting the carrier through, so that another carrier has a chance. A hub
// that refuses us is not to blame on the carrier; its 426 is, because it means
// that our Upgrade header got lost on the way.
func (e *ConnectError) spoiled() bool {
	switch e.Stage {
	case stageUpgrade:
		return !e.FromHub || e.Status == http.StatusUpgradeRequired
	case stageHello:
		return !e.FromHub
	}
	return false
}

// trouble classes the end of a link or of an attempt, for backoff and logs.
type trouble int

const (
	troubleLost       trouble = iota // the network or a restarting hub: worth a quick retry
	troubleBusy                      // the hub answers, and takes no agents at the moment
	troubleRefused                   // hub or proxy do not want us: asking often does not help
	troubleSuperseded                // somebody else uses our agent id
)

func classify(err error) trouble {
	var le *tunnel.LinkError
	if errors.As(err, &le) && le.Remote {
		switch le.Reason {
		case wire.ReasonSuperseded:
			return troubleSuperseded
		case wire.ReasonDraining:
			return troubleBusy
		case wire.ReasonRefused, wire.ReasonDenied, wire.ReasonRevoked, wire.ReasonLimit, wire.ReasonProtocol:
			return troubleRefused
		}
	}
	var ce *ConnectError
	if errors.As(err, &ce) && ce.FromHub {
		switch {
		case ce.Stage == stageTLS:
			return troubleRefused
		case ce.Status == http.StatusServiceUnavailable || ce.Status == http.StatusTooManyRequests:
			return troubleBusy
		case ce.Status >= 400 && ce.Status < 500:
			return troubleRefused
		}
	}
	if errors.As(err, &ce) && (ce.Stage == stageToken || ce.Stage == stageCA || ce.Stage == stageCert) {
		return troubleRefused // a file will not come back within milliseconds
	}
	if errors.As(err, &ce) && ce.Stage == stageProxy && ce.Status >= 400 && ce.Status < 500 {
		return troubleRefused // and wrong passwords in a row lock accounts
	}
	return troubleLost
}

// stageOf is where an attempt failed; empty for a link that was up.
func stageOf(err error) stage {
	var ce *ConnectError
	if errors.As(err, &ce) {
		return ce.Stage
	}
	return ""
}

// linkReason is the reason that metrics and logs get for the end of a link or
// a failed attempt.
func linkReason(err error) wire.Reason {
	var le *tunnel.LinkError
	if errors.As(err, &le) {
		return le.Reason
	}
	if classify(err) == troubleRefused {
		return wire.ReasonRefused
	}
	return wire.ReasonLinkLost
}

// stateKey is equal for failures that an operator would call the same. Error
// texts will not do: they hold port numbers that change with each attempt.
func stateKey(err error) string {
	var ce *ConnectError
	if errors.As(err, &ce) {
		return fmt.Sprintf("%s %d %v %v", ce.Stage, ce.Status, ce.FromHub, linkReason(err))
	}
	return linkReason(err).String()
}

// oneLine makes a peer's words fit for a log line.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.Join(strings.Fields(s), " ")
}
