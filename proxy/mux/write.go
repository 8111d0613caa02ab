package mux

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/weftmesh/weft/wire/http2"
)

const (
	// mostPending is how many bytes wait to be written before those who write wait.
	mostPending = 256 << 10
	// turn is how many bytes a stream may queue while others wait, too.
	turn = 16 << 10
	// keptMemory is the largest buffer for frames that is kept.
	keptMemory = 512 << 10
)

// memory is what frames are collected in and written from, in turn.
type memory struct{ next, spare []byte }

var memories = sync.Pool{New: func() any {
	return &memory{make([]byte, 0, 4<<10), make([]byte, 0, 4<<10)}
}}

// takeMemory gives the protocol memory for its frames.
func (c *Conn) takeMemory() {
	c.memory = memories.Get().(*memory)
	if c.h2.Pending() == 0 {
		c.h2.Take(c.memory.next)
		c.memory.next = nil
	}
}

// dropMemory is called when nothing waits to be written.
func (c *Conn) dropMemory() {
	if c.memory == nil {
		return
	}
	if b := c.h2.Take(nil); c.memory.next == nil {
		c.memory.next = b
	}
	if cap(c.memory.next)+cap(c.memory.spare) <= 2*keptMemory {
		memories.Put(c.memory)
	}
	c.memory = nil
}

// startWriter decides whether the caller has to start the writer.
func (c *Conn) startWriter() bool {
	if c.writing || c.shut || c.h2.Pending() == 0 && c.err == nil {
		return false
	}
	c.writing = true
	return true
}

// write is the writer: it runs while there is something to write.
func (c *Conn) write() {
	// Others have been woken together with whoever started us. When they have run,
	// what they have to send leaves in one write. (On one core, 8 connections with 16
	// streams each: a fourth of the time of a round trip without it.)
	runtime.Gosched()
	c.lock()
	for !c.shut && c.h2.Pending() > 0 {
		out := c.h2.Take(c.memory.spare)
		c.memory.spare = nil
		c.taken += int64(len(out))
		c.inWrite, c.writeSince = true, c.clock
		c.mu.Unlock()
		n, err := c.sock.Write(out)
		c.mu.Lock()
		c.inWrite = false
		c.flushed += int64(n)
		c.memory.spare = out[:0]
		if err != nil {
			c.cannotWrite()
		}
		c.pump()
	}
	if c.err != nil && !c.shut {
		c.shut = true
		c.mu.Unlock()
		c.finish()
		c.mu.Lock()
	}
	c.writing = false
	if c.err != nil {
		c.ended.Broadcast()
	} else if c.h2.Pending() == 0 {
		c.dropMemory()
	}
	c.mu.Unlock()
}

// cannotWrite gives up writing. What the peer sent before it went away, answers
// among them, may still wait in the socket: the reader goes on for a moment.
func (c *Conn) cannotWrite() {
	c.shut = true
	_ = c.sock.SetReadDeadline(time.Now().Add(lingerTime))
}

// finish tells the peer that nothing comes any more.
func (c *Conn) finish() {
	half, ok := c.sock.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		_ = c.sock.SetDeadline(time.Unix(1, 0))
	}
}

// streams is a first-in first-out list of streams that wait to write.
type streams struct{ first, last *Stream }

func (l *streams) push(s *Stream) {
	s.list, s.next = l, nil
	if l.first == nil {
		l.first = s
	} else {
		l.last.next = s
	}
	l.last = s
}

func (l *streams) pop() *Stream {
	s := l.first
	if l.first = s.next; l.first == nil {
		l.last = nil
	}
	s.list, s.next = nil, nil
	return s
}

// moveAll puts all of l behind to, in their order.
func (l *streams) moveAll(to *streams) {
	for l.first != nil {
		to.push(l.pop())
	}
}

// leave takes s out of the list in which it waits, if it does.
func (s *Stream) leave() {
	if s.list == nil {
		return
	}
	var kept streams
	l := s.list
	for l.first != nil {
		if t := l.pop(); t != s {
			kept.push(t)
		}
	}
	kept.moveAll(l)
}

// pump queues what streams wait to write, as far as the windows and the queue have
// room, a turn of each after the other.
func (c *Conn) pump() {
	for c.turns.first != nil && c.h2.Pending() < mostPending {
		s := c.turns.pop()
		if s.h == nil { // a client's head that waited for room in the queue: there is some
			s.sending = false
			s.wakeWriter()
			continue
		}
		n := min(len(s.out), turn)
		took := c.h2.SendData(s.h, s.out[:n], s.outEnd && n == len(s.out))
		s.out = s.out[took:]
		if took > 0 {
			s.moved = c.clock
			s.giving.bytes += took
		}
		switch {
		case took < n:
			c.parked.push(s)
		case len(s.out) > 0:
			c.turns.push(s)
		default:
			s.sending = false
			s.wakeWriter()
		}
	}
}

