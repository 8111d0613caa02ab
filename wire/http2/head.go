package http2

// fate is what becomes of a head when it is complete. Each is decoded, for the
// sake of the table, unless the connection ends.
type fate uint8

const (
	ignored fate = iota // of a stream that we have reset, or that we ignore after GOAWAY
	refused             // the stream is reset with refusal
	begins              // server: a request
	belongs             // response or trailers of an open stream
)

// refusal is why a stream will be reset.
type refusal struct {
	code   Code
	reason string // "": not reported
}

// mostContinuations are followed for one head. Senders cut a head into frames of
// 16 KiB; there is no reason for short ones.
const mostContinuations = 128

func (c *Conn) headers(f frame, in []byte, e *Event) (int, *ConnError) {
	if f.stream == 0 {
		return 0, c.fail(ProtocolError, "stream_zero")
	}
	n, size, pad, fatal := c.padding(f, in)
	if n == 0 {
		return 0, fatal
	}
	itself := false
	if f.has(flagPriority) {
		if size < priorityLen {
			return 0, c.fail(FrameSizeError, "frame_size")
		}
		if len(in) < n+priorityLen {
			return 0, nil
		}
		itself = dependsOnItself(in[n:], f.stream)
		n, size = n+priorityLen, size-priorityLen
	}
	if fatal = c.admit(f.stream, itself); fatal != nil {
		return 0, fatal
	}
	c.blockStream, c.blockFrames, c.blockEnds = f.stream, 0, f.has(flagEndStream)
	used, fatal := c.beginFragment(f, in[n:], size, pad, e)
	return n + used, fatal
}

func (c *Conn) continuation(f frame, in []byte, e *Event) (int, *ConnError) {
	if c.blockStream == 0 {
		return 0, c.fail(ProtocolError, "unexpected_continuation")
	}
	if c.blockFrames++; c.blockFrames > mostContinuations {
		return 0, c.fail(EnhanceYourCalm, "continuation_flood")
	}
	used, fatal := c.beginFragment(f, in[headerLen:], f.length, 0, e)
	if fatal == nil && f.length == 0 && !f.has(flagEndHeaders) {
		fatal = c.charge(emptyFrames, 1)
	}
	return headerLen + used, fatal
}

// beginFragment begins the part of a head that one frame has.
func (c *Conn) beginFragment(f frame, in []byte, size, pad int, e *Event) (int, *ConnError) {
	// The bound is on what is encoded, before anybody knows what it says
	// (CVE-2023-45288).
	if len(c.block)+size > 2*c.config.HeadBytes {
		return 0, c.fail(EnhanceYourCalm, "continuation_flood")
	}
	c.endHeaders = f.has(flagEndHeaders)
	c.state, c.left, c.pad = inBlock, size, pad
	return c.fragment(in, e)
}

// fragment takes what is here of a fragment. A head that is here in one piece is
// not copied.
func (c *Conn) fragment(in []byte, e *Event) (int, *ConnError) {
	n := min(len(in), c.left)
	block := in[:n]
	if n < c.left || !c.endHeaders || len(c.block) > 0 {
		c.block = append(c.block, block...)
		block = c.block
	}
	if c.left -= n; c.left > 0 {
		return n, nil
	}
	c.ignore(c.pad)
	if !c.endHeaders {
		return n, nil
	}
	id := c.blockStream
	c.blockStream = 0
	fatal := c.decode(id, block, e)
	if c.block = c.block[:0]; cap(c.block) > keptBlock {
		c.block = nil
	}
	return n, fatal
}

// admit decides the fate of a head on a stream.
func (c *Conn) admit(id uint32, itself bool) *ConnError {
	s := c.streams.find(id)
	c.fate = belongs
	switch {
	case s != nil && s.remoteEnded:
		c.fate, c.refusal = refused, refusal{StreamClosed, "head_after_end"}
	case s != nil:
	case c.config.Server && id&1 == 0:
		return c.fail(ProtocolError, "bad_stream_id")
	case c.idle(id) && !c.config.Server:
		return c.fail(ProtocolError, "idle_stream")
	case c.idle(id):
		c.admitRequest(id)
	case id > c.cutoff, c.reset.has(id), !c.config.Server && !c.ended.has(id):
		c.fate = ignored
		return c.charge(lateFrames, 1)
	case c.ended.has(id):
		return c.fail(StreamClosed, "head_after_end")
	case c.ended.has(id | byPeer):
		c.fate, c.refusal = refused, refusal{StreamClosed, ""}
	default:
		return c.fail(ProtocolError, "bad_stream_id") // it was skipped
	}
	if itself && c.fate >= begins {
		c.fate, c.refusal = refused, refusal{ProtocolError, "self_dependency"}
	}
	return nil
}

