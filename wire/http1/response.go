package http1

import "bytes"

// Response is the head of a response. The zero value is ready; reuse it.
type Response struct {
	Head

	Status int // 100 to 999
	Minor  uint8
	Reason []byte

	// Framing knows what the request and the status mean for the body: there is
	// none after HEAD, 1xx, 204, 304 and a successful CONNECT.
	Framing Framing
	// Length is the value of Content-Length, -1 without one. After HEAD and 304 it
	// is given beside NoBody: forward it.
	Length int64
	// KeepAlive tells whether the connection can serve another request when the
	// body was read. It is false after 101 and a successful CONNECT: what follows
	// is not HTTP.
	KeepAlive bool
	// Upgrade is the value of Upgrade when Connection lists it, else nil.
	Upgrade []byte
}

// Parse reads the head of a response to a request with the given method from the
// beginning of buf and returns its length. The error is nil, ErrIncomplete or an
// *Error; after an error the fields of r mean nothing. Interim responses (1xx) are
// responses of their own.
func (r *Response) Parse(buf, requestMethod []byte, lim *Limits) (n int, err error) {
	l := lim.filled()
	buf = buf[:min(len(buf), l.HeadBytes)]
	if r.waiting(buf, &l) {
		return 0, ErrIncomplete
	}
	n, f := r.parse(buf, requestMethod, l.Fields)
	if f == ok {
		r.scanned = 0
		return n, nil
	}
	if f = r.verdict(buf, n, f, l.HeadBytes); f == incomplete {
		return 0, ErrIncomplete
	}
	return 0, &responseErrors[f]
}

// parse returns the length of the head, or the offset of the fault. Faults that
// are found when the head is complete stand at 0.
func (r *Response) parse(buf, requestMethod []byte, mostFields int) (int, fault) {
	r.reset(buf)
	r.Upgrade = nil
	p, f := r.statusLine(buf)
	if f != ok {
		return p, f
	}
	p, f = r.parseFields(buf, p, mostFields)
	if f != ok {
		return p, f
	}
	o, f := r.connectionOptions()
	if f != ok {
		return 0, f
	}
	r.KeepAlive = o.persistent(r.Minor)
	if o.upgrade && r.Minor > 0 {
		r.Upgrade = r.only(FieldUpgrade)
	}
	if f = r.framing(requestMethod); f != ok {
		return 0, f
	}
	return p, ok
}

// statusLine reads "HTTP/1.x SP status [SP reason] CRLF". The space before an
// empty reason is often forgotten and nothing depends on it.
func (r *Response) statusLine(buf []byte) (int, fault) {
	const version, status = len("HTTP/1.1 "), len("HTTP/1.1 200")
	if len(buf) == 0 {
		return 0, incomplete
	}
	if buf[0] != 'H' {
		return 0, notHTTP
	}
	if len(buf) <= status {
		return 0, statusLineFault(buf)
	}
	switch string(buf[:version]) {
	case "HTTP/1.1 ":
		r.Minor = 1
	case "HTTP/1.0 ":
		r.Minor = 0
	default:
		return 0, statusLineFault(buf)
	}
	var valid bool
	if r.Status, valid = statusCode(buf[version:status]); !valid {
		return 0, badStatus
	}
	p := status
	if buf[p] == ' ' {
		p++
	} else if buf[p] != '\r' && buf[p] != '\n' {
		return p, badStatus
	}
	start := p
	p = skipText(buf, p)
	if p >= len(buf) {
		return p, incomplete
	}
	if buf[p] != '\r' {
		return p, textFault(buf[p])
	}
	if p+1 >= len(buf) {
		return p, incomplete
	}
	if buf[p+1] != '\n' {
		return p, bareCR
	}
	r.Reason = buf[start:p]
	return p + 2, ok
}

// statusCode reads a status of three digits.
func statusCode(b []byte) (code int, valid bool) {
	if len(b) != 3 || !isDigit(b[0]) || !isDigit(b[1]) || !isDigit(b[2]) || b[0] == '0' {
		return 0, false
	}
	return int(b[0]-'0')*100 + int(b[1]-'0')*10 + int(b[2]-'0'), true
}

// statusLineFault judges a line that is too short or of another version.
func statusLineFault(buf []byte) fault {
	line, _, complete := bytes.Cut(buf, []byte("\n"))
	const version = len("HTTP/1.1")
	switch {
	case !complete:
		return incomplete
	case len(line) <= version || line[version] != ' ' || !isVersion(line[:version]):
		return badStatusLine
	case line[5] == '1' && line[7] <= '1':
		return badStatus
	}
	return unsupportedVersion
}

// framing decides how the body is delimited (RFC 9112 §6.3).
func (r *Response) framing(requestMethod []byte) fault {
	framing, length, f := r.Head.framing(r.Minor)
	if f != ok {
		return f
	}
	r.Framing, r.Length = framing, length
	if r.bodyless(requestMethod) {
		r.Framing = NoBody
		switch {
		case r.Status == 101, string(requestMethod) == "CONNECT" && r.Status/100 == 2:
			r.KeepAlive = false
		case (r.Status < 200 || r.Status == 204) && (framing == Chunked || length > 0):
			// These cannot announce a body (RFC 9110 §8.6, RFC 9112 §6.1). A server
			// that does may send it too: do not trust what follows.
			r.KeepAlive = false
		}
		return ok
	}
	if framing == NoBody {
		r.Framing, r.KeepAlive = UntilClose, false
	}
	return ok
}

// bodyless tells whether the response has no body, whatever its fields say.
func (r *Response) bodyless(requestMethod []byte) bool {
	return r.Status < 200 || r.Status == 204 || r.Status == 304 ||
		string(requestMethod) == "HEAD" || string(requestMethod) == "CONNECT" && r.Status/100 == 2
}
