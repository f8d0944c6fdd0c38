package load

import (
	"time"
)

// Ready waits until Conns connections in a row did one exchange each, for at
// most Window.
const Ready = "ready"

func (r *run) ready() (Result, error) {
	end := time.Now().Add(r.Window)
	for {
		_, err := r.openReady(r.Conns)
		if err == nil {
			return Result{}, nil
		}
		r.dropAll()
		if time.Now().After(end) {
			return nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
