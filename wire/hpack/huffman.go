package hpack

import "encoding/binary"

// huffmanBits are the lengths of the codes of RFC 7541 Appendix B. The code is
// canonical: codes are counted up, the shorter first, equal lengths in the order
// of the bytes. What is left at the end, 30 ones, is EOS.
var huffmanBits = [256]uint8{
	13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
	28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
	6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
	5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
	13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
	7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
	15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
	6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
	20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
	24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
	22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
	21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
	26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
	19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
	20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
	26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
}

const (
	longestCode = 30
	// shortBits is the longest code that is decoded in one step. It covers all
	// letters, digits and most signs.
	shortBits = 10
)

// huffman holds the code in the forms that the two directions need.
var huffman = func() (h struct {
	code [256]uint32 // right-aligned

	// short is indexed by the next shortBits bits: the byte, and above it the
	// length of its code; 0 when the code is longer.
	short [1 << shortBits]uint16
	// For longer codes: end is the first 32-bit window behind the codes of a length,
	// first the first code of the length, rank its place in bytes.
	end   [longestCode + 1]uint64
	first [longestCode + 1]uint32
	rank  [longestCode + 1]int
	bytes [256]byte // in the order of their codes
}) {
	next, n := uint32(0), 0
	for l := 1; l <= longestCode; l++ {
		next <<= 1
		h.first[l], h.rank[l] = next, n
		for c, bits := range huffmanBits {
			if int(bits) != l {
				continue
			}
			h.code[c] = next
			h.bytes[n] = byte(c)
			if l <= shortBits {
				from := next << (shortBits - l)
				for i := range uint32(1) << (shortBits - l) {
					h.short[from+i] = uint16(l)<<8 | uint16(c)
				}
			}
			next++
			n++
		}
		h.end[l] = uint64(next) << (32 - l)
	}
	return h
}()

// decodeHuffman appends the bytes that src stands for. It fails on EOS, on a code
// that breaks off, and on padding that is longer than 7 bits or not of ones (§5.2).
func decodeHuffman(dst, src []byte) ([]byte, bool) {
	var window uint64 // the next bits, left-aligned, zeros behind them
	n := 0            // how many they are
	for {
		if n < 32 && len(src) >= 4 {
			window |= uint64(binary.BigEndian.Uint32(src)) << (32 - n)
			n += 32
			src = src[4:]
		} else {
			for n <= 56 && len(src) > 0 {
				window |= uint64(src[0]) << (56 - n)
				n += 8
				src = src[1:]
			}
		}
		// Without more input the last bits, or none, are padding.
		for n >= longestCode || len(src) == 0 {
			e := huffman.short[window>>(64-shortBits)]
			c, l := byte(e), int(e>>8)
			if l == 0 {
				c, l = longCode(uint32(window >> 32))
			}
			if l > n {
				return dst, n < 8 && window == ^uint64(0)<<(64-n)
			}
			if l == 0 {
				return dst, false
			}
			dst = append(dst, c)
			window <<= l
			n -= l
		}
	}
}

// longCode decodes a code of more than shortBits bits from a window of 32. EOS has
// length 0.
func longCode(window uint32) (c byte, l int) {
	for l = shortBits + 1; l <= longestCode; l++ {
		if uint64(window) < huffman.end[l] {
			code := window >> (32 - l)
			return huffman.bytes[huffman.rank[l]+int(code-huffman.first[l])], l
		}
	}
	return 0, 0
}

// huffmanLen is how many bytes s has when it is coded.
func huffmanLen(s []byte) int {
	bits := 0
	for _, c := range s {
		bits += int(huffmanBits[c])
	}
	return (bits + 7) / 8
}

// appendHuffman appends s coded, padded with ones.
func appendHuffman(dst, s []byte) []byte {
	var window uint64 // the last n bits are not written yet
	n := 0
	for _, c := range s {
		l := int(huffmanBits[c])
		window = window<<l | uint64(huffman.code[c])
		n += l
		for n >= 8 {
			n -= 8
			dst = append(dst, byte(window>>n))
		}
	}
	if n > 0 {
		dst = append(dst, byte(window<<(8-n))|0xff>>n)
	}
	return dst
}
