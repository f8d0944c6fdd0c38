//go:build unix && !linux

package tunnel

import "golang.org/x/sys/unix"

// readv fills the first slot only: not every Unix offers readv through x/sys.
func readv(fd int, slots [][]byte) (int, error) { return unix.Read(fd, slots[0]) }

func writev(fd int, bufs [][]byte) (int, error) { return unix.Write(fd, bufs[0]) }
