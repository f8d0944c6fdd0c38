package authzen

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
)

const (
	idleTimeout = 90 * time.Second

	metadataPath = "/.well-known/authzen-configuration"
	// metadataAge is how long metadata is believed, and metadataRetry when it
	// is asked for again after that has failed.
	metadataAge   = time.Hour
	metadataRetry = time.Minute
)

// locator tells where questions go.
type locator interface {
	endpoint(ctx context.Context) (string, error)
}

type fixed string

func (f fixed) endpoint(context.Context) (string, error) { return string(f), nil }

// discovery asks the PDP where questions go, when the first one does.
type discovery struct {
	client     *client
	identifier string
	metadata   string // URL
	insecure   bool

	turn  chan struct{} // holds one token; who has it may use what is below
	found string        // empty until the first answer
	until time.Time     // when to ask again
}

func newDiscovery(c *client, id *url.URL, insecure bool) *discovery {
	m := *id
	m.Path = metadataPath + strings.TrimSuffix(id.EscapedPath(), "/")
	m.RawPath = ""
	if unescaped, err := url.PathUnescape(m.Path); err == nil && unescaped != m.Path {
		m.RawPath, m.Path = m.Path, unescaped
	}
	d := &discovery{client: c, identifier: id.String(), metadata: m.String(), insecure: insecure, turn: make(chan struct{}, 1)}
	d.turn <- struct{}{}
	return d
}

// endpoint keeps using what it has found when a later look fails.
func (d *discovery) endpoint(ctx context.Context) (string, error) {
	select {
	case <-d.turn:
	case <-ctx.Done():
		return "", &authz.Failure{Kind: authz.KindTimeout, Err: fmt.Errorf("read the PDP's metadata: %w", ctx.Err())}
	}
	defer func() { d.turn <- struct{}{} }()
	if d.found != "" && time.Now().Before(d.until) {
		return d.found, nil
	}
	found, err := d.look(ctx)
	switch {
	case err == nil:
		d.found, d.until = found, time.Now().Add(metadataAge)
	case d.found == "":
		return "", fmt.Errorf("read the PDP's metadata: %w", err)
	default:
		d.client.logger.Warn("cannot read the PDP's metadata again: using what it said before", zap.Error(err))
		d.until = time.Now().Add(metadataRetry)
	}
	return d.found, nil
}

func (d *discovery) look(ctx context.Context) (string, error) {
	_, body, err := d.client.do(ctx, http.MethodGet, d.metadata, http.Header{}, nil)
	if err != nil {
		return "", err
	}
	var m struct {
		PDP      string `json:"policy_decision_point"`
		Endpoint string `json:"access_evaluation_endpoint"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return "", &authz.Failure{Kind: authz.KindDecode, Err: err}
	}
	// Else a PDP could speak for another one.
	if m.PDP != d.identifier {
		return "", &authz.Failure{Kind: authz.KindDecode, Err: fmt.Errorf("it is that of %q and not of %q", clean(m.PDP), d.identifier)}
	}
	u, err := url.Parse(m.Endpoint)
	if err == nil {
		err = checkURL(u, d.insecure)
	}
	if err != nil {
		return "", &authz.Failure{Kind: authz.KindDecode, Err: fmt.Errorf("access_evaluation_endpoint: %w", err)}
	}
	return u.String(), nil
}
