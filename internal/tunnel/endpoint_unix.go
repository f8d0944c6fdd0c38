//go:build unix

package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rawSocket does on a TCP socket what net.Conn cannot: read into a buffer that
// is taken only once bytes are there, write without waiting, and notice a
// reset while nobody reads. The closures are made once per session, so that
// none of it allocates.
//
// Reading belongs to one goroutine and writing to one at a time.
type rawSocket struct {
	conn syscall.RawConn

	readFn  func(fd uintptr) bool
	nowFn   func(fd uintptr) bool // nil until first used: most sessions never need it
	readyFn func(fd uintptr) bool // likewise
	want    int                   // bytes
	got     *frames
	iov     [maxParts][]byte
	n       int
	readErr error

	writeFn  func(fd uintptr) bool
	out      []byte
	manyFn   func(fd uintptr) bool
	outMany  [][]byte
	wrote    int
	writeErr error

	writableFn func(fd uintptr) bool
	hangupFn   func(fd uintptr) bool
}

// newRawSocket returns nil when t has no file descriptor to offer.
func newRawSocket(t *net.TCPConn) *rawSocket {
	c, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	r := &rawSocket{conn: c}
	r.readFn, r.writeFn, r.manyFn, r.writableFn, r.hangupFn = r.tryRead, r.tryWrite, r.tryWriteMany, r.tryWritable, r.tryHangup
	return r
}

// read waits for bytes and returns at most want of them, unsealed, in a buffer
// of the pool.
func (r *rawSocket) read(want int) (*frames, int, error) {
	r.want = want
	if err := r.conn.Read(r.readFn); err != nil {
		return nil, 0, err
	}
	f := r.got
	r.got = nil
	switch {
	case r.readErr != nil:
		f.free()
		return nil, 0, r.readErr
	case r.n == 0:
		f.free()
		return nil, 0, io.EOF
	}
	return f, r.n, nil
}

func (r *rawSocket) tryRead(fd uintptr) bool {
	f := getFrames(r.want)
	if !r.readOnce(fd, f) {
		f.free() // idle: wait without a buffer
		return false
	}
	r.got = f
	return true
}

// readNow reads at most want bytes into f and does not wait: n is 0 without an
// error when none are there.
func (r *rawSocket) readNow(f *frames, want int) (n int, err error) {
	if r.nowFn == nil {
		r.nowFn = r.tryReadNow
	}
	r.want, r.got = want, f
	err = r.conn.Read(r.nowFn)
	r.got = nil
	switch {
	case err != nil:
		return 0, err
	case r.readErr == unix.EAGAIN:
		return 0, nil
	case r.readErr == nil && r.n == 0:
		return 0, io.EOF
	}
	return r.n, r.readErr
}

func (r *rawSocket) tryReadNow(fd uintptr) bool {
	r.readOnce(fd, r.got)
	return true // never wait here
}

// readOnce reads into f and reports whether it need not wait for that.
func (r *rawSocket) readOnce(fd uintptr, f *frames) bool {
	slots := f.slots(r.iov[:0], r.want)
	for {
		if len(slots) == 1 {
			r.n, r.readErr = unix.Read(int(fd), slots[0])
		} else {
			r.n, r.readErr = readv(int(fd), slots)
		}
		if !errors.Is(r.readErr, unix.EINTR) {
			break
		}
	}
	if r.readErr == unix.EAGAIN {
		r.n = 0
		return false
	}
	if r.readErr != nil {
		r.n, r.readErr = 0, os.NewSyscallError("read", r.readErr)
	}
	return true
}

// awaitReadable waits until bytes, or the end of the stream, are there to read.
func (r *rawSocket) awaitReadable() error {
	if r.readyFn == nil {
		r.readyFn = func(fd uintptr) bool { return poll(fd, unix.POLLIN) != 0 }
	}
	return r.conn.Read(r.readyFn)
}

// writeSome writes what the kernel takes at once.
func (r *rawSocket) writeSome(p []byte) (int, error) {
	r.out = p
	err := r.conn.Write(r.writeFn)
	r.out = nil
	if err != nil {
		return 0, err
	}
	return r.wrote, r.writeErr
}

