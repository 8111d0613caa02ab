package http1

import "math"

// Framing is how the end of a body is found (RFC 9112 §6.3).
type Framing uint8

const (
	NoBody      Framing = iota
	FixedLength         // exactly Content-Length bytes
	Chunked             // see ChunkDecoder; of a built head: the length is unknown
	UntilClose          // all bytes until the peer closes; responses only
)

// only returns the value of a field that stands on one line, else nil.
func (h *Head) only(id FieldID) []byte {
	if i := h.Find(id); i >= 0 && h.repeats>>id&1 == 0 {
		return h.Value(i)
	}
	return nil
}

// framing reads Content-Length and Transfer-Encoding: Chunked, or FixedLength
// with the length, or NoBody and -1 when there is neither.
func (h *Head) framing(minor uint8) (Framing, int64, fault) {
	const cl, te = 1 << FieldContentLength, 1 << FieldTransferEncoding
	switch {
	case !h.has(cl | te):
		return NoBody, -1, ok
	case h.has(te) && minor == 0:
		// A 1.0 hop on the way may have passed on a field that it did not
		// understand (RFC 9112 §6.1).
		return NoBody, -1, teHTTP10
	case h.has(te) && h.has(cl):
		return NoBody, -1, clTE
	case h.has(te):
		return Chunked, -1, checkTransferEncoding(h.only(FieldTransferEncoding))
	case h.repeats&cl != 0:
		return NoBody, -1, duplicateCL
	}
	length, f := parseLength(h.only(FieldContentLength))
	return FixedLength, length, f
}

// checkTransferEncoding accepts the one coding that this proxy understands.
func checkTransferEncoding(v []byte) fault {
	if foldsTo(v, "chunked") {
		return ok
	}
	// "gzip, chunked" is lawful and not implemented; all else has no clear end.
	for {
		elem, rest, more := element(v)
		last := foldsTo(elem, "chunked")
		switch {
		case last && more, !last && !more, !isToken(elem):
			return badTE
		case last:
			return unsupportedTE
		}
		v = rest
	}
}

// parseLength reads 1*DIGIT.
func parseLength(v []byte) (int64, fault) {
	if len(v) == 0 {
		return -1, badCL
	}
	var n int64
	f := ok
	for _, c := range v {
		if !isDigit(c) {
			return -1, badCL
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			f = hugeCL // unless a byte that is no digit follows
			continue
		}
		n = n*10 + d
	}
	if f != ok {
		return -1, f
	}
	return n, ok
}

// connection is what the Connection fields of a message say.
type connection struct {
	close, keepAlive, upgrade bool
}

// persistent tells whether the connection outlives the message (RFC 9112 §9.3).
func (c connection) persistent(minor uint8) bool {
	return !c.close && (minor > 0 || c.keepAlive)
}

// mostOptions bounds the work of connectionOptions: options times fields.
const mostOptions = 32

// connectionOptions reads the Connection fields and marks the fields that they
// list as Drop, except guarded ones.
func (h *Head) connectionOptions() (o connection, f fault) {
	first := h.Find(FieldConnection)
	if first < 0 {
		return o, ok
	}
	count := 0
	for i := first; i < len(h.Fields); i++ {
		if h.Fields[i].ID != FieldConnection {
			continue
		}
		list, more := h.Value(i), true
		for more {
			var option []byte
			option, list, more = element(list)
			if count++; count > mostOptions {
				return o, connectionOptions
			}
			switch {
			case foldsTo(option, "close"):
				o.close = true
			case equalFold(option, "keep-alive"):
				o.keepAlive = true
			case foldsTo(option, "upgrade"):
				o.upgrade = true
			default:
				h.dropListed(option)
			}
		}
	}
	return o, ok
}

// dropListed marks the fields with a name that a Connection field lists. What is
// no token names no field.
func (h *Head) dropListed(name []byte) {
	if !isToken(name) || guarded(name) {
		return
	}
	for i := range h.Fields {
		if equalFold(name, h.Name(i)) {
			h.Fields[i].Drop = true
		}
	}
}
