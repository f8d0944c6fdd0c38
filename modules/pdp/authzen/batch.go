package authzen

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/authzen"
)

const (
	// maxBatch is how many questions go into one request: enough that judging
	// ten thousand sessions again is a hundred requests, few enough that a PDP
	// answers one within the time limit of a single question.
	maxBatch = 100

	// oneByOne is how many questions of a batch are on their way at one time
	// where the PDP takes no batches.
	oneByOne = 8

	// batchRetry is how long a PDP that has shown to have no batch endpoint is
	// not asked for it again.
	batchRetry = time.Hour
)

// batchClient is a client whose PDP takes, or may take, several questions at
// once.
type batchClient struct{ *client }

// DecideBatch implements authz.BatchDecider. Where the PDP does not take the
// questions together they are asked one by one, within the same deadline.
func (c batchClient) DecideBatch(ctx context.Context, rs []*authz.Request) []authz.Decision {
	ds, err := c.batch(ctx, rs)
	switch {
	case errors.Is(err, errNoBatch):
		return authz.DecideEach(ctx, c.client, rs, oneByOne)
	case err != nil:
		ds = make([]authz.Decision, len(rs))
		for i := range ds {
			ds[i] = failed(err)
		}
		return ds
	}
	c.askAgain(ctx, rs, ds)
	return ds
}

// askAgain asks by itself each question that the PDP could not judge in the
// batch.
func (c batchClient) askAgain(ctx context.Context, rs []*authz.Request, ds []authz.Decision) {
	var again []*authz.Request
	var at []int
	for i, d := range ds {
		if errors.Is(d.Err, authzen.ErrAskAlone) {
			again, at = append(again, rs[i]), append(at, i)
		}
	}
	for j, d := range authz.DecideEach(ctx, c.client, again, oneByOne) {
		ds[at[j]] = d
	}
}

// errNoBatch says that the questions have to be asked one by one.
var errNoBatch = errors.New("the PDP does not take the questions together")

// batch asks all questions in one request. The Err of an answer that is none is
// authzen.ErrAskAlone.
func (c batchClient) batch(ctx context.Context, rs []*authz.Request) ([]authz.Decision, error) {
	at, err := c.where.locate(ctx)
	switch {
	case err != nil:
		return nil, err
	case at.batch == "":
		return nil, errNoBatch
	}
	question, err := authzen.BatchQuestion(rs)
	if err != nil {
		return nil, &authz.Failure{Kind: authz.KindRejected, Err: fmt.Errorf("write the questions: %w", err)}
	}
	id, answered, body, err := c.post(ctx, at.batch, question, min(c.maxBody*int64(len(rs)), maxResponse))
	if c.refusesBatch(err) {
		return nil, errNoBatch
	}
	var ds []authz.Decision
	if err == nil {
		if ds, err = authzen.BatchAnswers(body, len(rs)); err != nil {
			err = &authz.Failure{Kind: authz.KindDecode, Err: err}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ask the PDP %d questions (request %s): %w", len(rs), id, err)
	}
	for i := range ds {
		ds[i].Engine, ds[i].ID = engineName, id
	}
	if l := c.logger.Check(zap.DebugLevel, "asked the PDP several questions"); l != nil {
		l.Write(zap.String("request_id", id), zap.String("answered_request_id", answered), zap.Int("questions", len(rs)))
	}
	return ds, nil
}

// refusesBatch reports whether a failed call leaves single questions to try. A
// PDP that knows no such endpoint is remembered for it. Any other refusal may be
// about one question of the batch, as some PDPs refuse all for one.
func (c batchClient) refusesBatch(err error) bool {
	s, ok := errors.AsType[*statusError](err)
	if !ok {
		return false
	}
	switch s.status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		if c.batchless.learn() {
			c.logger.Info("the PDP has no batch endpoint: questions about live sessions are asked one by one", zap.Error(err))
		}
		return true
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// batchless remembers until when the PDP has no batch endpoint.
type batchless struct{ until atomic.Int64 } // Unix time in nanoseconds; 0 is never

func (b *batchless) now() bool { return time.Now().UnixNano() < b.until.Load() }

// learn reports whether that was news.
func (b *batchless) learn() bool {
	now := time.Now()
	return b.until.Swap(now.Add(batchRetry).UnixNano()) < now.UnixNano()
}

// Interface guard
var _ authz.BatchDecider = batchClient{}
