package mux

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weftmesh/weft/wire/http1"
	"github.com/weftmesh/weft/wire/http2"
)

// reader is what the reading goroutine works with.
type reader struct {
	c         *Conn
	ready     func(fd uintptr) bool // serveReady, made once; nil: not a plain TCP socket
	reads     atomic.Uint64         // so far, of a plain TCP socket
	unsure    atomic.Bool           // waits without having asked whether there is something to read
	in        *buffer               // of a plain TCP socket: only while there are bytes
	err       error                 // why serveReady ended
	busy      bool                  // streams were active when the last batch ended
	rest      [32]byte              // the beginning of something that did not come whole
	restN     int
	discarded int             // bytes that came after the connection's end
	wakes     []chan struct{} // whom to wake after the batch
	begun     []*Stream       // whom to serve after the batch
}

// run reads until the socket gives no more, and then sees everything else end.
func (c *Conn) run(already []byte) {
	c.mu.Lock()
	c.unlock() // the first SETTINGS
	more := c.receive(already)
	var err error
	if more {
		err = c.reader.run()
	}
	if err == io.EOF {
		err = errEOF
	} else {
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	c.abort(err)
	_ = c.sock.Close()
	if c.reader.in != nil {
		c.reader.in.free()
		c.reader.in = nil
	}
	c.mu.Lock()
	for c.writing || c.serving > 0 {
		c.ended.Wait()
	}
	c.dropFree()
	c.dropMemory()
	c.mu.Unlock()
	close(c.done)
}

// run reads and processes until there is no use in going on, or the socket fails.
func (r *reader) run() error {
	if r.ready == nil {
		r.in = takeBuffer()
		for {
			n, err := r.c.sock.Read(r.in.b[r.restN:])
			if n == 0 && err != nil {
				return err
			}
			if !r.c.receive(r.batch(n)) {
				return nil
			}
		}
	}
	for {
		r.err = nil
		err := r.c.raw.Read(r.ready)
		switch {
		case err == nil:
			return r.err
		case !r.c.woken():
			return err
		}
	}
}

// batch is what the last read brought, behind what was left of the one before.
func (r *reader) batch(n int) []byte {
	n += copy(r.in.b[:], r.rest[:r.restN])
	r.restN = 0
	return r.in.b[:n]
}

// serveReady is called by the runtime's poller: false means "wait until readable
// and call again". A connection that waits holds no buffer.
//
// Everything is processed inside the poller's call, and a read that brought less
// than there was room for is not followed by one that would say "nothing more":
// with eight busy connections that was a sixth of all system calls. What it cannot
// see is an end of stream that came together with the bytes before it; so a
// connection without streams asks, and Expire nudges one with streams that has
// waited for long without asking.
func (r *reader) serveReady(fd uintptr) bool {
	for {
		r.unsure.Store(false)
		if r.in == nil {
			r.in = takeBuffer()
		}
		room := len(r.in.b) - r.restN
		n, err := syscall.Read(int(fd), r.in.b[r.restN:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			r.in.free()
			r.in = nil
			return false
		case err != nil:
			r.err = os.NewSyscallError("read", err)
			return true
		case n == 0:
			r.err = io.EOF
			return true
		}
		r.reads.Add(1)
		if !r.c.receive(r.batch(n)) {
			return true
		}
		if n < room && r.busy {
			r.in.free()
			r.in = nil
			r.unsure.Store(true)
			return false
		}
	}
}

// nudge makes the reader look at its socket if it has not since the last call.
func (c *Conn) nudge() {
	reads := c.reader.reads.Load()
	if c.reader.unsure.Load() && reads == c.seen {
		c.nudged = true
		_ = c.sock.SetReadDeadline(time.Unix(1, 0))
	}
	c.seen = reads
}

// woken reports whether reading failed only because of a nudge, and makes it
// possible again.
func (c *Conn) woken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.nudged || c.err != nil {
		return false
	}
	c.nudged = false
	_ = c.sock.SetReadDeadline(time.Time{})
	return true
}

// receive processes what one read brought. It returns false when there is no use
// in reading on.
func (c *Conn) receive(in []byte) bool {
	r := &c.reader
	c.lock()
	if c.err != nil { // lingering
		c.mu.Unlock()
		r.discarded += len(in)
		return r.discarded < lingerBytes
	}
	c.batch = true
	for len(in) > 0 && c.err == nil {
		n, e, err := c.h2.Receive(in)
		if err != nil {
			c.broken(err.(*http2.ConnError))
			break
		}
		if e.Kind != http2.None {
			c.handle(&e)
		} else if n == 0 {
			r.restN = copy(r.rest[:], in)
			break
		}
		in = in[n:]
	}
	c.pump()
	c.batch = false
	r.busy = len(c.active) > 0
	start := c.startWriter()
	c.mu.Unlock()
	r.dispatch()
	if start {
		go c.flush()
	}
	return true
}

// broken ends the connection for what the peer did. The GOAWAY is queued already.
func (c *Conn) broken(err *http2.ConnError) {
	c.refused(err.Reason)
	c.fail(fmt.Errorf("%w: %w", ErrGone, err))
}

// handle applies one event.
func (c *Conn) handle(e *http2.Event) {
	switch e.Kind {
	case http2.WindowOpened:
		if e.Stream == nil {
			c.parked.moveAll(&c.turns)
		} else if s := e.Stream.Owner.(*Stream); s.list == &c.parked {
			s.leave()
			c.turns.push(s)
		}
		return
	case http2.PongReceived:
		if c.draining == notified && !c.client {
			c.lastCall()
		}
		return
	case http2.GoAwayReceived:
		c.goneAway(e.LastID)
		return
	case http2.RequestRefused:
		c.refused(e.Reason)
		return
	case http2.SettingsReceived:
		return
	}
	if e.New {
		c.begin(e)
		return
	}
	s := e.Stream.Owner.(*Stream)
	s.moved = c.clock
	switch e.Kind {
	case http2.HeadReceived:
		c.head(s, e)
	case http2.DataReceived:
		s.in.put(e.Data)
		s.taking.bytes += len(e.Data)
	case http2.TrailersReceived:
		s.trailers, *e.Trailers = *e.Trailers, s.trailers
		s.hasTrailers = true
	case http2.StreamReset:
		if e.Local {
			c.refused(e.Reason)
		}
		s.refused = !e.Local && e.Code == http2.RefusedStream
		s.lose(&ResetError{Code: e.Code, Remote: !e.Local})
		return
	}
	s.ended = s.ended || e.End
	s.wakeReader()
}

// begin takes in a request.
func (c *Conn) begin(e *http2.Event) {
	s := c.takeStream()
	s.h = e.Stream
	e.Stream.Owner = s
	s.request, *e.Request = *e.Request, s.request
	s.protocol = append(s.protocol[:0], e.Protocol...)
	s.tooLarge, s.ended = e.TooLarge, e.End
	c.serving++
	c.reader.begun = append(c.reader.begun, s)
}

// head takes in a response.
func (c *Conn) head(s *Stream, e *http2.Event) {
	n := len(s.arrived)
	if n == mostInterim {
		c.refused("interim_flood")
		c.h2.Reset(s.h, http2.EnhanceYourCalm)
		s.lose(&ResetError{Code: http2.EnhanceYourCalm})
		return
	}
	if n < cap(s.arrived) {
		s.arrived = s.arrived[:n+1]
	} else {
		s.arrived = append(s.arrived, http1.Response{})
	}
	s.arrived[n], *e.Response = *e.Response, s.arrived[n]
	s.tooLarge = e.TooLarge
}

// goneAway takes in a GOAWAY. Streams above last were not looked at by the server.
func (c *Conn) goneAway(last uint32) {
	if !c.client {
		return // it ends the connection when it likes
	}
	if c.draining == staying {
		c.draining = notified
	}
	for _, s := range c.active {
		if s.h != nil && s.h.ID > last && s.err == nil && !s.ended {
			s.refused = true
			s.lose(&ResetError{Code: http2.RefusedStream, Remote: true})
		}
	}
	c.endIfDrained()
}

// dispatch lets those run for whom something came.
func (r *reader) dispatch() {
	for i, w := range r.wakes {
		w <- struct{}{}
		r.wakes[i] = nil
	}
	r.wakes = r.wakes[:0]
	for i, s := range r.begun {
		r.begun[i] = nil
		if r.c.config.Go != nil {
			r.c.config.Go(serveStream, s)
		} else {
			go s.serve()
		}
	}
	r.begun = r.begun[:0]
}

// serveStream runs a stream of a server and cleans up behind it.
func serveStream(s *Stream) {
	c := s.c
	c.config.Serve(s)
	c.lock()
	defer c.unlock()
	if _, said := s.h.Ended(); said {
		c.h2.Reset(s.h, http2.NoError) // if the request goes on (RFC 9113 §8.1)
	} else {
		c.h2.Reset(s.h, http2.InternalError)
	}
	c.h2.Release(s.h)
	c.dropStream(s)
	c.serving--
	if c.err != nil {
		c.ended.Broadcast()
	}
	c.endIfDrained()
}
