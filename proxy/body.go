package proxy

import (
	"errors"
	"io"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// replayBytes is the largest request body that is read whole before it is sent:
// such a request can be repeated. Larger ones, and chunked ones, are streamed.
const replayBytes = 64 << 10

// loadBody reads the request's body when it is small enough to be kept, and
// decides by that whether the request can be repeated. A client that waits for
// "100 Continue" is streamed: the application decides.
func (x *Exchange) loadBody() error {
	c, h := x.conn, &x.head
	switch {
	case h.Framing == http1.NoBody || h.Framing == http1.FixedLength && h.Length == 0:
		x.whole = true
		return nil
	case h.Framing != http1.FixedLength || h.Length > replayBytes || h.ExpectContinue:
		return nil
	}
	n := int(h.Length)
	x.record.BytesIn = h.Length
	if n <= len(c.in)-c.r { // it fits behind the head
		for c.w-c.r < n {
			if err := c.fill(); err != nil {
				return err
			}
			c.progress()
		}
		x.body, x.whole = c.in[c.r:c.r+n], true
		c.r += n
		return nil
	}
	body := make([]byte, n)
	have := copy(body, c.in[c.r:c.w])
	c.r += have
	for have < n {
		k, err := c.sock.Read(body[have:])
		have += k
		if err != nil && have < n {
			return err
		}
		c.progress()
	}
	x.body, x.whole = body, true
	return nil
}

// bodySender streams a request's body upstream in a goroutine of its own, while
// the connection's goroutine waits for the response. It owns the connection's
// read side and x.spill until done is closed.
type bodySender struct {
	done       chan struct{}
	err        error // nil: the whole body was sent
	fromClient bool  // err came from reading, not from writing
	bytes      int64
}

func (x *Exchange) startSender(u *upstream) *bodySender {
	s := &bodySender{done: make(chan struct{})}
	x.spill, x.streamed = takeBuffer(), true
	x.spillR, x.spillW = 0, copy(x.spill[:], x.conn.in[x.conn.r:x.conn.w])
	x.conn.r = x.conn.w
	go func() {
		defer close(s.done)
		if x.head.Framing == http1.Chunked {
			s.sendChunked(x, u)
		} else {
			s.sendFixed(x, u)
		}
		if s.err != nil && s.fromClient {
			// Without its client the request will never be whole: make the
			// upstream forget it, and wake who waits for the answer.
			_ = u.sock.SetDeadline(time.Unix(1, 0))
		}
	}()
	return s
}

// read fills x.spill when it is empty.
func (s *bodySender) read(x *Exchange) bool {
	if x.spillR < x.spillW {
		return true
	}
	n, err := x.conn.sock.Read(x.spill[:])
	x.spillR, x.spillW = 0, n
	if n == 0 {
		s.err, s.fromClient = err, true
		return false
	}
	x.conn.progress()
	return true
}

func (s *bodySender) write(u *upstream, b []byte) bool {
	_, s.err = u.sock.Write(b)
	return s.err == nil
}

func (s *bodySender) sendFixed(x *Exchange, u *upstream) {
	for left := x.head.Length; left > 0; {
		if !s.read(x) {
			return
		}
		n := int(min(left, int64(x.spillW-x.spillR)))
		if !s.write(u, x.spill[x.spillR:x.spillR+n]) {
			return
		}
		x.spillR += n
		left -= int64(n)
		s.bytes += int64(n)
	}
}

// sendChunked decodes the client's chunks and writes its own, so that what goes
// on is well-formed whatever came in.
func (s *bodySender) sendChunked(x *Exchange, u *upstream) {
	var dec http1.ChunkDecoder
	out := takeBuffer()
	defer out.free()
	for {
		if !s.read(x) {
			return
		}
		pending := out[:0]
		for x.spillR < x.spillW {
			n, data, done, err := dec.Next(x.spill[x.spillR:x.spillW])
			x.spillR += n
			if err != nil {
				s.err, s.fromClient = err, true
				return
			}
			if len(data) > 0 {
				s.bytes += int64(len(data))
				if len(pending)+len(data)+chunkOverhead > len(out) {
					if !s.write(u, pending) {
						return
					}
					pending = out[:0]
				}
				pending = appendChunk(pending, data)
			}
			if done {
				s.write(u, http1.AppendLastChunk(pending, dec.Trailers()))
				return
			}
		}
		if len(pending) > 0 && !s.write(u, pending) {
			return
		}
	}
}

// chunkOverhead is the most that a chunk's framing adds to its data.
const chunkOverhead = 20

func appendChunk(dst, data []byte) []byte {
	dst = http1.AppendChunkHeader(dst, len(data))
	return append(append(dst, data...), "\r\n"...)
}

// senderGrace is how long a sender may still need when the response is over
// already. A server that answers without reading the body does not get the rest.
const senderGrace = 100 * time.Millisecond

// join waits for the sender and says what its end means for the connections.
func (s *bodySender) join(x *Exchange, u *upstream, o received) received {
	timer := time.NewTimer(senderGrace)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		past := time.Unix(1, 0)
		_ = u.sock.SetWriteDeadline(past)
		_ = x.conn.sock.SetReadDeadline(past)
		<-s.done
		if s.err == nil { // it came to its end all the same
			_ = x.conn.sock.SetReadDeadline(time.Time{})
			_ = u.sock.SetWriteDeadline(time.Time{})
		}
	}
	x.record.BytesIn = s.bytes
	if s.err == nil {
		return o
	}
	o.keep, o.reusable = false, false
	if s.fromClient && !o.done {
		var malformed *http1.Error
		if errors.As(s.err, &malformed) {
			x.conn.p.refused.count(malformed.Reason)
			o.fault = Answer{Status: malformed.Status, Reason: malformed.Reason, Text: "malformed body: " + malformed.Reason, Close: true}
		} else {
			o.fault = Answer{Status: 400, Reason: "client_body", Text: "the request's body ended early", Close: true}
		}
		o.again = false
	}
	_ = x.conn.sock.SetReadDeadline(time.Time{})
	return o
}

