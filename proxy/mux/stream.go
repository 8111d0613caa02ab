package mux

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/weftmesh/weft/wire/http1"
	"github.com/weftmesh/weft/wire/http2"
)

// Stream is one request and its response on a connection. One goroutine may use
// the reading side (AwaitHead, Next, Ready, Trailers) while another uses the
// writing side (SendRequest, SendResponse, Write, SendTrailers). It is reused: a
// server's stream must not be touched after Serve returned, a client's not after
// Close.
type Stream struct {
	// constant
	c        *Conn
	readable chan struct{} // wakes the reading side; cap 1
	writable chan struct{} // wakes the writing side; cap 1
	serve    func()        // serveStream(s), made once

	// given to the owner with a head
	request  http1.Request
	response http1.Response
	protocol []byte
	tooLarge bool

	// under c.mu
	h       *http2.Stream // nil: a client's stream that sent no request
	own     http2.Stream  // client: what h points to
	at      int           // in c.active
	err     error         // the stream was reset, or its connection ended
	refused bool          // the peer says that it did nothing with the request
	headEnd int64         // client: where the request's head ends in all that is written
	giving  pace          // of the response, while it waits for the peer's window
	taking  pace          // of the request's body, while somebody waits for it
	bounded bool          // taking counts
	rests   bool          // LetRest was called
	moved   time.Time     // when the last byte came or went, by c.clock
	watch   Interrupter   // server: interrupted when the stream ends early

	// reading side, under c.mu
	arrived     []http1.Response // heads that AwaitHead did not return yet
	in          queue
	lent        int // bytes of in that the last Next returned
	window      int // what the peer may send before it is read; 0: what is configured
	steady      int // bytes that were read since the window grew
	trailers    http1.Head
	hasTrailers bool
	ended       bool // the peer sent everything
	waitsRead   bool

	// writing side, under c.mu
	out        []byte // what Write waits for
	outEnd     bool
	sending    bool     // out is not all queued yet
	list       *streams // where it waits
	next       *Stream  // in list
	sentEnd    bool
	waitsWrite bool

	// time, under c.mu
	timer       *time.Timer
	armed       time.Time // when timer fires; zero: it does not
	deadline    time.Time
	expired     bool
	interrupted bool
}

// mostInterim is how many responses may wait for AwaitHead. Nobody sends so many
// interim ones in good faith.
const mostInterim = 16

// errEnded says that the caller wrote after its own end.
var errEnded = errors.New("mux: write after the end of the stream")

