//go:build !unix

package tunnel

import (
	"net"
	"time"
)

// rawSocket is not available: sessions read into a held buffer and write from
// a queue.
type rawSocket struct{}

func newRawSocket(*net.TCPConn) *rawSocket { return nil }

func (*rawSocket) read(int) (*frames, int, error)                  { panic("unreachable") }
func (*rawSocket) readNow(*frames, int) (int, error)               { panic("unreachable") }
func (*rawSocket) awaitReadable() error                            { panic("unreachable") }
func (*rawSocket) writeSome([]byte) (int, error)                   { panic("unreachable") }
func (*rawSocket) awaitWritable(*net.TCPConn, time.Duration) error { panic("unreachable") }
func (*rawSocket) writeMany([][]byte) (int, error)                 { panic("unreachable") }
func (*rawSocket) awaitHangup() error                              { panic("unreachable") }
func (*rawSocket) readable() bool                                  { return false }
func (*rawSocket) reset() bool                                     { return false }

// nowReader is not available either: links read one TLS record at a time.
type nowReader struct{}

func newNowReader(net.Conn) *nowReader { return nil }

func (*nowReader) read([]byte) int { panic("unreachable") }

func isNotConnected(error) bool { return false }
