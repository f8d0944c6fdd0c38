package main

import (
	"errors"
	"os/exec"
	"syscall"
)

// setProcessAttributes puts the child into its own process group: Ctrl-C goes
// to the demo alone, which then stops its parts in order.
func setProcessAttributes(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// inUse knows WSAEADDRINUSE, which package syscall has no name for.
func inUse(err error) bool { return errors.Is(err, syscall.Errno(10048)) }
