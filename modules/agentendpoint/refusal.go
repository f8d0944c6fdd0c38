package agentendpoint

import (
	"net/http"
	"strconv"
)

// refusal is an answer that is not 101.
type refusal struct {
	status  int
	message string      // one line, for whoever looks at the agent's log
	header  http.Header // more headers
}

const headerVersion = "Nowconnect-Version"

// The refusals that do not depend on the request's form.
var (
	unauthorized = &refusal{http.StatusUnauthorized, "agent not authenticated: missing or wrong credential",
		http.Header{"Www-Authenticate": {`Bearer realm="nowconnect"`}}}
	draining     = &refusal{http.StatusServiceUnavailable, "the hub takes no agents now", retryAfter(5)}
	crowded      = &refusal{http.StatusServiceUnavailable, "too many agents are connecting at this moment", retryAfter(1)}
	crowdedAgent = &refusal{http.StatusServiceUnavailable, "too many unfinished handshakes of this agent", retryAfter(5)}
)

func retryAfter(seconds int) http.Header {
	return http.Header{"Retry-After": {strconv.Itoa(seconds)}}
}

// write sends the refusal. The connection is not kept: whoever got here by
// mistake or malice does not get to use it again.
func (f *refusal) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for k, v := range f.header {
		h[k] = v
	}
	if r.ProtoMajor > 1 {
		h.Del("Upgrade") // HTTP/2 knows no such header; clients drop a response that has one
	} else {
		h.Set("Connection", "close") // the server heeds this word alone and first
		if h.Get("Upgrade") != "" {
			h.Add("Connection", "Upgrade")
		}
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(f.status)
	_, _ = w.Write([]byte(f.message + "\n")) // the client may be gone; the refusal stands
}
