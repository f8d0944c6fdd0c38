package adminapi

import (
	"errors"
	"fmt"

	"github.com/nowconnect/nowconnect/internal/hub"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

// revokeRequest selects sessions: all that is given must hold.
type revokeRequest struct {
	CID       string `json:"cid,omitempty"`
	Connector string `json:"connector,omitempty"`
	Agent     string `json:"agent,omitempty"`
	Source    string `json:"source,omitempty"` // address or network
	Reason    string `json:"reason,omitempty"` // for the audit
}

var errRevokeNothing = errors.New("nothing selects sessions: give one or more of cid, connector, agent and source")

func (r revokeRequest) match() (hub.Match, error) {
	m := hub.Match{Session: r.CID, Connector: r.Connector, Agent: r.Agent}
	if r.Source != "" {
		p, err := nowconnect.ParsePrefixes([]string{r.Source})
		if err != nil {
			return m, fmt.Errorf("source: %w", err)
		}
		m.Source = p[0]
	}
	if m.Zero() {
		return m, errRevokeNothing
	}
	return m, nil
}

// revokeAnswer tells which sessions were ended.
type revokeAnswer struct {
	Ended    int      `json:"ended"`
	Sessions []string `json:"sessions"` // their cids
}

// revoke ends sessions. Remembered answers of policy are forgotten first, so
// that a client that comes back at once is judged by what policy says now.
func revoke(app *nowconnect.App, body revokeRequest) (any, error) {
	m, err := body.match()
	if err != nil {
		return nil, badRequest(err)
	}
	if err := checkConnector(app, m.Connector); err != nil {
		return nil, err
	}
	app.FlushPolicy(m.Connector)
	ended := app.Hub().Revoke(m, body.Reason)
	return revokeAnswer{len(ended), ended}, nil
}

type reevaluateRequest struct {
	Connector string `json:"connector,omitempty"`
}

// reevaluateAnswer tells how many live sessions are being judged again.
type reevaluateAnswer struct {
	Judging int `json:"judging"`
}

func reevaluate(app *nowconnect.App, body reevaluateRequest) (any, error) {
	if err := checkConnector(app, body.Connector); err != nil {
		return nil, err
	}
	return reevaluateAnswer{app.Reevaluate(body.Connector)}, nil
}
