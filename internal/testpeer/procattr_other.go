//go:build !linux

package testpeer

import "syscall"

// procAttr is empty where the kernel does not tell children of a parent's death.
func procAttr() *syscall.SysProcAttr { return nil }

// namespaceAttr is empty where there are no namespaces.
func namespaceAttr() *syscall.SysProcAttr { return nil }
