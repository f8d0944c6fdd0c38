package authzen

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/authzen"
)

const (
	idleTimeout = 90 * time.Second

	metadataPath = "/.well-known/authzen-configuration"
	// metadataAge is how long metadata is believed, and metadataRetry when it
	// is asked for again after that has failed.
	metadataAge   = time.Hour
	metadataRetry = time.Minute
)

// place is where questions go.
type place struct {
	single string // URL for one question
	batch  string // URL for several at once; empty when the PDP has none
}

// locator tells where questions go.
type locator interface {
	locate(ctx context.Context) (place, error)
}

type fixed place

func (f fixed) locate(context.Context) (place, error) { return place(f), nil }

// The paths that the specification gives the two endpoints.
const (
	singlePath = "/access/v1/evaluation"
	batchPath  = "/access/v1/evaluations"
)

// besides returns the URL for several questions at once that goes with the one
// for a single question: only where that has the specified path can the other
// be known.
func besides(single *url.URL) string {
	before, ok := strings.CutSuffix(single.Path, singlePath)
	if !ok || single.RawPath != "" {
		return ""
	}
	u := *single
	u.Path = before + batchPath
	return u.String()
}

// discovery asks the PDP where questions go, when the first one does.
type discovery struct {
	client     *client
	identifier string
	metadata   string // URL
	insecure   bool
	noBatch    bool // do not use the batch endpoint that it tells

	turn  chan struct{} // holds one token; who has it may use what is below
	found place         // empty until the first answer
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

// locate keeps using what it has found when a later look fails. That takes half
// of the time left at most, so that this question and those that wait for its
// turn to end can still be asked.
func (d *discovery) locate(ctx context.Context) (place, error) {
	select {
	case <-d.turn:
	case <-ctx.Done():
		return place{}, &authz.Failure{Kind: authz.KindTimeout, Err: fmt.Errorf("read the PDP's metadata: %w", ctx.Err())}
	}
	defer func() { d.turn <- struct{}{} }()
	if d.found.single != "" && time.Now().Before(d.until) {
		return d.found, nil
	}
	looking, cancel := ctx, context.CancelFunc(func() {})
	if deadline, ok := ctx.Deadline(); ok && d.found.single != "" {
		looking, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	defer cancel()
	found, err := d.look(looking)
	switch {
	case err == nil:
		d.found, d.until = found, time.Now().Add(metadataAge)
	case d.found.single == "":
		return place{}, fmt.Errorf("read the PDP's metadata: %w", err)
	default:
		d.client.logger.Warn("cannot read the PDP's metadata again: using what it said before", zap.Error(err))
		d.until = time.Now().Add(metadataRetry)
	}
	return d.found, nil
}

func (d *discovery) look(ctx context.Context) (place, error) {
	_, body, err := d.client.do(ctx, call{method: http.MethodGet, target: d.metadata, header: http.Header{}, limit: d.client.maxBody})
	if err != nil {
		return place{}, err
	}
	return d.read(body)
}

// read makes a place of metadata, which is somebody else's text until it is
// found to be of this PDP.
func (d *discovery) read(metadata []byte) (place, error) {
	m, err := authzen.ReadMetadata(metadata, d.identifier)
	if err != nil {
		return place{}, &authz.Failure{Kind: authz.KindDecode, Err: err}
	}
	single, err := d.target("access_evaluation_endpoint", m.Evaluation)
	if err != nil || m.Evaluations == "" || d.noBatch {
		return place{single: single}, err
	}
	batch, err := d.target("access_evaluations_endpoint", m.Evaluations)
	return place{single: single, batch: batch}, err
}

func (d *discovery) target(name, value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil {
		err = errNoURL
	} else {
		err = checkURL(u, d.insecure)
	}
	if err != nil {
		return "", &authz.Failure{Kind: authz.KindDecode, Err: fmt.Errorf("%s: %w", name, err)}
	}
	return u.String(), nil
}
