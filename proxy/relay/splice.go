package relay

import (
	"io"
	"syscall"
)

// Meter hears how a Splice goes: from Waits to Rests it is dst that is waited for,
// if anybody; Moved says that dst has taken bytes.
type Meter interface {
	Waits()
	Moved(n int)
	Rests()
}

// Splice moves n bytes from one TCP socket to another inside the kernel, for bodies
// of known length: no byte is copied to the program and back. Deadlines of the
// sockets end it.
//
// Where the kernel does not splice, or too many pipes are in use, it stops without
// an error before n: the caller copies the rest. An end of src before n bytes is
// io.ErrUnexpectedEOF. After an error bytes may be lost.
func Splice(dst, src syscall.RawConn, n int64, m Meter) (moved int64, srcErr, dstErr error) {
	p := takePipe()
	if p == nil {
		return 0, nil, nil
	}
	have := 0
	defer func() { p.free(have == 0) }()
	var stepErr error
	pull := func(fd uintptr) bool {
		for {
			have, stepErr = p.fillUpTo(fd, int(min(n-moved, pipeSize)))
			switch stepErr {
			case syscall.EINTR:
				continue
			case syscall.EAGAIN:
				have = 0
				return false
			}
			return true
		}
	}
	push := func(fd uintptr) bool {
		for have > 0 {
			k, err := p.drain(fd, have)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				return false
			case err == nil && k == 0: // would go on for ever; the pipe has bytes
				err = io.ErrNoProgress
			}
			if stepErr = err; err != nil {
				return true
			}
			have -= k
			moved += int64(k)
			m.Moved(k)
		}
		return true
	}
	for moved < n {
		stepErr = nil
		err := src.Read(pull)
		switch {
		case err != nil:
			return moved, err, nil
		case stepErr == syscall.EINVAL && moved == 0:
			have = 0
			return 0, nil, nil // not these sockets
		case stepErr != nil:
			have = 0
			return moved, stepErr, nil
		case have == 0:
			return moved, io.ErrUnexpectedEOF, nil
		}
		m.Waits()
		stepErr = nil
		if err = dst.Write(push); err == nil {
			err = stepErr
		}
		m.Rests()
		if err != nil {
			return moved, nil, err
		}
	}
	return moved, nil, nil
}