func (r *rawSocket) tryWrite(fd uintptr) bool {
	for {
		r.wrote, r.writeErr = unix.Write(int(fd), r.out)
		if r.writeErr == unix.EINTR {
			continue
		}
		break
	}
	r.judgeWrite()
	return true // never wait here
}

// judgeWrite turns what the system call said into wrote and writeErr.
func (r *rawSocket) judgeWrite() {
	switch r.writeErr {
	case nil:
	case unix.EAGAIN:
		r.wrote, r.writeErr = 0, nil
	default:
		r.wrote, r.writeErr = 0, os.NewSyscallError("write", r.writeErr)
	}
}

// writeMany is writeSome for several buffers in a row.
func (r *rawSocket) writeMany(bufs [][]byte) (int, error) {
	if len(bufs) == 1 {
		return r.writeSome(bufs[0])
	}
	r.outMany = bufs
	err := r.conn.Write(r.manyFn)
	r.outMany = nil
	if err != nil {
		return 0, err
	}
	return r.wrote, r.writeErr
}

func (r *rawSocket) tryWriteMany(fd uintptr) bool {
	for {
		r.wrote, r.writeErr = writev(int(fd), r.outMany)
		if r.writeErr != unix.EINTR {
			break
		}
	}
	r.judgeWrite()
	return true // never wait here
}

// awaitWritable waits until the kernel would take more bytes, at most d.
func (r *rawSocket) awaitWritable(t *net.TCPConn, d time.Duration) error {
	_ = t.SetWriteDeadline(time.Now().Add(d))
	err := r.conn.Write(r.writableFn)
	_ = t.SetWriteDeadline(time.Time{})
	return err
}

func (r *rawSocket) tryWritable(fd uintptr) bool {
	return poll(fd, unix.POLLOUT)&(unix.POLLOUT|unix.POLLERR|unix.POLLHUP) != 0
}

// awaitHangup waits until the peer has reset the connection, after its FIN was
// read, or until a read deadline passes. POLLERR and not POLLHUP tells a
// reset: the latter also rises when both sides have sent FIN.
func (r *rawSocket) awaitHangup() error { return r.conn.Read(r.hangupFn) }

func (r *rawSocket) tryHangup(fd uintptr) bool {
	return poll(fd, 0)&unix.POLLERR != 0
}

// readable reports whether bytes, or the end of the stream, are there to read.
func (r *rawSocket) readable() (yes bool) {
	_ = r.conn.Control(func(fd uintptr) { yes = poll(fd, unix.POLLIN) != 0 })
	return yes
}

// reset reports whether the peer has reset the connection, without waiting.
func (r *rawSocket) reset() (gone bool) {
	_ = r.conn.Control(func(fd uintptr) { gone = poll(fd, 0)&unix.POLLERR != 0 })
	return gone
}

// nowReader reads from a socket without waiting. The closure is made once, so
// that reading does not allocate.
type nowReader struct {
	conn syscall.RawConn
	fn   func(fd uintptr) bool
	p    []byte
	n    int
}

// newNowReader returns nil when conn has no socket.
func newNowReader(conn net.Conn) *nowReader {
	s, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	c, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	r := &nowReader{conn: c}
	r.fn = func(fd uintptr) bool {
		r.n, _ = unix.Read(int(fd), r.p)
		return true // never wait here
	}
	return r
}

// read returns 0 when nothing is there, and at the end, and on errors.
func (r *nowReader) read(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	r.p, r.n = p, 0
	err := r.conn.Read(r.fn)
	r.p = nil
	if err != nil {
		return 0
	}
	return max(r.n, 0)
}

func poll(fd uintptr, events int16) int16 {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p[:], 0)
		if err != unix.EINTR {
			return p[0].Revents
		}
	}
}

// isNotConnected reports whether a shutdown failed because the peer had
// already ended the connection.
func isNotConnected(err error) bool { return errors.Is(err, syscall.ENOTCONN) }
