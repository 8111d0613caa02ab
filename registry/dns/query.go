package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

const (
	headerSize = 12  // bytes (RFC 1035 section 4.1.1)
	maxName    = 255 // bytes in a message (RFC 1035 section 2.3.4)
	optSize    = 11  // bytes of an OPT record without options (RFC 6891 section 6.1.2)
)

// query is a question as it stands in a packet, which it points into.
type query struct {
	message []byte
	name    []byte // in a message's form, in the letters of the client
	end     int    // where the question section ends
	qtype   uint16
	qclass  uint16

	edns    bool
	version uint8
	do      bool   // the client wants signatures: echoed (RFC 3225 section 3)
	size    int    // of UDP answers, as the client says
	cookie  []byte // the option's data: the client's 8 bytes, then perhaps the server's; nil without
}

func (q *query) id() uint16 { return binary.BigEndian.Uint16(q.message) }
func (q *query) rd() bool   { return q.message[2]&0x01 != 0 }
func (q *query) cd() bool   { return q.message[3]&0x10 != 0 }

// folded appends the name in lower case. Lengths of labels are less than any
// letter: the whole form can be folded.
func (q *query) folded(b []byte) []byte {
	for _, c := range q.name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// verdict is what is to be done with a packet.
type verdict uint8

const (
	silence verdict = iota // an answer, or too short to have an id: nobody is to be told
	malformed
	notImplemented
	asked
)

// read reads a packet. It allocates nothing.
func (q *query) read(b []byte) verdict {
	*q = query{message: b}
	if len(b) < headerSize || b[2]&0x80 != 0 {
		return silence
	}
	if opcode := b[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return notImplemented
	}
	count := func(i int) int { return int(binary.BigEndian.Uint16(b[4+2*i:])) }
	if count(0) != 1 || count(1) != 0 {
		return malformed
	}
	end := skipName(b, headerSize)
	if end < 0 || end-headerSize > maxName || b[end-1] != 0 || end+4 > len(b) { // a name that ends in a pointer leads back here
		return malformed
	}
	q.name = b[headerSize:end]
	q.qtype, q.qclass = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
	q.end = end + 4
	at := q.end
	for range count(2) { // such as what an IXFR has already
		if _, at = skipRecord(b, at); at < 0 {
			return malformed
		}
	}
	for range count(3) {
		start := at
		var data int
		if data, at = skipRecord(b, at); at < 0 {
			return malformed
		}
		if isOPT := binary.BigEndian.Uint16(b[data-10:]) == dns.TypeOPT; !isOPT {
			continue
		}
		// One, of the root (RFC 6891 section 6.1.1).
		if q.edns || b[start] != 0 || !q.readOPT(b[data-10:data], b[data:at]) {
			return malformed
		}
	}
	return asked
}

// readOPT reads the fixed part of an OPT record, from its type on, and its options.
func (q *query) readOPT(fixed, options []byte) bool {
	q.edns = true
	q.size = int(binary.BigEndian.Uint16(fixed[2:]))
	q.version = fixed[5]
	q.do = fixed[6]&0x80 != 0
	for len(options) > 0 {
		if len(options) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(options), int(binary.BigEndian.Uint16(options[2:]))
		if options = options[4:]; len(options) < n {
			return false
		}
		if code == dns.EDNS0COOKIE && q.cookie == nil {
			// RFC 7873 section 5.2.2: other lengths are FORMERR.
			if n != clientCookie && (n < clientCookie+8 || n > clientCookie+32) {
				return false
			}
			q.cookie = options[:n:n]
		}
		options = options[n:]
	}
	return true
}

// skipName returns where the name at b[at:] ends, or -1. What a pointer points to
// is not looked at.
func skipName(b []byte, at int) int {
	for at < len(b) {
		switch n := int(b[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			if at+2 > len(b) {
				return -1
			}
			return at + 2
		case n > 63:
			return -1
		default:
			at += 1 + n
		}
	}
	return -1
}

// skipRecord returns where the data of the record at b[at:] begins and ends, or -1.
func skipRecord(b []byte, at int) (data, end int) {
	if at = skipName(b, at); at < 0 || at+10 > len(b) {
		return -1, -1
	}
	data = at + 10
	end = data + int(binary.BigEndian.Uint16(b[at+8:]))
	if end > len(b) {
		return -1, -1
	}
	return data, end
}

// labelsOf splits a name in a message's form. ok is false when the form is wrong.
func labelsOf(name []byte) (labels []string, ok bool) {
	for len(name) > 0 {
		n := int(name[0])
		if n == 0 {
			return labels, len(name) == 1
		}
		if n > 63 || len(name) < 1+n {
			return nil, false
		}
		labels = append(labels, string(name[1:1+n]))
		name = name[1+n:]
	}
	return nil, false
}

// appendName appends a host name, "a.b.c" with or without a final dot, in a
// message's form. ok is false when it has none.
func appendName(b []byte, host string) (_ []byte, ok bool) {
	start := len(b)
	for len(host) > 0 {
		label := host
		n := 0
		for n < len(label) && label[n] != '.' {
			n++
		}
		if n == 0 || n > 63 {
			return b[:start], false
		}
		b = append(append(b, byte(n)), label[:n]...)
		host = host[min(n+1, len(host)):]
	}
	b = append(b, 0)
	return b, len(b)-start <= maxName
}
