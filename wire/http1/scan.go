package http1

import (
	"encoding/binary"
	"math/bits"
)

// Classes of bytes in a token (RFC 9110 §5.6.2). 0 is no token byte.
const (
	tokenByte       = 1
	tokenUnderscore = 2
)

var tokenClass = func() (t [256]uint8) {
	for _, c := range []byte("!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = tokenByte
	}
	t['_'] = tokenUnderscore
	return t
}()

// targetByte holds the bytes that a request target may have: visible ASCII
// without "#". RFC 3986 allows fewer, but clients send " | { } [ ] ^ \ and none of
// them can move the end of the target.
var targetByte = func() (t [256]bool) {
	for c := 0x21; c < 0x7f; c++ {
		t[c] = c != '#'
	}
	return t
}()

// unreserved holds the unreserved characters of RFC 3986 §2.3.
var unreserved = func() (t [256]bool) {
	for _, c := range []byte("-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = true
	}
	return t
}()

const (
	lows  = 0x0101010101010101
	highs = 0x8080808080808080
)

// skipText returns the offset of the first byte at or after p that a field value
// or reason phrase cannot have: a control byte other than HTAB, or DEL. Bytes
// above 0x7f pass as they are (obs-text).
func skipText(buf []byte, p int) int {
	// Eight bytes at a time: mark bytes below 0x20 and bytes equal to 0x7f. A
	// borrow can only mark a byte above one that is marked rightly, and the lowest
	// mark is what counts.
	for p+8 <= len(buf) {
		x := binary.LittleEndian.Uint64(buf[p:])
		del := x ^ 0x7f*lows
		mark := ((x-0x20*lows)&^x | (del-lows)&^del) & highs
		if mark == 0 {
			p += 8
			continue
		}
		p += bits.TrailingZeros64(mark) >> 3
		if buf[p] != '\t' {
			return p
		}
		p++
	}
	for p < len(buf) && textByte(buf[p]) {
		p++
	}
	return p
}

func textByte(c byte) bool { return c >= 0x20 && c != 0x7f || c == '\t' }

// equalFold compares two names, whatever their case.
func equalFold[T []byte | string](a []byte, b T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower[a[i]] != lower[b[i]] {
			return false
		}
	}
	return true
}

var lower = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
	}
	for c := 'A'; c <= 'Z'; c++ {
		t[c] = byte(c) + 'a' - 'A'
	}
	return t
}()

// element cuts the first element off a comma-separated list (RFC 9110 §5.6.1),
// without the whitespace around it.
func element(list []byte) (elem, rest []byte, more bool) {
	i := 0
	for i < len(list) && list[i] != ',' {
		i++
	}
	elem, more = trimOWS(list[:i]), i < len(list)
	if more {
		rest = list[i+1:]
	}
	return elem, rest, more
}

func trimOWS(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// isToken tells whether b is one token.
func isToken(b []byte) bool {
	for _, c := range b {
		if tokenClass[c] == 0 {
			return false
		}
	}
	return len(b) > 0
}