// takeStream returns a stream that is in c.active.
func (c *Conn) takeStream() *Stream {
	var s *Stream
	if n := len(c.free); n > 0 {
		s = c.free[n-1]
		c.free[n-1] = nil
		c.free = c.free[:n-1]
	} else {
		s = &Stream{c: c, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
		s.serve = func() { serveStream(s) }
	}
	s.at = len(c.active)
	s.moved = c.clock
	c.active = append(c.active, s)
	return s
}

// dropStream makes s ready for the next request.
func (c *Conn) dropStream(s *Stream) {
	last := len(c.active) - 1
	c.active[s.at] = c.active[last]
	c.active[s.at].at = s.at
	c.active[last] = nil
	c.active = c.active[:last]
	if last == 0 {
		c.idleSince = c.clock
	}
	if s.h == nil {
		c.opened--
	}
	if s.window > 0 {
		c.grown -= s.window - c.streamWindow()
	}
	s.leave()
	s.in.clear()
	s.h, s.err, s.watch, s.headEnd = nil, nil, nil, 0
	s.refused, s.tooLarge, s.hasTrailers, s.ended, s.sentEnd = false, false, false, false, false
	s.arrived, s.lent, s.window, s.steady = s.arrived[:0], 0, 0, 0
	s.giving, s.taking, s.bounded, s.rests = pace{}, pace{}, false, false
	s.deadline, s.expired, s.interrupted = time.Time{}, false, false
	if c.err == nil {
		c.free = append(c.free, s)
	} else if s.timer != nil {
		s.timer.Stop()
	}
}

// dropFree gives up the streams that wait to be used again.
func (c *Conn) dropFree() {
	for _, s := range c.free {
		if s.timer != nil {
			s.timer.Stop() // it would hold the stream
		}
	}
	c.free = nil
}

// Request is the head of the request, of a server's stream. It does not change
// while the stream lives.
func (s *Stream) Request() *http1.Request { return &s.request }

// Protocol is the protocol that an extended CONNECT asks for (RFC 8441), or empty.
func (s *Stream) Protocol() []byte { return s.protocol }

// TooLarge reports that the head that came last was over the limits and is not
// there: the answer is 431 to a request, 502 for a response.
func (s *Stream) TooLarge() bool { return s.tooLarge }

// Response is the head that AwaitHead read last.
func (s *Stream) Response() *http1.Response { return &s.response }

// AwaitHead waits for the next response head of a client's stream. Interim
// responses (1xx) come one by one, the last is the final one.
func (s *Stream) AwaitHead() error {
	s.c.mu.Lock()
	defer s.c.unlock()
	if err := s.waitHead(); err != nil {
		return err
	}
	s.response, s.arrived[0] = s.arrived[0], s.response
	last := len(s.arrived) - 1
	for i := range last {
		s.arrived[i], s.arrived[i+1] = s.arrived[i+1], s.arrived[i]
	}
	s.arrived = s.arrived[:last]
	return nil
}

// WaitHead waits as AwaitHead does, and leaves the head where it is.
func (s *Stream) WaitHead() error {
	s.c.mu.Lock()
	defer s.c.unlock()
	return s.waitHead()
}

func (s *Stream) waitHead() error {
	for {
		if err := s.readError(); err != nil {
			return err
		}
		if len(s.arrived) > 0 {
			return nil
		}
		if s.ended {
			return io.EOF
		}
		s.waitToRead()
	}
}

// Ready is the number of body bytes that have arrived and were not returned by
// Next, and whether those are all.
func (s *Stream) Ready() (n int, ended bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.in.size - s.lent, s.ended
}

// Next waits for bytes of the body. They are valid until the next call, which
// also lets the peer send as many more. io.EOF says that the body has ended as it
// should; Trailers is then known.
func (s *Stream) Next() ([]byte, error) {
	s.c.lock()
	defer s.c.unlock()
	s.giveBack()
	for {
		if err := s.readError(); err != nil {
			return nil, err
		}
		if s.in.size > 0 {
			b := s.in.front()
			s.lent = len(b)
			return b, nil
		}
		if s.ended {
			return nil, io.EOF
		}
		s.waitToRead()
	}
}

// giveBack drops what the last Next returned, and lets the peer send as much. The
// window of a stream that is read as fast as it comes grows: it is what limits the
// pace when the peer is far away.
func (s *Stream) giveBack() {
	if s.lent == 0 {
		return
	}
	c := s.c
	s.in.drop(s.lent)
	c.h2.Consumed(s.h, s.lent)
	s.steady += s.lent
	s.lent = 0
	window := max(s.window, c.streamWindow())
	// A reader that never finds its stream empty is what limits the pace itself.
	if c.hurried || s.in.size > 0 || s.steady < 2*window || window >= mostWindow || s.ended {
		return
	}
	s.steady = 0
	larger := min(2*window, mostWindow)
	if c.grown+larger-window > mostGrown {
		return
	}
	c.grown += larger - window
	s.window = larger
	c.h2.Grow(s.h, uint32(larger))
}

const (
	mostWindow = 1 << 20 // of a stream
	mostGrown  = 8 << 20 // beyond what is configured, of all streams of a connection
)

func (c *Conn) streamWindow() int {
	if w := c.config.Protocol.StreamWindow; w > 0 {
		return int(w)
	}
	return 1<<16 - 1 // RFC 9113 §6.5.2
}

// Trailers are the fields behind the body, or nil. They are known when Next has
// returned io.EOF, or Ready said that everything has come.
func (s *Stream) Trailers() *http1.Head {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.hasTrailers {
		return nil
	}
	return &s.trailers
}

func (s *Stream) readError() error {
	switch {
	case s.interrupted:
		return ErrInterrupted
	case s.expired:
		return os.ErrDeadlineExceeded
	case s.err != nil && !s.ended: // what came whole stays readable
		return s.err
	}
	return nil
}

func (s *Stream) waitToRead() {
	s.waitsRead = true
	s.c.unlock()
	<-s.readable
	s.c.mu.Lock()
}

func (s *Stream) wakeReader() {
	if s.waitsRead {
		s.waitsRead = false
		s.c.wake(s.readable)
	}
}

func (s *Stream) wakeWriter() {
	if s.waitsWrite {
		s.waitsWrite = false
		s.c.wake(s.writable)
	}
}

// SetDeadline makes whatever the stream waits for fail with
// os.ErrDeadlineExceeded from t on. The zero time takes the deadline away.
func (s *Stream) SetDeadline(t time.Time) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.deadline, s.expired = t, false
	if t.IsZero() || !s.armed.IsZero() && !t.Before(s.armed) {
		return // the timer fires early enough, and is then set again
	}
	wait := time.Until(t)
	if wait <= 0 {
		s.expire()
		return
	}
	s.armed = t
	if s.timer == nil {
		s.timer = time.AfterFunc(wait, s.timeUp)
	} else {
		s.timer.Reset(wait)
	}
}

