package proxy

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// patience bounds how long clients may keep an exchange waiting for them, while
// they send a body or take a response. What counts is only the time that is spent
// waiting for the client: an application may think as long as it likes.
//
// A client has grace, and gets a second of it back for every minRate bytes that it
// moves. A few bytes now and then (slow body, slow read) do not hold a connection,
// a buffer and a place at the application for ever.
type patience struct {
	since atomic.Int64 // coarse unix ns when the present wait began; 0: none
	used  atomic.Int64 // ns of grace used by waits before

	// of the sweeper: what waited in the kernel for the client, and when it looked
	queued   int
	lookedAt int64
}

const (
	// grace is what mod_reqtimeout of Apache gives a body.
	grace = 20 * time.Second
	// hurriedGrace is grace while memory is short.
	hurriedGrace = 2 * time.Second
	minRate      = 500 // bytes a second
)

// begin and end stand around each wait. The coarse clock makes short ones free.
func (w *patience) begin(now int64) { w.since.Store(now) }

func (w *patience) end(now int64, n int) {
	since := w.since.Swap(0)
	if since == 0 {
		since = now // the other direction's wait, which ended first, has counted
	}
	used := w.used.Load()
	if used == 0 && now <= since {
		return // nearly always
	}
	w.used.Store(max(0, used+max(0, now-since)-int64(n)*int64(time.Second)/minRate))
}

// reset is for the next exchange.
func (w *patience) reset() {
	w.since.Store(0)
	w.used.Store(0)
}

// over reports that the client has used up what it has.
func (w *patience) over(now int64, grace time.Duration) bool {
	since := w.since.Load()
	return since != 0 && now >= since && w.used.Load()+now-since > int64(grace)
}

// lookInterval is how long a slow reader's queue is watched before it is judged.
const lookInterval = 5 * time.Second

// drains reports whether a client whose patience is over takes what the kernel
// holds for it, fast enough. A socket's buffer may be megabytes: that it has no
// room for a long time says nothing of a client behind a slow line.
func (w *patience) drains(base net.Conn, now int64) bool {
	queued := unsent(base)
	elapsed := now - w.lookedAt
	switch {
	case queued == 0:
		return false // it is not a response that waits
	case w.lookedAt == 0 || elapsed > int64(2*lookInterval): // a new wait
		w.queued, w.lookedAt = queued, now
		return true
	case elapsed < int64(lookInterval):
		return true
	}
	fast := int64(w.queued-queued)*int64(time.Second) >= elapsed*minRate
	w.queued, w.lookedAt = queued, now
	return fast
}

// unsent is how many bytes of a socket the peer has not acknowledged (SIOCOUTQ).
func unsent(c net.Conn) int {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	var n int32
	_ = raw.Control(func(fd uintptr) {
		_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	})
	return int(n)
}
