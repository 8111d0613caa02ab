package proxy

import (
	"io"
	"time"

	"github.com/weftmesh/weft/wire/http1"
)

// http1Client is the client's side of an exchange on an HTTP/1 connection.
type http1Client struct {
	x *Exchange

	// The request's body; of the sender's goroutine while one runs.
	spill  *buffer // nil until the body is streamed
	r, w   int     // spill[r:w] was read and not used yet
	left   int64   // bytes to come, of a body of known length
	chunks http1.ChunkDecoder
	over   bool // the last chunk was read

	// The response.
	out     []byte // written and kept back
	framing http1.Framing
}

// useHTTP1 makes the connection itself the exchange's client.
func (x *Exchange) useHTTP1() {
	x.h1.x = x
	x.client = &x.h1
}

func (s *http1Client) free() {
	if s.spill != nil {
		s.spill.free()
		s.spill = nil
	}
	s.out = nil
}

// takeSpill moves the beginning of a next request, which came behind a streamed
// body, to where heads are read.
func (s *http1Client) takeSpill() {
	if s.spill == nil {
		return
	}
	c := s.x.conn
	if s.r < s.w {
		if c.in == nil {
			c.in = takeBuffer()
		}
		c.r, c.w = 0, copy(c.in[:], s.spill[s.r:s.w])
	}
	s.free()
}

func (s *http1Client) http2() bool { return false }

// replayBytes is the largest request body that is read whole before it is sent:
// such a request can be repeated. Larger ones, and those of unknown length, are
// streamed.
const replayBytes = 64 << 10

// load reads a body that is small enough. A client that waits for "100 Continue"
// is streamed: the application decides.
func (s *http1Client) load() error {
	x, c, h := s.x, s.x.conn, &s.x.head
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
			if err := c.fillBody(); err != nil {
				return err
			}
			c.progress()
		}
		x.body, x.whole = c.in[c.r:c.r+n], true
		c.r += n
		return nil
	}
	x.kept = append(x.kept[:0], c.in[c.r:c.w]...)
	c.r = c.w
	body := grown(x.kept, n)
	for have := len(x.kept); have < n; {
		k, err := c.read(body[have:])
		have += k
		if err != nil && have < n {
			return err
		}
		c.progress()
	}
	x.kept, x.body, x.whole = body, body, true
	return nil
}

// grown is b with length n; what is behind its old length is arbitrary.
func grown(b []byte, n int) []byte {
	if n <= cap(b) {
		return b[:n]
	}
	next := make([]byte, n)
	copy(next, b)
	return next
}

// start begins to stream the body: what was read behind the head goes first.
func (s *http1Client) start() {
	c := s.x.conn
	s.spill, s.over, s.left = takeBuffer(), false, s.x.head.Length
	s.chunks = http1.ChunkDecoder{}
	s.r, s.w = 0, copy(s.spill[:], c.in[c.r:c.w])
	c.r = c.w
}

