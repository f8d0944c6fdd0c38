package tunnel

import "net"

// aheadReader reads from a connection through what lies above a Gather, which
// is TLS, without waiting. The zero value waits for nothing and finds nothing.
//
// crypto/tls gives out one record per call. Whoever wants to pass several on
// at once must know whether there is another, and only crypto/tls knows what
// it holds already: so we ask it, and tell it that there is no more in place of
// waiting. Owned by the link's reader.
type aheadReader struct {
	below *Gather
	sock  *nowReader
}

func newAheadReader(conn net.Conn) aheadReader {
	g := GatherBelow(conn)
	if g == nil {
		return aheadReader{}
	}
	sock := newNowReader(g.Conn)
	if sock == nil {
		return aheadReader{}
	}
	return aheadReader{below: g, sock: sock}
}

// during runs f, in which the connection does not wait for bytes to read. It
// returns 0 without running it when the connection cannot do that.
func (a *aheadReader) during(f func(p []byte) (int, error), p []byte) int {
	if a.below == nil {
		return 0
	}
	a.below.ahead = a
	n, _ := f(p) // a lasting error comes again
	a.below.ahead = nil
	return n
}

func (a *aheadReader) read(p []byte) (int, error) {
	if n := a.sock.read(p); n > 0 {
		return n, nil
	}
	return 0, errNothingYet // or an error or the end, which the next read that may wait meets again
}

// errNothingYet is temporary in the sense that crypto/tls goes by: the
// connection stays usable.
var errNothingYet net.Error = nothingYet{}

type nothingYet struct{}

func (nothingYet) Error() string   { return "nothing to read yet" }
func (nothingYet) Timeout() bool   { return true }
func (nothingYet) Temporary() bool { return true }
