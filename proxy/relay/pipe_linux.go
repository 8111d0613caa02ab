package relay

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"
)

// A pipe is how the kernel moves bytes from one socket to another: splice(2) works
// between a pipe and anything else. Each is two descriptors.
type pipe struct{ r, w int }

const (
	pipeSize = 256 << 10

	spliceMove     = 1
	spliceNonblock = 2
	setPipeSize    = 1031 // F_SETPIPE_SZ

	// mostPipes bounds those in use by the whole process; lanes beyond it copy.
	mostPipes = 256
	// idlePipes stay open for the next who needs one.
	idlePipes = 16
)

var pipes struct {
	mu   sync.Mutex
	idle []*pipe
	open int
}

// takePipe returns an empty pipe, or nil when there are enough.
func takePipe() *pipe {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	if n := len(pipes.idle); n > 0 {
		p := pipes.idle[n-1]
		pipes.idle = pipes.idle[:n-1]
		return p
	}
	if pipes.open == mostPipes {
		return nil
	}
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil
	}
	// Over the user's limit of pipe memory, the pipe stays as small as it is.
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fds[1]), setPipeSize, pipeSize)
	pipes.open++
	return &pipe{r: fds[0], w: fds[1]}
}

// free gives p back; one that is not empty is closed.
func (p *pipe) free(empty bool) {
	pipes.mu.Lock()
	defer pipes.mu.Unlock()
	if empty && len(pipes.idle) < idlePipes {
		pipes.idle = append(pipes.idle, p)
		return
	}
	_ = syscall.Close(p.r)
	_ = syscall.Close(p.w)
	pipes.open--
}

// fill moves what waits in a socket into the empty pipe.
func (p *pipe) fill(fd uintptr) (int, error) { return p.fillUpTo(fd, pipeSize) }

func (p *pipe) fillUpTo(fd uintptr, most int) (int, error) {
	n, err := syscall.Splice(int(fd), nil, p.w, nil, most, spliceMove|spliceNonblock)
	return int(n), err
}

// drain moves up to n bytes from the pipe to a socket.
func (p *pipe) drain(fd uintptr, n int) (int, error) {
	done, err := syscall.Splice(p.r, nil, int(fd), nil, n, spliceMove|spliceNonblock)
	return int(done), err
}

// isReset says whether an end that was read from c was a reset. The kernel tells of
// a reset once: when the lane that writes to c hears it, the one that reads finds
// the end of a stream. A peer that ended cleanly leaves the socket half open, as
// long as nothing ended it from here.
func isReset(c net.Conn) bool {
	tcp := socket(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	const stateClosed = 7 // TCP_CLOSE in tcp_states.h
	closed := false
	_ = raw.Control(func(fd uintptr) {
		info, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
		var b [4]byte // the beginning of struct tcp_info; its first byte is the state
		binary.NativeEndian.PutUint32(b[:], uint32(info))
		closed = err == nil && b[0] == stateClosed
	})
	return closed
}