// received is an attempt's outcome with what it means for the upstream connection.
type received struct {
	outcome
	reusable bool
	patience time.Duration // how long the connection may idle
}

// stream copies the response's body to the client. out holds the response's head,
// not written yet. err says which side failed.
func (x *Exchange) stream(u *upstream, out []byte, framing http1.Framing) (complete bool, err error) {
	switch x.response.Framing {
	case http1.NoBody:
		_, err = x.conn.sock.Write(out)
		return err == nil, err
	case http1.FixedLength:
		return x.streamFixed(u, out)
	}
	return x.streamChunks(u, out, framing)
}

// errUpstream marks failures of the upstream side while streaming.
var errUpstream = errors.New("upstream")

func (x *Exchange) streamFixed(u *upstream, out []byte) (complete bool, err error) {
	c := x.conn
	left := x.response.Length
	for {
		n := int(min(left, int64(u.w-u.r)))
		data := u.in[u.r : u.r+n]
		u.r += n
		left -= int64(n)
		x.record.BytesOut += int64(n)
		if len(out) > 0 && n <= cap(out)-len(out) {
			out, data = append(out, data...), nil
		}
		if len(out) > 0 {
			if _, err := c.sock.Write(out); err != nil {
				return false, err
			}
			out = nil
		}
		if len(data) > 0 {
			if _, err := c.sock.Write(data); err != nil {
				return false, err
			}
		}
		if left == 0 {
			return true, nil
		}
		u.r, u.w = 0, 0
		if err := u.fill(); err != nil {
			return false, errors.Join(errUpstream, err)
		}
		c.progress()
	}
}

// streamChunks copies a body of unknown length. framing is the client's: Chunked,
// or UntilClose for HTTP/1.0.
func (x *Exchange) streamChunks(u *upstream, out []byte, framing http1.Framing) (complete bool, err error) {
	c := x.conn
	var dec http1.ChunkDecoder
	for {
		var done bool
		if out, done, err = x.relay(u, &dec, out, framing); err != nil {
			return false, err
		}
		if len(out) > 0 {
			if _, err := c.sock.Write(out); err != nil {
				return false, err
			}
		}
		if done {
			return true, nil
		}
		out = c.takeOut()[:0]
		u.r, u.w = 0, 0
		err := u.fill()
		if errors.Is(err, io.EOF) && x.response.Framing == http1.UntilClose {
			if framing == http1.Chunked {
				_, err = c.sock.Write(http1.AppendLastChunk(out, nil))
				return err == nil, err
			}
			return true, nil
		}
		if err != nil {
			return false, errors.Join(errUpstream, err)
		}
		c.progress()
	}
}

// relay turns what is in u's buffer into what the client gets.
func (x *Exchange) relay(u *upstream, dec *http1.ChunkDecoder, out []byte, framing http1.Framing) (_ []byte, done bool, err error) {
	for u.r < u.w && !done {
		data := u.in[u.r:u.w]
		n := len(data)
		if x.response.Framing == http1.Chunked {
			if n, data, done, err = dec.Next(data); err != nil {
				return nil, false, errors.Join(errUpstream, err)
			}
		}
		u.r += n
		if len(data) > 0 {
			if len(out)+len(data)+chunkOverhead > cap(out) && len(out) > 0 {
				if _, err := x.conn.sock.Write(out); err != nil {
					return nil, false, err
				}
				out = out[:0]
			}
			x.record.BytesOut += int64(len(data))
			if framing == http1.Chunked {
				out = appendChunk(out, data)
			} else {
				out = append(out, data...)
			}
		}
	}
	if done && framing == http1.Chunked {
		out = http1.AppendLastChunk(out, dec.Trailers())
	}
	return out, done, nil
}
