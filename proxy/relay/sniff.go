package relay

import "bytes"

// Kind is what a connection carries, told from who speaks first and how.
type Kind uint8

const (
	Unknown     Kind = iota // nobody spoke in time
	HTTP1                   // the client: a request line
	HTTP2                   // the client: the connection preface, in plain text
	TLS                     // the client: a ClientHello
	Raw                     // the client: something else, or it ended without a word
	ServerFirst             // the server
)

var kindNames = [...]string{"unknown", "http1", "http2", "tls", "raw", "server_first"}

func (k Kind) String() string { return kindNames[k] }

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 section 3.4

	// mostMethod is longer than any registered method (RFC 9110 section 16.1.1).
	mostMethod = 24
	// mostLine is how much of a request line is waited for. A longer one that was
	// right so far is HTTP/1: its engine refuses it in HTTP's words.
	mostLine = 4 << 10
)

// Sniff tells what the first bytes of a client are. more says that they do not
// decide it yet; then the kind is Unknown.
//
// A request line is believed when its end is there, "HTTP/1.1" and a line feed:
// "GET key" is Redis, and "CONNECT {…}" is NATS.
//
// Whoever speaks can look like Raw on purpose. Where a rule about HTTP must hold,
// the port's protocol has to be declared, not detected.
func Sniff(b []byte) (kind Kind, more bool) {
	if len(b) == 0 {
		return Unknown, true
	}
	b = b[:min(len(b), mostLine)]
	if b[0] == 22 {
		return sniffTLS(b)
	}
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		if n < len(preface) {
			return Unknown, true
		}
		return HTTP2, false
	}
	return sniffRequest(b)
}

// sniffTLS looks for a handshake record (RFC 8446 section 5.1) of any version 3.x
// that begins with a ClientHello.
func sniffTLS(b []byte) (Kind, bool) {
	switch {
	case len(b) > 1 && b[1] != 3, len(b) > 2 && b[2] > 4, len(b) > 5 && b[5] != 1:
		return Raw, false
	case len(b) < 6:
		return Unknown, true
	}
	return TLS, false
}

// sniffRequest looks for method SP target SP "HTTP/" digit "." digit [CR] LF.
func sniffRequest(b []byte) (Kind, bool) {
	method := 0
	for method < len(b) && method <= mostMethod && isToken(b[method]) {
		method++
	}
	switch {
	case method == len(b) && method <= mostMethod:
		return Unknown, true
	case method == 0 || method > mostMethod || b[method] != ' ':
		return Raw, false
	}
	line, _, ended := bytes.Cut(b[method+1:], []byte("\n"))
	if ended {
		line = bytes.TrimSuffix(line, []byte("\r"))
	}
	for i, c := range line {
		last := i == len(line)-1
		if c < ' ' && !(c == '\r' && last && !ended) || c == 0x7f || c == ' ' && i == 0 {
			return Raw, false
		}
	}
	switch {
	case ended && endsInVersion(line):
		return HTTP1, false
	case ended:
		return Raw, false
	case len(b) == mostLine:
		return HTTP1, false
	}
	return Unknown, true
}

// endsInVersion wants " HTTP/1.1" behind at least one byte of a target.
func endsInVersion(line []byte) bool {
	i := len(line) - len(" HTTP/1.1")
	if i < 1 {
		return false
	}
	v := line[i:]
	return string(v[:6]) == " HTTP/" && isDigit(v[6]) && v[7] == '.' && isDigit(v[8])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// isToken says whether c may be part of a method (RFC 9110 section 5.6.2).
func isToken(c byte) bool {
	switch {
	case isDigit(c), 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}
