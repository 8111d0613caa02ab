package eureka

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"hash/crc64"
	"io"
	"sync"
)

// segment is a piece of an answer, compressed alone: deflate blocks (RFC 1951) that
// refer to nothing before them, end on a byte, and are not the last ones. Segments
// in a row are one deflate stream, so an answer is put together from pieces that
// stayed the same without compressing them again. It is one member of gzip (RFC
// 1952): of several, Java's reader may take only the first.
type segment struct {
	blocks []byte
	size   int    // of the plain text
	crc    uint32 // of the plain text, as gzip wants it
	sum    uint64 // of the plain text, for the ETag
}

var crc64Table = crc64.MakeTable(crc64.ECMA)

// packers are *flate.Writer; each is a megabyte of tables.
var packers = sync.Pool{New: func() any {
	z, _ := flate.NewWriter(nil, flate.BestSpeed) // fails for unknown levels only
	return z
}}

// compress makes a segment of text. z is the caller's own.
func compress(z *flate.Writer, text []byte) segment {
	var b bytes.Buffer
	z.Reset(&b)
	z.Write(text) // a bytes.Buffer takes everything
	z.Flush()
	return segment{blocks: bytes.Clone(b.Bytes()), size: len(text), crc: crc32.ChecksumIEEE(text), sum: crc64.Checksum(text, crc64Table)}
}

// stored makes a segment of a short text, as a block that is not compressed.
func stored(text string) segment {
	b := make([]byte, 5, 5+len(text))
	binary.LittleEndian.PutUint16(b[1:], uint16(len(text)))
	binary.LittleEndian.PutUint16(b[3:], ^uint16(len(text)))
	return segment{blocks: append(b, text...), size: len(text), crc: crc32.ChecksumIEEE([]byte(text)), sum: crc64.Checksum([]byte(text), crc64Table)}
}

var (
	gzipHead  = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255} // no name, no time, unknown system
	lastBlock = []byte{1, 0, 0, 0xff, 0xff}                  // stored, empty, final
)

// stream is an answer of segments.
type stream struct {
	segments []segment
	size     int // of the plain text
	packed   int // of the gzip member
	crc      uint32
	etag     uint64
}

func newStream(segments []segment) *stream {
	s := &stream{segments: segments, packed: len(gzipHead) + len(lastBlock) + 8}
	sums := make([]byte, 0, 8*len(segments))
	for i := range segments {
		g := &segments[i]
		s.crc = joinCRC(s.crc, g.crc, g.size)
		s.size += g.size
		s.packed += len(g.blocks)
		sums = binary.LittleEndian.AppendUint64(sums, g.sum)
	}
	s.etag = crc64.Checksum(sums, crc64Table)
	return s
}

// writePacked writes the gzip member.
func (s *stream) writePacked(w io.Writer) error {
	if _, err := w.Write(gzipHead); err != nil {
		return err
	}
	for i := range s.segments {
		if _, err := w.Write(s.segments[i].blocks); err != nil {
			return err
		}
	}
	end := append(make([]byte, 0, len(lastBlock)+8), lastBlock...)
	end = binary.LittleEndian.AppendUint32(end, s.crc)
	end = binary.LittleEndian.AppendUint32(end, uint32(s.size)) // modulo 2³², as gzip has it
	_, err := w.Write(end)
	return err
}

// writePlain writes the plain text. It is not kept, as nearly all clients take gzip.
func (s *stream) writePlain(w io.Writer) error {
	readers := make([]io.Reader, 0, len(s.segments)+1)
	for i := range s.segments {
		readers = append(readers, bytes.NewReader(s.segments[i].blocks))
	}
	z := flate.NewReader(io.MultiReader(append(readers, bytes.NewReader(lastBlock))...))
	defer z.Close()
	_, err := io.Copy(w, z)
	return err
}

// joinCRC returns the CRC-32 of two texts in a row from the CRC of each and the
// length of the second: the first one's is multiplied by x^(8·length) modulo the
// polynomial of IEEE 802.3, in which the lowest bit is the highest power.
func joinCRC(first, second uint32, length int) uint32 {
	power := uint32(1) << 31 // x⁰
	for k, n := 3, uint64(length); n != 0; k, n = k+1, n>>1 {
		if n&1 != 0 {
			power = multiply(squares[k%32], power)
		}
	}
	return multiply(power, first) ^ second
}

// squares has x^(2^k). The order of x divides 2³²-1, so they repeat after 32.
var squares = func() (t [32]uint32) {
	t[0] = 1 << 30
	for k := 1; k < len(t); k++ {
		t[k] = multiply(t[k-1], t[k-1])
	}
	return t
}()

// multiply multiplies two polynomials modulo that of IEEE 802.3.
func multiply(a, b uint32) (product uint32) {
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.IEEE
		} else {
			b >>= 1
		}
	}
	return product
}
