package http1

import "bytes"

// splitHostPort tells whether a is "host" or "host:port", and whether it has a
// port. A host is a name or IPv4 address of unreserved characters (the sub-delims
// and escapes of RFC 3986 name no host that exists, and parsers differ on them),
// or an IPv6 address in brackets without zone; a port is a number up to 65535.
func splitHostPort(a []byte) (port, valid bool) {
	var rest []byte
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 0 || !validIPv6(a[1:end]) {
			return false, false
		}
		rest = a[end+1:]
	} else {
		n := 0
		for n < len(a) && unreserved[a[n]] {
			n++
		}
		if n == 0 {
			return false, false
		}
		rest = a[n:]
	}
	if len(rest) == 0 {
		return false, true
	}
	return true, rest[0] == ':' && validPort(rest[1:])
}

func validPort(b []byte) bool {
	if len(b) == 0 || len(b) > 5 {
		return false
	}
	n := 0
	for _, c := range b {
		if !isDigit(c) {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// validIPv6 tells whether b is an IPv6 address (RFC 4291 §2.2).
func validIPv6(b []byte) bool {
	groups, compressed := 0, false
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		compressed = true
		b = b[2:]
	}
	for len(b) > 0 {
		n := 0
		for n < len(b) && unhex[b[n]] < 16 {
			n++
		}
		if n < len(b) && b[n] == '.' {
			if !validIPv4(b) {
				return false
			}
			groups += 2
			break
		}
		if n == 0 || n > 4 {
			return false
		}
		groups++
		if b = b[n:]; len(b) == 0 {
			break
		}
		if b[0] != ':' || len(b) == 1 {
			return false
		}
		if b = b[1:]; b[0] == ':' {
			if compressed {
				return false
			}
			compressed = true
			b = b[1:]
		}
	}
	return groups == 8 && !compressed || groups < 8 && compressed
}

func validIPv4(b []byte) bool {
	for part := range 4 {
		n, value := 0, 0
		for n < len(b) && n < 4 && isDigit(b[n]) {
			value = value*10 + int(b[n]-'0')
			n++
		}
		if n == 0 || value > 255 || n > 1 && b[0] == '0' {
			return false
		}
		b = b[n:]
		if part < 3 {
			if len(b) == 0 || b[0] != '.' {
				return false
			}
			b = b[1:]
		}
	}
	return len(b) == 0
}

// unhex is the value of a hexadecimal digit, 16 for every other byte.
var unhex = func() (t [256]uint8) {
	for i := range t {
		t[i] = 16
	}
	for i, c := range []byte("0123456789abcdef") {
		t[c] = uint8(i)
	}
	for i, c := range []byte("ABCDEF") {
		t[c] = uint8(10 + i)
	}
	return t
}()
