// Package rules is the module "nowconnect.pdp.rules": declarative rules in the
// configuration and in a file of their own. It owns the file's watcher; what
// rules mean is in internal/rules.
//
// Invariants:
//
//   - There is always a whole, checked set of rules to decide by. A file with a
//     mistake at the start fails the load; later it changes nothing.
//   - A set is replaced in one step, so no decision mixes old and new rules.
//   - The watcher ends with its configuration.
package rules

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/nowconnect/nowconnect/internal/authz"
	"github.com/nowconnect/nowconnect/internal/rules"
	"github.com/nowconnect/nowconnect/modules/nowconnect"
)

func init() {
	caddy.RegisterModule(&Rules{})
}

// Rules decides by rules that stand in the configuration, in a file of their
// own, or in both. What no rule allows is denied, and a rule that denies beats
// every rule that allows, wherever they stand. The rule's id is the decision's
// reason.
//
// The file is read again when it changes. A file with a mistake changes nothing:
// the rules in force stay, and the log and a metric tell.
type Rules struct {
	// Rules are those of the configuration. Their ids must differ, also from
	// those of the file.
	Rules []rules.Rule `json:"rules,omitempty"`

	// File is the path of a file with more rules: either JSON, as an object
	// with the one field `rules`, or the Caddyfile's `allow` and `deny` blocks.
	// It must be there, and right, when the configuration is loaded. Whoever
	// may write it decides who may connect. Global placeholders are replaced in
	// the path. Default: none.
	File string `json:"file,omitempty"`

	// PollInterval is how often the file is read. A change takes effect when
	// two readings in a row agree, so that a file being written is not taken
	// for a whole one. From 10ms. Default: 1s.
	PollInterval caddy.Duration `json:"poll_interval,omitempty"`

	// owned by Provision; read-only afterwards
	logger *zap.Logger
	path   string
	knows  func(connector string) bool // nil: nobody can tell
	cancel context.CancelFunc          // nil until the watcher runs
	done   chan struct{}               // closed by the watcher

	set     atomic.Pointer[rules.Set]
	changed atomic.Pointer[func()] // whom to tell of a new set; nil: nobody
}

const (
	defaultPoll = time.Second
	minPoll     = 10 * time.Millisecond
)

// CaddyModule returns the Caddy module information.
func (*Rules) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "nowconnect.pdp.rules",
		New: func() caddy.Module { return new(Rules) },
	}
}

// Provision compiles the rules, reads the file and begins to watch it.
func (p *Rules) Provision(ctx caddy.Context) error {
	p.logger = ctx.Logger()
	for _, m := range ctx.Modules() {
		if app, ok := m.(*nowconnect.App); ok {
			p.knows = app.HasConnector
		}
	}
	if len(p.Rules) == 0 && p.File == "" {
		return errEmpty
	}
	switch {
	case p.PollInterval == 0:
		p.PollInterval = caddy.Duration(defaultPoll)
	case time.Duration(p.PollInterval) < minPoll:
		return fmt.Errorf("poll_interval is below %s", minPoll)
	}
	if p.File == "" {
		set, err := rules.Compile(p.knows, rules.Source{Rules: p.Rules})
		if err != nil {
			return err
		}
		p.putInForce(set)
		return nil
	}
	return p.provisionFile(ctx)
}

var errEmpty = errors.New("pdp rules has neither a rule nor a file, so nobody could connect")

func (p *Rules) provisionFile(ctx caddy.Context) error {
	var err error
	if p.path, err = caddy.NewReplacer().ReplaceOrErr(p.File, true, true); err != nil {
		return fmt.Errorf("file: %w", err)
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	b, err := readFile(p.path)
	if err != nil {
		return err
	}
	set, err := p.compile(b)
	if err != nil {
		return err
	}
	p.putInForce(set)
	w := &watcher{rules: p, inForce: digestOf(b), metrics: watch(p.path)}
	w.metrics.accepted()
	watching, cancel := context.WithCancel(ctx)
	p.cancel, p.done = cancel, make(chan struct{})
	go func() {
		defer close(p.done)
		defer w.metrics.release()
		w.run(watching, time.Duration(p.PollInterval))
	}()
	return nil
}

// compile makes a set of the configuration's rules and the file's content.
func (p *Rules) compile(content []byte) (*rules.Set, error) {
	more, locate, err := parseFile(p.path, content)
	if err != nil {
		return nil, err
	}
	set, err := rules.Compile(p.knows, rules.Source{Rules: p.Rules}, rules.Source{Prefix: filePrefix, Rules: more})
	return set, located(err, p.path, filePrefix, locate)
}

// filePrefix begins the ids of the file's rules that have none of their own.
const filePrefix = "file-"

// putInForce makes set the one to decide by.
func (p *Rules) putInForce(set *rules.Set) {
	old := p.set.Swap(set)
	f := []zap.Field{zap.String("policy", set.Hash()), zap.Int("rules", set.Len())}
	if p.path != "" {
		f = append(f, zap.String("file", p.path))
	}
	if old != nil {
		f = append(f, zap.String("previous_policy", old.Hash()))
	}
	p.logger.Info("rules in force", f...)
	if changed := p.changed.Load(); changed != nil && old != nil && old.Hash() != set.Hash() {
		(*changed)()
	}
}

// Decide implements authz.Decider.
func (p *Rules) Decide(_ context.Context, r *authz.Request) authz.Decision {
	return p.set.Load().Decide(r)
}

// DecideBatch implements authz.BatchDecider: all by the same rules, without a
// goroutine for each.
func (p *Rules) DecideBatch(_ context.Context, rs []*authz.Request) []authz.Decision {
	set := p.set.Load()
	out := make([]authz.Decision, len(rs))
	for i, r := range rs {
		out[i] = set.Decide(r)
	}
	return out
}

// OnChange implements authz.Notifier.
func (p *Rules) OnChange(changed func()) {
	if changed == nil {
		p.changed.Store(nil)
		return
	}
	p.changed.Store(&changed)
}

// patience bounds the wait for a watcher that is stuck in a read, as on a
// network file system that is gone.
const patience = 2 * time.Second

// Cleanup ends the watcher. Decisions can still be asked for.
func (p *Rules) Cleanup() error {
	if p.cancel == nil {
		return nil
	}
	p.cancel()
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		return fmt.Errorf("reading %s does not end", p.path)
	}
}

// Interface guards
var (
	_ caddy.Provisioner  = (*Rules)(nil)
	_ caddy.CleanerUpper = (*Rules)(nil)
	_ authz.BatchDecider = (*Rules)(nil)
	_ authz.Notifier     = (*Rules)(nil)
)
