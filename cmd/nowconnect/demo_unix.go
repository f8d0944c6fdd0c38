//go:build unix

package main

import (
	"errors"
	"os/exec"
	"syscall"
)

// setProcessAttributes puts the child into its own process group: Ctrl-C goes
// to the demo alone, which then stops its parts in order.
func setProcessAttributes(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
}

func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
