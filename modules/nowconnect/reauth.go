package nowconnect

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/nowconnect/nowconnect/internal/hub"
)

// reauthenticate tells whose a token is that came over the live link of agent.
// The authenticators are asked as for a new link, in their order, with a
// request that has the token and nothing else to go by.
func (a *App) reauthenticate(ctx context.Context, agent, token string) (hub.Identity, error) {
	r := (&http.Request{
		Method: http.MethodGet, URL: new(url.URL), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Authorization": {"Bearer " + token}, HeaderAgent: {agent}},
	}).WithContext(ctx)
	var refused, unable error
	for _, auth := range a.auth {
		id, err := auth.Authenticate(r)
		switch {
		case err == nil:
			return id, nil
		case errors.Is(err, ErrBadCredential):
			refused = errors.Join(refused, err)
		case !errors.Is(err, ErrNoCredential):
			unable = errors.Join(unable, err)
		}
	}
	switch {
	case unable != nil: // one that cannot tell might yet say yes
		return hub.Identity{}, fmt.Errorf("%w: %w", hub.ErrUnavailable, unable)
	case refused != nil:
		return hub.Identity{}, refused
	}
	return hub.Identity{}, ErrNoCredential
}