// timeUp is the timer's function. The timer is not touched when a stream that is
// called again and again gets a later deadline each time.
func (s *Stream) timeUp() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.armed = time.Time{}
	if s.deadline.IsZero() || c.err != nil {
		return
	}
	wait := time.Until(s.deadline)
	if wait <= 0 {
		s.expire()
		return
	}
	s.armed = s.deadline
	s.timer.Reset(wait)
}

func (s *Stream) expire() {
	s.expired = true
	s.wakeReader()
	s.wakeWriter()
}

// BoundBody makes Config.Grace count for the request's body, too. It is the
// caller's to know whether the client may take its time.
func (s *Stream) BoundBody() {
	s.c.mu.Lock()
	s.bounded = true
	s.c.mu.Unlock()
}

// LetRest lets the stream be silent for longer than Config.Stall: a tunnel has a
// clock of its own.
func (s *Stream) LetRest() {
	s.c.mu.Lock()
	s.rests = true
	s.c.mu.Unlock()
}

// pace is how a peer that is waited for uses up its patience, and earns more.
type pace struct {
	used  time.Duration
	bytes int // since the last look
}

// waits counts a tick of waiting, and reports that there is no patience left. What
// bytes earn is never more than grace: a burst does not buy an hour.
func (p *pace) waits(grace time.Duration) bool {
	p.used = max(0, p.used-time.Duration(p.bytes)*time.Second/minRate) + tick
	p.bytes = 0
	return grace > 0 && p.used > grace
}

// Interrupt makes whatever the stream waits for fail with ErrInterrupted, now and
// from now on. Any goroutine may call it while the stream is held.
func (s *Stream) Interrupt() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.interrupted = true
	s.wakeReader()
	s.wakeWriter()
}

// Watch interrupts i when the stream of a server is reset by its peer or loses
// its connection, at once if that has happened already. Watch(nil) ends it: i is
// not interrupted any more when it returns. i.Interrupt is called with the
// connection locked; i may be a stream of a client's connection.
func (s *Stream) Watch(i Interrupter) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.watch = i
	if i != nil && s.err != nil {
		i.Interrupt()
	}
}

// lose ends the stream for a reason that is not its owner's.
func (s *Stream) lose(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	s.wakeReader()
	s.wakeWriter()
	if s.watch != nil {
		s.watch.Interrupt()
	}
}