// SendRequest sends the head of a client's request, and body behind it; end says
// that this is all.
func (s *Stream) SendRequest(r *http2.RequestHead, lines []byte, body []byte, end bool) error {
	c := s.c
	c.lock()
	defer c.unlock()
	if err := s.awaitRoom(); err != nil {
		return err
	}
	s.own.Owner = s
	if err := c.h2.Open(&s.own); err != nil {
		if errors.Is(err, http2.ErrStreams) {
			return ErrBusy
		}
		return errDrained
	}
	s.h = &s.own
	c.opened--
	s.sentEnd = end && len(body) == 0
	c.h2.SendRequest(s.h, r, lines, s.sentEnd)
	s.headEnd = c.taken + int64(c.h2.Pending())
	if len(body) == 0 {
		return nil
	}
	return s.send(body, end)
}

// SendResponse sends the head of a server's response, and body behind it; end says
// that this is all. Interim responses (1xx) may come before the final one.
func (s *Stream) SendResponse(status int, lines, body []byte, end bool) error {
	c := s.c
	c.lock()
	defer c.unlock()
	if err := s.awaitRoom(); err != nil {
		return err
	}
	s.sentEnd = end && len(body) == 0 && status >= 200
	c.h2.SendResponse(s.h, status, lines, s.sentEnd)
	s.moved = c.clock
	if len(body) == 0 {
		return nil
	}
	return s.send(body, end)
}

// Write sends bytes of the body; end says that they are the last. It waits for the
// peer's windows and for others who write, and returns when the bytes are queued: p
// is then free again.
func (s *Stream) Write(p []byte, end bool) error {
	s.c.lock()
	defer s.c.unlock()
	return s.send(p, end)
}

// SendTrailers ends the body with fields.
func (s *Stream) SendTrailers(lines []byte) error {
	c := s.c
	c.lock()
	defer c.unlock()
	if err := s.awaitRoom(); err != nil {
		return err
	}
	s.sentEnd = true
	c.h2.SendTrailers(s.h, lines)
	return nil
}

// awaitRoom waits until a head may be queued.
func (s *Stream) awaitRoom() error {
	if s.c.h2.Pending() < mostPending {
		return s.writeError()
	}
	return s.send(nil, false)
}

// send waits until p is queued.
func (s *Stream) send(p []byte, end bool) error {
	c := s.c
	if err := s.writeError(); err != nil {
		return err
	}
	s.out, s.outEnd, s.sending = p, end, true
	c.turns.push(s)
	c.pump()
	for s.sending {
		if err := s.writeError(); err != nil {
			s.leave()
			s.out, s.sending = nil, false
			return err
		}
		s.waitsWrite = true
		c.unlock()
		<-s.writable
		c.lock()
	}
	s.out = nil
	s.sentEnd = s.sentEnd || end
	return nil
}

func (s *Stream) writeError() error {
	switch {
	case s.interrupted:
		return ErrInterrupted
	case s.expired:
		return os.ErrDeadlineExceeded
	case s.err != nil:
		return s.err
	case s.sentEnd:
		return errEnded
	}
	return nil
}

// Sent reports whether the application behind the peer may have seen the request
// of a client's stream. It has not when the peer refused the stream, or when the
// connection ended before the request's head was written to the socket: the request
// may then be sent again, whatever it is.
func (s *Stream) Sent() bool {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.h == nil || s.refused:
		return false
	case !c.shut:
		return true // it is on its way
	case c.inWrite:
		return s.headEnd <= c.taken // it may be on its way
	}
	return s.headEnd <= c.flushed
}

// Reset gives the stream up, in both directions.
func (s *Stream) Reset(code http2.Code) {
	c := s.c
	c.lock()
	defer c.unlock()
	if s.h != nil && s.err == nil {
		c.h2.Reset(s.h, code)
		s.lose(&ResetError{Code: code})
	}
}

// Close ends the use of a client's stream. What is not over is cancelled.
func (s *Stream) Close() {
	c := s.c
	c.lock()
	defer c.unlock()
	if s.h != nil {
		c.h2.Release(s.h)
	}
	c.dropStream(s)
	c.endIfDrained()
}
