package proxy

import (
	"io"
	"time"

	"github.com/weftmesh/weft/proxy/mux"
	"github.com/weftmesh/weft/wire/http1"
	"github.com/weftmesh/weft/wire/http2"
)

// http2Client is the client's side of an exchange on a stream of an HTTP/2
// connection.
type http2Client struct {
	x  *Exchange
	st *mux.Stream

	rest  []byte // of the request's body: read by load and not given out yet
	lines []byte // the response's head while it is kept back
	held  bool
	tail  []byte // scratch for trailers of the request
}

// Limits of downstream HTTP/2 connections (facts: Envoy's advice for edges).
const (
	maxStreams   = 100
	streamWindow = 64 << 10
	connWindow   = 1 << 20
	streamGrace  = time.Minute
	http2Fields  = 200 // cookie crumbs count one by one
)

// serveHTTP2 serves a connection whose streams are exchanges of their own.
func (c *conn) serveHTTP2() {
	h2 := mux.NewServer(c.sock, mux.Config{
		Protocol: http2.Config{Server: true, Streams: maxStreams, StreamWindow: streamWindow, ConnWindow: connWindow,
			HeadBytes: limits.HeadBytes, Fields: http2Fields, ExtendedConnect: true},
		Serve: c.serveStream, Go: c.p.workers.Go, Refused: c.p.refused.count, Idle: idleTimeout, Stall: stallTimeout, Hurry: c.p.short, Grace: c.grace(),
	})
	c.mu.Lock()
	c.h2 = h2
	c.mu.Unlock()
	c.phase.Store(phaseMany)
	if c.p.draining.Load() {
		h2.Drain()
	}
	if err := h2.Run(c.already()); err != nil {
		c.p.logger.Debug("http/2 connection ended", "peer", c.peerText, "error", err)
	}
}

// grace is how long an HTTP/2 client may make responses wait: the outside has a
// limit, the mesh's own clients may pause a stream for as long as they like.
func (c *conn) grace() time.Duration {
	if c.l.Direction == Edge {
		return streamGrace
	}
	return 0
}

// already is what was read of the connection before its protocol was known. The
// buffer goes back: the connection may live long.
func (c *conn) already() []byte {
	if c.in == nil {
		return nil
	}
	b := append([]byte(nil), c.in[c.r:c.w]...)
	c.in.free()
	c.in, c.r, c.w = nil, 0, 0
	return b
}

// serveStream serves one request.
func (c *conn) serveStream(st *mux.Stream) {
	x := c.p.takeExchange(c)
	x.h2.x, x.h2.st, x.h2.rest, x.h2.held = x, st, nil, false
	x.client = &x.h2
	x.head, *st.Request() = *st.Request(), x.head
	x.begin()
	st.Watch((*cancellation)(x))
	switch {
	case isGRPC(&x.head):
		st.LetRest() // watches are silent for hours; their deadlines are their own
	case c.l.Direction == Edge && len(st.Protocol()) == 0:
		st.BoundBody()
	}
	if st.TooLarge() {
		c.p.refused.count("head_too_large")
		x.answer(&Answer{Status: 431, Reason: "head_too_large", Text: "the request's head is too large"})
		x.finish()
	} else {
		x.serve()
	}
	st.Watch(nil)
	x.h2.st = nil
	c.p.putExchange(x)
}

// cancellation is what a stream does to its exchange when the client gives it up.
type cancellation Exchange

// Interrupt implements mux.Interrupter.
func (c *cancellation) Interrupt() { (*Exchange)(c).cancel() }

func (s *http2Client) http2() bool { return true }

// load implements client. Most small requests are here as a whole before anybody
// looks; a body that says that it is small is waited for.
func (s *http2Client) load() error {
	x, h := s.x, &s.x.head
	if h.Framing == http1.NoBody {
		x.whole = true
		return nil
	}
	n, ended := s.st.Ready()
	if h.ExpectContinue || n > replayBytes ||
		!ended && (h.Framing != http1.FixedLength || h.Length > replayBytes) {
		return nil
	}
	x.kept = x.kept[:0]
	for {
		data, err := s.st.Next()
		if err == io.EOF {
			x.body = x.kept
			break
		}
		if err != nil {
			return err
		}
		if n, ended := s.st.Ready(); ended && n == 0 && len(x.kept) == 0 && s.st.Trailers() == nil {
			x.body = data // a view: valid until Next is called again
			break
		}
		x.kept = append(x.kept, data...)
	}
	x.record.BytesIn = int64(len(x.body))
	x.whole = s.st.Trailers() == nil
	if !x.whole { // trailers go behind a streamed body only
		s.rest, x.body = x.body, nil
	}
	return nil
}

// next implements source.
func (s *http2Client) next() (data []byte, last bool, err error) {
	if s.rest != nil {
		data, s.rest = s.rest, nil
		return data, false, nil
	}
	data, err = s.st.Next()
	if err != nil {
		return nil, false, err
	}
	n, ended := s.st.Ready()
	return data, ended && n == 0 && s.st.Trailers() == nil, nil
}

func (s *http2Client) more() bool {
	n, ended := s.st.Ready()
	return n > 0 || ended
}

func (s *http2Client) trailers() []byte {
	if t := s.st.Trailers(); t != nil {
		s.tail = t.AppendFields(s.tail[:0])
		return s.tail
	}
	return nil
}

func (s *http2Client) stopReading()   { s.st.SetDeadline(time.Unix(1, 0)) }
func (s *http2Client) resumeReading() { s.st.SetDeadline(time.Time{}) }

func (s *http2Client) inform() error {
	s.lines = s.x.response.AppendFields(s.lines[:0])
	return s.st.SendResponse(s.x.response.Status, s.lines, nil, false)
}

// begin implements client.
func (s *http2Client) begin(pl *plan) (keep bool) {
	r := &s.x.response
	lines := s.x.appendResponse(s.lines[:0], pl, r.Framing == http1.NoBody, true)
	if r.Framing == http1.FixedLength {
		lines = http1.AppendFraming(lines, http1.FixedLength, r.Length)
	}
	s.lines, s.held = lines, true
	return true
}

func (s *http2Client) write(data []byte, last bool) error {
	if s.held {
		s.held = false
		return s.st.SendResponse(s.x.response.Status, s.lines, data, last)
	}
	return s.st.Write(data, last)
}

func (s *http2Client) flush() error {
	if !s.held {
		return nil
	}
	s.held = false
	return s.st.SendResponse(s.x.response.Status, s.lines, nil, false)
}

func (s *http2Client) end(trailers []byte) error {
	if len(trailers) == 0 {
		return s.write(nil, true)
	}
	if err := s.flush(); err != nil {
		return err
	}
	return s.st.SendTrailers(trailers)
}

// abort implements client: gRPC has a status for it, everything else is reset.
func (s *http2Client) abort(status int, reason string) {
	if s.x.grpc && s.flush() == nil {
		s.x.record.GRPCStatus = grpcStatusOf(status)
		s.lines = appendGRPCTrailers(s.lines[:0], grpcStatusOf(status), reason) // tail may be in use by the sender
		if s.st.SendTrailers(s.lines) == nil {
			return
		}
	}
	s.st.Reset(http2.InternalError)
}

// answer implements client.
func (s *http2Client) answer(status int, _ bool, lines, body []byte) (keep bool) {
	if !s.x.grpc && hasBody(status) {
		lines = http1.AppendFraming(lines, http1.FixedLength, int64(len(body)))
		s.x.lines = lines
	}
	if string(s.x.head.Method) == "HEAD" {
		body = nil
	}
	return s.st.SendResponse(status, lines, body, true) == nil
}
