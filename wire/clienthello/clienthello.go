// Package clienthello reads from the first bytes of a TLS connection for whom they
// are: the server name (SNI, RFC 6066 section 3) and the application protocols
// that the client offers (ALPN, RFC 7301). Nothing is decrypted, nothing is
// changed: the same bytes go on to whoever terminates TLS. No sockets, no clock.
//
//	hello, err := clienthello.Parse(buf)
//	switch {
//	case err == nil: // hello.ServerName(), hello.Offers("h2")
//	case err == clienthello.ErrIncomplete: // read more behind buf and call again
//	default: // *Error: not a hello; close the connection
//	}
//
// The answer does not depend on how the bytes were cut into reads. The hello may
// be spread over any number of records within Limit bytes. In one record, as
// clients send it, reading it allocates nothing; else once.
//
// # Names
//
// A route must be chosen by the name that the server behind it will see, so a name
// is either a plain DNS name or refused: letters, digits, "-" and "_" in labels of
// 1 to 63 bytes, 253 in all; no dot at the end (RFC 6066 forbids it, and "a." would
// slip past a rule about "a"); no IP addresses, in any notation that a resolver
// would take for one. Upper case becomes lower case in what ServerName returns;
// the hello itself stays as it was.
//
// A client that hides its name (Encrypted ClientHello) shows the public name here.
package clienthello

import (
	"errors"
	"iter"
)

// Limit bounds the bytes, headers of records included, within which the hello must
// end. Hellos with post-quantum keys take about 2 KiB; with a ticket that carries a
// certificate chain, less than 16.
const Limit = 16 << 10

// ErrIncomplete says that the hello has not ended yet: read more and parse again.
var ErrIncomplete = errors.New("clienthello: incomplete hello")

// Error is a refused hello. All Errors are static values of this package: they may
// be compared by pointer and must not be changed.
type Error struct {
	// Reason is a short word for logs and metric labels: "not_tls", "trailing_dot".
	Reason string
}

func (e *Error) Error() string { return "clienthello: " + e.Reason }

var (
	errNotTLS      = &Error{"not_tls"}       // the first bytes are no handshake record
	errTooLarge    = &Error{"too_large"}     // ends behind Limit
	errBadRecord   = &Error{"bad_record"}    // a record that cannot be within a hello
	errNotHello    = &Error{"not_hello"}     // another handshake message
	errMalformed   = &Error{"malformed"}     // lengths that contradict each other
	errDuplicate   = &Error{"duplicate"}     // an extension or a name twice
	errExtensions  = &Error{"too_many"}      // extensions
	errBadName     = &Error{"bad_name"}      // not a DNS name
	errTrailingDot = &Error{"trailing_dot"}  // name
	errIP          = &Error{"ip_literal"}    // name
	errBadALPN     = &Error{"bad_protocols"} // empty list or empty protocol
)

// Hello is what a client asks for.
type Hello struct {
	name    [maxName]byte
	nameLen uint8
	alpn    []byte // the list's inside; points into the parsed bytes, or their copy
}

// ServerName returns the name, lower case; empty when the client sent none. It
// points into h.
func (h *Hello) ServerName() []byte { return h.name[:h.nameLen] }

// Protocols ranges over what the client offers, its favourite first.
func (h *Hello) Protocols() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for list := h.alpn; len(list) > 0; {
			n := 1 + int(list[0])
			if !yield(list[1:n]) {
				return
			}
			list = list[n:]
		}
	}
}

// Offers says whether the client offers a protocol.
func (h *Hello) Offers(protocol string) bool {
	for p := range h.Protocols() {
		if string(p) == protocol {
			return true
		}
	}
	return false
}

// Parse reads the hello with which buf begins.
func Parse(buf []byte) (Hello, error) {
	message, err := unwrap(buf)
	if err != nil {
		return Hello{}, err
	}
	var h Hello
	if err := h.parse(message); err != nil {
		return Hello{}, err
	}
	return h, nil
}
