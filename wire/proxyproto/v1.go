package proxyproto

import (
	"bytes"
	"net/netip"
	"strconv"
	"unsafe"
)

// mostV1 is the longest line with its CR LF, by section 2.1 of the specification:
// UNKNOWN with two full IPv6 addresses.
const mostV1 = 107

// parse1 judges the line when its line feed is there, or cannot come any more.
func parse1(buf []byte) (h Header, n int, err error) {
	end := bytes.IndexByte(buf[:min(len(buf), mostV1)], '\n')
	switch {
	case end < 0 && len(buf) >= mostV1:
		return Header{}, 0, errTooLarge
	case end < 0:
		return Header{}, 0, ErrIncomplete
	case end < len(v1Start) || buf[end-1] != '\r':
		return Header{}, 0, errBadLine
	}
	line := buf[len(v1Start) : end-1]
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return Header{}, 0, errBadLine
		}
	}
	if h, err = parseLine(line); err != nil {
		return Header{}, 0, err
	}
	return h, end + 1, nil
}

// parseLine reads what is between "PROXY " and CR LF.
func parseLine(line []byte) (h Header, err error) {
	h.Version = 1
	family, rest, more := bytes.Cut(line, space)
	if string(family) == "UNKNOWN" {
		return h, nil // whatever comes before CR LF means nothing
	}
	ipv6 := string(family) == "TCP6"
	if !ipv6 && string(family) != "TCP4" {
		return h, errBadFamily
	}
	var words [4][]byte
	for i := range words {
		if !more {
			return h, errBadLine
		}
		words[i], rest, more = bytes.Cut(rest, space)
	}
	if more {
		return h, errBadLine
	}
	source, ok1 := parseAddr(words[0], ipv6)
	destination, ok2 := parseAddr(words[1], ipv6)
	if !ok1 || !ok2 {
		return h, errBadAddress
	}
	sourcePort, ok1 := parsePort(words[2])
	destinationPort, ok2 := parsePort(words[3])
	if !ok1 || !ok2 {
		return h, errBadPort
	}
	h.Source = netip.AddrPortFrom(source, sourcePort)
	h.Destination = netip.AddrPortFrom(destination, destinationPort)
	return h, nil
}

var space = []byte(" ")

// parseAddr returns the address plain when it is IPv4 mapped into IPv6.
func parseAddr(b []byte, ipv6 bool) (netip.Addr, bool) {
	if bytes.IndexByte(b, '%') >= 0 {
		return netip.Addr{}, false // a zone means nothing on another host
	}
	// The string lives as long as the call: ParseAddr keeps parts of it only in
	// zones, which are out, and in its error, which is dropped. It saves two
	// allocations a header.
	a, err := netip.ParseAddr(unsafe.String(unsafe.SliceData(b), len(b)))
	if err != nil || a.Is4() == ipv6 {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// parsePort takes plain decimal numbers only.
func parsePort(b []byte) (port uint16, ok bool) {
	if len(b) == 0 || len(b) > 5 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return uint16(n), n <= 0xffff
}

// AppendV1 appends h as a line. What version 1 has no words for (LOCAL, UNIX and
// datagram sockets, unknown addresses) becomes UNKNOWN; TLVs are left out.
func AppendV1(dst []byte, h Header) []byte {
	dst = append(dst, v1Start...)
	if !h.ip() || h.Datagram {
		return append(dst, "UNKNOWN\r\n"...)
	}
	source, destination := h.addresses()
	if source.Is4() {
		dst = append(dst, "TCP4 "...)
	} else {
		dst = append(dst, "TCP6 "...)
	}
	dst = source.AppendTo(dst)
	dst = append(dst, ' ')
	dst = destination.AppendTo(dst)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(h.Source.Port()), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(h.Destination.Port()), 10)
	return append(dst, '\r', '\n')
}
