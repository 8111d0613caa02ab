package dns

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	idleTimeout    = 10 * time.Second // from one question's end to the next one's end, over TCP
	writeTimeout   = 5 * time.Second  // for one write, over TCP
	maxConnErrands = 32               // of one connection at a time; then it is not read
	flushAt        = 32 << 10         // bytes of answers that wait for those of questions that are there already
)

// conn is one connection. Questions are answered in the order in which their answers
// are known (RFC 7766 section 6.2.1.1).
type conn struct {
	server *Server
	conn   net.Conn
	from   asker

	writing sync.Mutex // held for a write

	// of the reader
	responder *responder
	in        *bufio.Reader
	question  []byte
	out       []byte        // answers, each after its length, not written yet
	errands   chan struct{} // holds one for each that runs
	running   sync.WaitGroup
}

// serveConn answers the questions of a connection until it ends, and waits until
// every answer was written.
func (s *Server) serveConn(nc net.Conn) {
	c := &conn{
		server: s, conn: nc, from: asker{tcp: true}, responder: s.newResponder(),
		in: bufio.NewReaderSize(nc, 2048), errands: make(chan struct{}, maxConnErrands),
	}
	if ap, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		c.from.addr = ap.Addr()
	}
	defer c.running.Wait()
	for s.awaitQuestion(nc) {
		if !c.readQuestion() || !c.answer() {
			return
		}
		if c.questionIsThere() && len(c.out) < flushAt {
			continue
		}
		if !c.write(c.out) {
			return
		}
		c.out = c.out[:0]
		if cap(c.out) > flushAt {
			c.out = nil
		}
	}
}

// awaitQuestion sets the deadline for the next question, unless the server closes.
func (s *Server) awaitQuestion(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	c.SetReadDeadline(time.Now().Add(idleTimeout))
	return true
}

func (c *conn) readQuestion() bool {
	var length [2]byte
	if _, err := io.ReadFull(c.in, length[:]); err != nil {
		return false
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if cap(c.question) < n {
		c.question = make([]byte, n)
	}
	c.question = c.question[:n]
	_, err := io.ReadFull(c.in, c.question)
	return err == nil
}

// questionIsThere says whether the next question was received whole.
func (c *conn) questionIsThere() bool {
	n := c.in.Buffered()
	if n < 2 {
		return false
	}
	length, err := c.in.Peek(2)
	return err == nil && n >= 2+int(binary.BigEndian.Uint16(length))
}

// answer adds the answer to the question that was read, or starts to find it. It
// returns false when that was no question: this client speaks something else.
func (c *conn) answer() bool {
	start := len(c.out)
	out, later := c.responder.respond(append(c.out, 0, 0), c.question, c.from)
	if later != nil {
		if c.server.begin() {
			c.runLater(later)
			return true
		}
		out = c.responder.busy(append(c.out, 0, 0), later)
	}
	n := len(out) - start - 2
	if n == 0 {
		return false
	}
	binary.BigEndian.PutUint16(out[start:], uint16(n))
	c.out = out
	return true
}

// runLater does an errand beside the connection's reader, once there are not too
// many.
func (c *conn) runLater(e *errand) {
	c.errands <- struct{}{}
	c.running.Go(func() {
		defer func() { <-c.errands; c.server.end() }()
		answer := c.server.newResponder().run(c.server.ctx, e, []byte{0, 0})
		binary.BigEndian.PutUint16(answer, uint16(len(answer)-2))
		c.write(answer)
	})
}

func (c *conn) write(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := c.conn.Write(b)
	return err == nil
}
