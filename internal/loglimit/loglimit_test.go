package loglimit

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zapcore"
)

// Every line passes or is told of, once.
func TestNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(10, 50)
		var passed, told atomic.Int64
		line := func() {
			f, ok := l.Allow()
			if !ok {
				return
			}
			passed.Add(1)
			if f.Type == zapcore.Int64Type {
				told.Add(f.Integer)
			}
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					line()
				}
			})
		}
		wg.Wait()
		if passed.Load() != 50 {
			t.Errorf("%d lines at once", passed.Load())
		}
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			line()
		}
		if passed.Load() != 70 || passed.Load()+told.Load() != 8020 {
			t.Errorf("%d passed, %d told of", passed.Load(), told.Load())
		}
	})
}
