package clienthello

import "bytes"

const (
	maxName  = 253 // RFC 1035 section 2.3.4, written without the root's dot
	maxLabel = 63
)

// setName takes a name over in lower case, or refuses it.
func (h *Hello) setName(name []byte) error {
	switch {
	case len(name) == 0 || len(name) > maxName+1:
		return errBadName
	case bytes.IndexByte(name, ':') >= 0:
		return errIP // IPv6; no name has a colon
	case name[len(name)-1] == '.':
		return errTrailingDot
	case len(name) > maxName:
		return errBadName
	}
	label := 0 // where the present one begins
	for i, c := range name {
		switch {
		case c == '.' && i == label:
			return errBadName
		case c == '.':
			label = i + 1
		case i-label == maxLabel:
			return errBadName
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return errBadName
		}
		h.name[i] = c
	}
	if isNumber(h.name[label:len(name)]) {
		return errIP
	}
	h.nameLen = uint8(len(name))
	return nil
}

// isNumber says whether the last label of a name makes resolvers read all of it as
// an IPv4 address: "1.2.3.4", but also "127.1", "0x7f000001" and "017700000001".
// There are no such top-level domains (RFC 3696 section 2).
func isNumber(label []byte) bool {
	digits := "0123456789"
	if hex, ok := bytes.CutPrefix(label, []byte("0x")); ok {
		label, digits = hex, "0123456789abcdef"
	}
	return len(bytes.Trim(label, digits)) == 0
}
