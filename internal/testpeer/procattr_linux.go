package testpeer

import "syscall"

// procAttr has the kernel kill the child when the test binary dies in a way
// that runs no cleanup: a panic, a timeout, a kill.
func procAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
