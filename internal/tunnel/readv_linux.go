package tunnel

import "golang.org/x/sys/unix"

func readv(fd int, slots [][]byte) (int, error) { return unix.Readv(fd, slots) }

func writev(fd int, bufs [][]byte) (int, error) { return unix.Writev(fd, bufs) }
