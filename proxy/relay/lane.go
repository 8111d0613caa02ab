package relay

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// bufferSize is what a lane moves at a time, unless the kernel does it: as much as
// a TLS record carries.
const bufferSize = 16 << 10

type buffer [bufferSize]byte

// buffers are shared by all relays: a lane holds one only while it has bytes.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// smallSize is what a lane out of something that is no TCP socket holds while it
// waits, for only a read into something tells whether there are bytes. Most
// messages of WebSockets fit.
const smallSize = 2 << 10

// lane moves the bytes of one direction.
type lane struct {
	// constant
	src, dst       net.Conn
	name, to       string                // of src and dst: "client", "server"
	fromTCP, toTCP syscall.RawConn       // nil: not a TCP socket
	pull           func(fd uintptr) bool // l.tryPull, and
	push           func(fd uintptr) bool // l.tryPush, made once
	small          []byte                // nil when src is a TCP socket

	moved atomic.Int64

	// of the goroutine in run
	already []byte
	buf     *buffer
	pipe    *pipe
	have    int   // bytes that were read and not handed on: in buf, small or pipe
	err     error // of the last pull or push
	bulk    bool  // the last read was as much as there was room: more may wait
	noPipe  bool  // the kernel does not splice these sockets
	piped   int64 // bytes that went through a pipe; for tests
}

func (l *lane) init(name string, from Side, to string, dst net.Conn) {
	l.name, l.src, l.already = name, from.Conn, from.Already
	l.to, l.dst = to, dst
	l.fromTCP, l.toTCP = rawTCP(l.src), rawTCP(l.dst)
	if l.fromTCP == nil {
		l.small = make([]byte, smallSize)
		return
	}
	l.pull = l.tryPull
	if l.toTCP != nil {
		l.push = l.tryPush
	}
}

func rawTCP(c net.Conn) syscall.RawConn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// run moves bytes until src ends (io.EOF) or something fails.
func (l *lane) run() error {
	defer l.release()
	if err := l.write(l.already); err != nil {
		return err
	}
	l.already = nil
	for {
		var err error
		if l.fromTCP != nil {
			err = l.turnTCP()
		} else {
			err = l.turnAny()
		}
		if err != nil {
			return err
		}
	}
}

// release gives back what the lane holds. A pipe with bytes in it is of no use.
func (l *lane) release() {
	if l.buf != nil {
		buffers.Put(l.buf)
		l.buf = nil
	}
	if l.pipe != nil {
		l.pipe.free(l.have == 0)
		l.pipe = nil
	}
}

// turnTCP moves what waits in a TCP socket, or waits for it and holds nothing
// meanwhile.
func (l *lane) turnTCP() error {
	l.err = nil
	err := l.fromTCP.Read(l.pull)
	if err == nil {
		err = l.err
	}
	switch {
	case err == io.EOF:
		return err
	case err != nil:
		return l.readError(err)
	case l.pipe != nil:
		return l.pump()
	}
	n := l.have
	if err := l.write(l.buf[:n]); err != nil {
		return err
	}
	l.bulk = n == bufferSize
	return nil
}

// tryPull is called by the runtime's poller: false means "wait until readable and
// call again". Small messages go through a buffer, where a read and a write do; when
// one fills the buffer, a pipe takes over until the socket is empty.
func (l *lane) tryPull(fd uintptr) bool {
	for {
		var n int
		var err error
		if l.pipeForBulk() {
			n, err = l.pipe.fill(fd)
		} else {
			if l.buf == nil {
				l.buf = buffers.Get().(*buffer)
			}
			n, err = syscall.Read(int(fd), l.buf[:])
		}
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			l.bulk = false
			l.release()
			return false
		case err == syscall.EINVAL && l.pipe != nil:
			l.noPipe = true
			l.release()
			continue
		case err != nil:
			l.err = err
		case n == 0:
			l.err = io.EOF
		}
		l.have = max(n, 0)
		return true
	}
}

// pipeForBulk says whether the next bytes go through a pipe, and has it ready.
func (l *lane) pipeForBulk() bool {
	if l.pipe != nil {
		return true
	}
	if !l.bulk || l.noPipe || l.toTCP == nil {
		return false
	}
	if l.pipe = takePipe(); l.pipe == nil {
		return false
	}
	buffers.Put(l.buf)
	l.buf = nil
	return true
}

// pump empties the pipe into dst.
func (l *lane) pump() error {
	for l.have > 0 {
		l.err = nil
		err := l.toTCP.Write(l.push)
		if err == nil {
			err = l.err
		}
		if err != nil {
			return l.writeError(err)
		}
	}
	return nil
}

// tryPush is called by the runtime's poller, like tryPull.
func (l *lane) tryPush(fd uintptr) bool {
	for {
		n, err := l.pipe.drain(fd, l.have)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return false
		case err == nil && n == 0: // would go on for ever; the pipe has bytes
			err = io.ErrNoProgress
			fallthrough
		case err != nil:
			l.err = err
			return true
		}
		l.have -= n
		l.piped += int64(n)
		l.moved.Add(int64(n))
		return true
	}
}

// turnAny moves what one Read gives.
func (l *lane) turnAny() error {
	in := l.small
	if l.bulk {
		if l.buf == nil {
			l.buf = buffers.Get().(*buffer)
		}
		in = l.buf[:]
	} else {
		l.release()
	}
	n, err := l.src.Read(in)
	l.bulk = n == len(in) || l.bulk && n > smallSize
	if err := l.write(in[:n]); err != nil {
		return err
	}
	switch {
	case err == io.EOF && wasCut(l.src):
		return l.readError(errCut)
	case err != nil && err != io.EOF:
		return l.readError(err)
	}
	return err
}

// write hands b on.
func (l *lane) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := l.dst.Write(b)
	l.moved.Add(int64(n))
	l.have = len(b) - n
	if err != nil {
		return l.writeError(err)
	}
	return nil
}

func (l *lane) readError(err error) error  { return fmt.Errorf("read from %s: %w", l.name, err) }
func (l *lane) writeError(err error) error { return fmt.Errorf("write to %s: %w", l.to, err) }
