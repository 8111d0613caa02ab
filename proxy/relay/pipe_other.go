//go:build !linux

package relay

import (
	"net"
	"syscall"
)

// pipe is nothing where the kernel does not splice: all bytes are copied.
type pipe struct{}

func takePipe() *pipe                            { return nil }
func (*pipe) free(bool)                          {}
func (*pipe) fill(uintptr) (int, error)          { return 0, syscall.EINVAL }
func (*pipe) fillUpTo(uintptr, int) (int, error) { return 0, syscall.EINVAL }
func (*pipe) drain(uintptr, int) (int, error)    { return 0, syscall.EINVAL }

// isReset cannot tell here.
func isReset(net.Conn) bool { return false }
