package rules

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/rules"
)

// maxFile bounds the file; some ten thousand rules.
const maxFile = 1 << 20

type digest = [sha256.Size]byte

func digestOf(b []byte) digest { return sha256.Sum256(b) }

// readFile reads a regular file. Anything else, such as a pipe, could hold up
// whoever reads it.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("rules file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("rules file %s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("rules file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("rules file: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("rules file %s has more than %d bytes", path, maxFile)
	}
	return b, nil
}

// parseFile reads either form; the first character tells which.
func parseFile(path string, b []byte) ([]rules.Rule, locator, error) {
	var found []rules.Rule
	var locate locator
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		found, locate, err = rules.ParseJSON(path, b)
	} else {
		found, locate, err = parseBlocks(path, b)
	}
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s:1: no rules; to let nobody connect, write a rule that denies", path)
	}
	return found, locate, err
}

// watcher reads the file again and again. Its fields are owned by run.
type watcher struct {
	rules   *Rules
	metrics *fileMetrics
	inForce digest // of the content in force
	latest  digest // of the last reading
	refused digest // of the content with a mistake that was told
	told    string // the complaint that stands; empty = none
}

// run returns when ctx ends. It polls rather than waits for events, because
// those are lost on network file systems, and behind the symbolic links by which
// orchestrators replace files.
func (w *watcher) run(ctx context.Context, every time.Duration) {
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.look()
			// Not a ticker: after a delay its ticks come close together, and two
			// readings that agree would prove little.
			t.Reset(every)
		}
	}
}

// look reads the file once.
func (w *watcher) look() {
	b, err := readFile(w.rules.path)
	if err != nil {
		w.latest = digest{}
		w.complain(err)
		return
	}
	d := digestOf(b)
	settled := d == w.latest
	w.latest = d
	switch {
	case d == w.inForce:
		if w.told != "" {
			w.told, w.refused = "", digest{}
			w.metrics.accepted()
			w.rules.logger.Info("the rules file is again what is in force", zap.String("file", w.rules.path))
		}
		return
	case !settled, d == w.refused:
		return
	}
	set, err := w.rules.compile(b)
	if err != nil {
		w.refused = d
		w.complain(err)
		return
	}
	w.inForce, w.refused, w.told = d, digest{}, ""
	w.rules.putInForce(set)
	w.metrics.accepted()
	w.metrics.reloaded.Inc()
}

// complain tells a mistake once, however often the file is read.
func (w *watcher) complain(err error) {
	if w.told == err.Error() {
		return
	}
	w.told = err.Error()
	w.metrics.rejected()
	w.rules.logger.Error("the rules file cannot be used; the rules in force stay",
		zap.String("file", w.rules.path), zap.String("policy", w.rules.set.Load().Hash()), zap.Error(err))
}
