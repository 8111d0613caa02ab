package http2

import "bytes"

// RequestHead is what a request says in pseudo-header fields. Empty ones are not
// sent: CONNECT has only Method and Authority.
type RequestHead struct {
	Method, Scheme, Authority []byte
	Path                      []byte // with the query
	Protocol                  []byte // of an extended CONNECT (RFC 8441)
}

var (
	nameMethod    = []byte(":method")
	nameScheme    = []byte(":scheme")
	nameAuthority = []byte(":authority")
	namePath      = []byte(":path")
	nameProtocol  = []byte(":protocol")
)

// SendRequest sends the head of a request on a stream that Open has begun. lines
// are "Name: value\r\n" each; what HTTP/2 does not have (Host, Connection,
// Transfer-Encoding, …) is left out.
func (c *Conn) SendRequest(s *Stream, r *RequestHead, lines []byte, end bool) {
	if s.closed || s.headSent || c.dead != nil {
		return
	}
	s.toHead = string(r.Method) == "HEAD"
	s.tunnel = string(r.Method) == "CONNECT"
	start := c.beginBlock(s, end)
	c.appendPseudo(nameMethod, r.Method)
	c.appendPseudo(nameScheme, r.Scheme)
	c.appendPseudo(nameAuthority, r.Authority)
	c.appendPseudo(namePath, r.Path)
	c.appendPseudo(nameProtocol, r.Protocol)
	c.appendLines(lines)
	s.headSent = true
	c.endBlock(s, start, end)
}

// SendResponse sends the head of a response; an informational one (1xx) does not
// end the stream and others follow it.
func (c *Conn) SendResponse(s *Stream, status int, lines []byte, end bool) {
	if s.closed || s.headSent || c.dead != nil {
		return
	}
	final := status >= 200
	end = end && final
	start := c.beginBlock(s, end)
	c.out = c.encoder.AppendStatus(c.out, status)
	c.appendLines(lines)
	s.headSent = final
	c.endBlock(s, start, end)
}

// SendTrailers ends our side of the stream with fields.
func (c *Conn) SendTrailers(s *Stream, lines []byte) {
	if s.closed || s.localEnded || c.dead != nil {
		return
	}
	before := len(c.out)
	start := c.beginBlock(s, true)
	empty := len(c.out)
	c.appendLines(lines)
	if len(c.out) == empty && empty == start+headerLen {
		// An empty head is lawful and known to confuse; an empty DATA is neither.
		c.out = c.out[:before]
		c.SendData(s, nil, true)
		return
	}
	c.endBlock(s, start, true)
}

// SendData sends as much of p as the windows have room for, and returns how much
// that is. With end, the last byte of p (or an empty frame when there is none) ends
// our side of the stream. When it takes less than all, an event WindowOpened tells
// when there is room again.
func (c *Conn) SendData(s *Stream, p []byte, end bool) (n int) {
	if s.closed || s.localEnded || c.dead != nil {
		return 0
	}
	if len(p) == 0 {
		if end {
			c.out = appendFrame(c.out, 0, frameData, flagEndStream, s.ID)
			s.localEnded = true
			c.ends(s)
		}
		return 0
	}
	room, frames := c.Sendable(s), 0
	for n < len(p) && room > 0 {
		k := min(len(p)-n, room, c.peerFrame)
		flags := uint8(0)
		if end && n+k == len(p) {
			flags = flagEndStream
			s.localEnded = true
		}
		c.out = appendFrame(c.out, k, frameData, flags, s.ID)
		c.out = append(c.out, p[n:n+k]...)
		n += k
		room -= k
		frames++
	}
	s.send -= int32(n)
	c.sendWindow -= int32(n)
	c.lent += 2 * int64(n)
	// A peer that opens its window by the byte makes the work, it does not pay with it.
	if n == len(p) || n >= usefulData {
		c.worked(0, int32(frames+n/usefulUnit))
	}
	if s.localEnded {
		c.ends(s)
	}
	return n
}

// usefulData is what a DATA frame carries at least when windows are not the
// attack.
const usefulData = 256

// usefulUnit is what a reader may take at a time and open both windows behind:
// net/http's does so for each 4 KiB.
const usefulUnit = 1 << 10

// beginBlock appends the header of a HEADERS frame and returns where it stands.
func (c *Conn) beginBlock(s *Stream, end bool) (start int) {
	start = len(c.out)
	flags := uint8(flagEndHeaders)
	if end {
		flags |= flagEndStream
	}
	c.out = appendFrame(c.out, 0, frameHeaders, flags, s.ID)
	c.out = c.encoder.Begin(c.out)
	return start
}

// endBlock completes the frame, in parts if it is longer than the peer takes.
func (c *Conn) endBlock(s *Stream, start int, end bool) {
	length := len(c.out) - start - headerLen
	if length > c.peerFrame {
		c.splitBlock(s, start, length)
	} else {
		putLength(c.out[start:], length)
	}
	if end {
		s.localEnded = true
		c.ends(s)
	}
}

// splitBlock moves the block that stands behind the header at start apart, from its
// end, for the headers of CONTINUATION frames.
func (c *Conn) splitBlock(s *Stream, start, length int) {
	parts := (length + c.peerFrame - 1) / c.peerFrame
	for range parts - 1 {
		c.out = appendFrame(c.out, 0, frameContinuation, 0, s.ID) // makes room
	}
	block := start + headerLen
	for i := parts - 1; i > 0; i-- {
		from := block + i*c.peerFrame
		to := from + i*headerLen
		n := min(c.peerFrame, length-i*c.peerFrame)
		copy(c.out[to:to+n], c.out[from:from+n])
		flags := uint8(0)
		if i == parts-1 {
			flags = flagEndHeaders
		}
		appendFrame(c.out[:to-headerLen], n, frameContinuation, flags, s.ID)
	}
	putLength(c.out[start:], c.peerFrame)
	c.out[start+4] &^= flagEndHeaders
}

func (c *Conn) appendPseudo(name, value []byte) {
	if len(value) > 0 {
		c.out = c.encoder.Append(c.out, name, value)
	}
}

// appendLines appends the fields of "Name: value\r\n" lines.
func (c *Conn) appendLines(lines []byte) {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n')
		if end < 0 {
			end = len(lines) - 1
		}
		line := lines[:end+1]
		lines = lines[end+1:]
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 {
			continue
		}
		name, value := line[:colon], trim(line[colon+1:])
		if !ofConnection(name, value) {
			c.out = c.encoder.Append(c.out, name, value)
		}
	}
}

// ofConnection tells whether a field belongs to a connection of HTTP/1 or is said
// in another way here (RFC 9113 §8.2.2, §8.3.1).
func ofConnection(name, value []byte) bool {
	switch len(name) {
	case len("te"):
		return fold(name, "te") && !fold(value, "trailers")
	case len("host"):
		return fold(name, "host")
	case len("upgrade"):
		return fold(name, "upgrade")
	case len("connection"): // and keep-alive
		return fold(name, "connection") || fold(name, "keep-alive")
	case len("proxy-connection"):
		return fold(name, "proxy-connection")
	case len("transfer-encoding"):
		return fold(name, "transfer-encoding")
	}
	return false
}

// fold tells whether b is the lower-case s, whatever its case.
func fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// trim removes the whitespace and line end around a value.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 {
		switch b[len(b)-1] {
		case ' ', '\t', '\r', '\n':
			b = b[:len(b)-1]
			continue
		}
		break
	}
	return b
}
