// Package express answers the requests of a busy HTTP door whose answers lie ready,
// before net/http sees them. All other connections go on to net/http with every byte
// that came, so nothing else about the door changes:
//
//	ln = express.Listen(ln, answer)
//	http.Serve(ln, handler) // gets the connections that answer does not know
//
// A request by net/http costs about 20 µs of which most is not the answer's; here it
// is little more than the two system calls. A connection belongs to one goroutine,
// and once net/http has it, it stays there: who waits for news, sends a body or a
// token is answered there.
package express

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// Answer appends the whole response to r, head and body, to dst. It returns false,
// and dst is not looked at, when net/http is to answer. It must not block. r's bytes
// are valid during the call.
type Answer func(dst []byte, r *http1.Request) ([]byte, bool)

const (
	// headRoom is for requests; a head that does not fit goes to net/http, which may
	// take it.
	headRoom = 4 << 10
	// keepRoom of an answer's buffer stays with its connection.
	keepRoom = 64 << 10
	// patience is how long a connection may be silent, or slow to take an answer. Its
	// deadline is moved when a quarter has passed: that costs as much as an answer.
	patience = 2 * time.Minute
)

// Listener is a net.Listener of the connections that Answer does not know.
type Listener struct {
	inner  net.Listener
	answer Answer
	rest   chan net.Conn // to Accept
	done   chan struct{} // closed by Close, or when inner failed
	work   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	err   error // why it ended; nil before
}

// Listen begins to accept from ln, which it owns from now on.
func Listen(ln net.Listener, answer Answer) *Listener {
	l := &Listener{
		inner: ln, answer: answer,
		rest: make(chan net.Conn), done: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	l.work.Go(l.accept)
	return l
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept returns a connection that Answer does not know. What was read of it comes
// again.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.rest:
		return c, nil
	case <-l.done:
		return nil, l.reason()
	}
}

// Close ends the connections that Accept has not returned, and waits for their
// goroutines.
func (l *Listener) Close() error {
	err := l.inner.Close()
	l.end(net.ErrClosed)
	l.work.Wait()
	return err
}

func (l *Listener) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// end makes Accept fail, once, and closes the connections.
func (l *Listener) end(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = why
	close(l.done)
	for c := range l.conns {
		_ = c.Close()
	}
}

// accept waits as long as http.Server does when it fails for a while, as when there
// are no file descriptors.
func (l *Listener) accept() {
	for pause := time.Duration(0); ; {
		c, err := l.inner.Accept()
		if err == nil {
			pause = 0
			l.begin(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			l.end(err)
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-l.done:
			return
		}
	}
}

// begin starts to serve a connection, unless the listener has ended.
func (l *Listener) begin(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		_ = c.Close()
		return
	}
	l.conns[c] = struct{}{}
	l.work.Go(func() { l.serve(c) })
}

// forget is told of a connection that is this listener's no longer.
func (l *Listener) forget(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// serve answers until it meets a request that it does not know.
func (l *Listener) serve(c net.Conn) {
	s := conn{Conn: c, in: make([]byte, headRoom)}
	left, more := s.serve(l.answer)
	l.forget(c)
	if more {
		_ = c.SetDeadline(time.Time{}) // net/http has its own
		select {
		case l.rest <- &handed{Conn: c, left: left}:
			return
		case <-l.done:
		}
	}
	_ = c.Close()
}

// conn is a connection of its goroutine.
type conn struct {
	net.Conn
	in, out []byte
	request http1.Request
	moved   time.Time // when its deadline was
}

// serve returns what was read and not answered, and whether net/http is to go on: with
// a request that is not known, and with one that has not come whole, which has less
// time there.
func (c *conn) serve(answer Answer) (left []byte, ok bool) {
	for {
		if now := time.Now(); now.Sub(c.moved) > patience/4 {
			if c.SetDeadline(now.Add(patience)) != nil {
				return nil, false
			}
			c.moved = now
		}
		n, err := c.Read(c.in)
		if n == 0 && err != nil {
			return nil, false
		}
		for left = c.in[:n]; len(left) > 0; {
			used := c.answerSome(answer, left)
			if used == 0 {
				return left, true
			}
			left = left[used:]
			if _, err := c.Write(c.out); err != nil {
				return nil, false
			}
			if cap(c.out) > keepRoom {
				c.out = nil
			}
		}
	}
}

// answerSome puts the answers to the first requests in b into c.out. The rest begins
// at used.
func (c *conn) answerSome(answer Answer, b []byte) (used int) {
	c.out = c.out[:0]
	for used < len(b) && len(c.out) < keepRoom { // who asks many at once takes these first
		r := &c.request
		n, err := r.Parse(b[used:], &limits)
		if err != nil || r.Minor == 0 || r.Form != http1.Origin || r.Framing != http1.NoBody || !r.KeepAlive || r.Upgrade != nil {
			break
		}
		out, known := answer(c.out, r)
		if !known {
			break
		}
		c.out = out
		used += n
	}
	return used
}

var limits http1.Limits // the usual ones

// handed is a connection whose first bytes were read.
type handed struct {
	net.Conn
	left []byte // what was read and is to be read again; of who reads
}

func (h *handed) Read(b []byte) (int, error) {
	if len(h.left) == 0 {
		return h.Conn.Read(b)
	}
	n := copy(b, h.left)
	h.left = h.left[n:]
	if len(h.left) == 0 {
		h.left = nil // lets the buffer go
	}
	return n, nil
}
