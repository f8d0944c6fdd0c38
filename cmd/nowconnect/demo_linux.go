package main

import "syscall"

// dieWithParent ends the child when the thread that starts it is gone, which
// runDemo has locked: so also when the demo is killed and can stop nothing.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGTERM }
