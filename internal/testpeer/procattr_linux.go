package testpeer

import (
	"os"
	"syscall"
)

// procAttr has the kernel kill the child when the test binary dies in a way
// that runs no cleanup: a panic, a timeout, a kill.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// namespaceAttr does the same for a child that is root of its own user and
// network namespaces, and may bind any port there.
func namespaceAttr() *syscall.SysProcAttr {
	a := procAttr()
	a.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	return a
}