// read fills the spill when it is empty.
func (s *http1Client) read() error {
	if s.r < s.w {
		return nil
	}
	n, err := s.x.conn.read(s.spill[:])
	s.r, s.w = 0, n
	if n == 0 {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	s.x.conn.progress()
	return nil
}

// next implements source.
func (s *http1Client) next() (data []byte, last bool, err error) {
	if s.spill == nil {
		s.start()
	}
	if s.x.head.Framing == http1.FixedLength {
		if s.left == 0 {
			return nil, false, io.EOF
		}
		if err := s.read(); err != nil {
			return nil, false, err
		}
		n := int(min(s.left, int64(s.w-s.r)))
		data = s.spill[s.r : s.r+n]
		s.r += n
		s.left -= int64(n)
		return data, s.left == 0, nil
	}
	if s.over {
		return nil, false, io.EOF
	}
	if err := s.read(); err != nil {
		return nil, false, err
	}
	for s.r < s.w && !s.over {
		n, data, over, err := s.chunks.Next(s.spill[s.r:s.w])
		s.r += n
		if err != nil {
			return nil, false, err
		}
		s.over = over
		if len(data) > 0 {
			return data, false, nil
		}
	}
	if s.over {
		return nil, false, io.EOF
	}
	return nil, false, nil // only part of a chunk's framing: let the sink flush before we wait
}

func (s *http1Client) more() bool { return s.r < s.w || s.over }

func (s *http1Client) trailers() []byte { return s.chunks.Trailers() }

// stopReading makes a waiting next fail; resumeReading undoes it.
func (s *http1Client) stopReading()   { _ = s.x.conn.sock.SetReadDeadline(time.Unix(1, 0)) }
func (s *http1Client) resumeReading() { _ = s.x.conn.sock.SetReadDeadline(time.Time{}) }

// skipBody reports whether the next request's beginning is known, and goes there.
func (s *http1Client) skipBody() bool {
	x, c := s.x, s.x.conn
	if x.whole || x.head.Framing == http1.NoBody {
		return true // whole: it was read already
	}
	if !x.streamed && x.head.Framing == http1.FixedLength && x.head.Length <= int64(c.w-c.r) {
		c.r += int(x.head.Length)
		return true
	}
	return false
}

func (s *http1Client) inform() error {
	r := &s.x.response
	out := http1.AppendStatusLine(s.x.takeOut()[:0], r.Status, r.Reason)
	out = append(r.AppendFields(out), "\r\n"...)
	_, err := s.x.conn.write(out)
	return err
}

// begin implements client.
func (s *http1Client) begin(pl *plan) (keep bool) {
	x, r := s.x, &s.x.response
	s.framing = s.clientFraming()
	// A client that waits for "100 Continue" and gets a final answer may or may
	// not send its body: nobody knows where its next request would begin.
	waits := x.head.ExpectContinue && !x.continued
	keep = x.head.KeepAlive && s.framing != http1.UntilClose && !waits && !x.conn.p.ends()
	out := http1.AppendStatusLine(x.takeOut()[:0], r.Status, r.Reason)
	out = x.appendResponse(out, pl, s.framing == http1.NoBody, s.framing == http1.Chunked)
	if s.framing == http1.FixedLength || s.framing == http1.Chunked {
		out = http1.AppendFraming(out, s.framing, r.Length)
	}
	s.out = s.endHead(out, keep)
	return keep
}

func (s *http1Client) endHead(out []byte, keep bool) []byte {
	if !keep {
		out = append(out, "Connection: close\r\n"...)
	} else if s.x.head.Minor == 0 {
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	return append(out, "\r\n"...)
}

// clientFraming is how the client gets the response's body.
func (s *http1Client) clientFraming() http1.Framing {
	r := &s.x.response
	switch f := r.Framing; {
	case f == http1.NoBody && r.Status != 204 && r.Status != 304 && string(s.x.head.Method) != "HEAD":
		r.Length = 0 // the end of an HTTP/2 stream said it
		return http1.FixedLength
	case f == http1.NoBody || f == http1.FixedLength:
		return f
	case s.x.head.Minor == 0: // HTTP/1.0 knows no chunks
		return http1.UntilClose
	}
	return http1.Chunked
}

// write implements sink: small pieces are put together, large ones pass.
func (s *http1Client) write(data []byte, last bool) (err error) {
	if s.framing == http1.Chunked {
		if s.out == nil {
			s.out = s.x.takeOut()[:0]
		}
		if s.out, err = writeChunks(s.x.conn, s.out, data); err == nil && last {
			err = s.end(nil)
		}
		return err
	}
	if len(data) <= cap(s.out)-len(s.out) {
		s.out = append(s.out, data...)
		if last {
			return s.flush()
		}
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	_, err = s.x.conn.write(data)
	return err
}

// flush sends what was kept back. The head is in it, so out is nil afterwards:
// pieces of a body of known length pass through without a copy.
func (s *http1Client) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.x.conn.write(s.out)
	s.out = nil
	return err
}

func (s *http1Client) end(trailers []byte) error {
	if s.framing == http1.Chunked {
		if s.out == nil {
			s.out = s.x.takeOut()[:0]
		}
		s.out = http1.AppendLastChunk(s.out, trailers)
	}
	return s.flush()
}

// abort implements client: the connection's end tells that the response is not
// whole. Where that is how whole ones end, too, it is a reset.
func (s *http1Client) abort(int, string) {
	_ = s.flush()
	if s.framing == http1.UntilClose {
		s.x.conn.truncated = true
	}
}

// answer implements client.
func (s *http1Client) answer(status int, last bool, lines, body []byte) (keep bool) {
	x := s.x
	keep = !last && s.skipBody() && x.head.KeepAlive && !x.conn.p.ends()
	out := http1.AppendStatusLine(x.takeOut()[:0], status, nil)
	out = append(out, lines...)
	if hasBody(status) {
		out = http1.AppendFraming(out, http1.FixedLength, int64(len(body)))
	}
	out = s.endHead(out, keep)
	if string(x.head.Method) != "HEAD" {
		out = append(out, body...)
	}
	if _, err := x.conn.write(out); err != nil {
		keep = false
	}
	return keep
}

// chunkOverhead is the most that a chunk's framing adds to its data.
const chunkOverhead = 20

// writeChunks appends data as chunks to out, writing whenever out is full.
func writeChunks(to io.Writer, out, data []byte) ([]byte, error) {
	for len(data) > 0 {
		n := min(len(data), cap(out)-len(out)-chunkOverhead)
		if n <= 0 || n < len(data) && n < 1<<10 && len(out) > 0 {
			if _, err := to.Write(out); err != nil {
				return out[:0], err
			}
			out = out[:0]
			continue
		}
		out = http1.AppendChunkHeader(out, n)
		out = append(append(out, data[:n]...), "\r\n"...)
		data = data[n:]
	}
	return out, nil
}