// admitRequest decides the fate of a new stream. Beside those that are open, those
// count that the driver has not released: who resets a stream can begin another at
// once, but the work on the first goes on.
func (c *Conn) admitRequest(id uint32) {
	c.lastID = id
	c.fate = begins
	switch {
	case id > c.cutoff:
		c.fate = ignored
	case c.streams.n >= int(c.config.Streams), c.held >= 2*int(c.config.Streams):
		c.fate, c.refusal = refused, refusal{RefusedStream, "too_many_streams"}
	}
}

// decode reads a complete head.
func (c *Conn) decode(id uint32, block []byte, e *Event) *ConnError {
	s := c.streams.find(id)
	if c.fate == belongs && s == nil {
		c.fate = ignored // the driver has reset it between two fragments
	}
	switch c.fate {
	case ignored:
		return c.skipHead(block)
	case refused:
		if fatal := c.skipHead(block); fatal != nil {
			return fatal
		}
		if s != nil {
			return c.streamError(s, c.refusal.code, c.refusal.reason, e)
		}
		return c.refuse(id, c.refusal.code, e, c.refusal.reason)
	}
	h := &c.head
	switch {
	case c.fate == begins:
		h.begin(ofRequest, &c.config)
	case !c.config.Server && !s.headSeen:
		h.begin(ofResponse, &c.config)
	default:
		h.begin(ofTrailers, &c.config)
	}
	if err := c.decoder.Decode(block, h.field); err != nil {
		return c.fail(CompressionError, "compression")
	}
	if h.bomb {
		return c.fail(EnhanceYourCalm, "header_bomb")
	}
	switch h.kind {
	case ofRequest:
		return c.request(id, e)
	case ofResponse:
		return c.response(s, e)
	}
	return c.trailers(s, e)
}

func (c *Conn) skipHead(block []byte) *ConnError {
	if err := c.decoder.Decode(block, nil); err != nil {
		return c.fail(CompressionError, "compression")
	}
	return nil
}

// request begins a stream with the head that was decoded.
func (c *Conn) request(id uint32, e *Event) *ConnError {
	h := &c.head
	end := c.blockEnds
	if fault := h.asRequest(end, c.config.ExtendedConnect); fault != "" {
		return c.refuse(id, ProtocolError, e, fault)
	}
	s := c.accept(id)
	s.headSeen = true
	if !h.connect || len(h.protocol) > 0 {
		s.bodyLeft = h.request.Length
	}
	*e = Event{
		Kind: HeadReceived, Stream: s, New: true, End: end,
		TooLarge: h.large, Request: &h.request,
	}
	if len(h.protocol) > 0 {
		e.Protocol = h.protocol
	}
	if end {
		s.remoteEnded = true
	}
	return nil
}

// response is the head of a response, informational or final.
func (c *Conn) response(s *Stream, e *Event) *ConnError {
	h := &c.head
	end := c.blockEnds
	left, fault := h.asResponse(s, end)
	if fault == "" && h.large {
		return c.streamError(s, EnhanceYourCalm, "head_too_large", e)
	}
	if fault != "" {
		return c.streamError(s, ProtocolError, fault, e)
	}
	if h.response.Status >= 200 {
		s.headSeen, s.bodyLeft = true, left
	}
	*e = Event{
		Kind: HeadReceived, Stream: s, End: end, Response: &h.response,
	}
	if end {
		s.remoteEnded = true
		c.ends(s)
	}
	return nil
}

// trailers are the end of a stream.
func (c *Conn) trailers(s *Stream, e *Event) *ConnError {
	h := &c.head
	switch {
	case !c.blockEnds:
		return c.streamError(s, ProtocolError, "second_head", e)
	case s.bodyLeft > 0:
		return c.streamError(s, ProtocolError, "content_length", e)
	case h.fault != "":
		return c.streamError(s, ProtocolError, h.fault, e)
	case h.large:
		return c.streamError(s, EnhanceYourCalm, "trailers_too_large", e)
	}
	*e = Event{Kind: TrailersReceived, Stream: s, End: true, Trailers: &h.trailers}
	s.remoteEnded = true
	c.ends(s)
	return nil
}
