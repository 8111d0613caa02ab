package http1

import "strconv"

const (
	// chunkSizeDigits keeps a size below 2^60: it cannot overflow.
	chunkSizeDigits = 15
	// chunkExtensionBytes is the longest extension of one chunk. Signed uploads
	// need some 100; nobody else sends any.
	chunkExtensionBytes = 1 << 10
	// chunkOverheadBytes of extensions are allowed over what is in proportion to
	// the data (16 bytes a chunk and 1 for each 8 of data), so that a peer cannot
	// make us read for ever without sending a body.
	chunkOverheadBytes = 16 << 10

	trailerBytes = 8 << 10
	trailerLines = 64
)

// ChunkDecoder takes a chunked body (RFC 9112 §7.1) apart. The zero value is
// ready; Reset makes it ready again.
type ChunkDecoder struct {
	state  chunkState
	digits uint8 // of the size that is being read
	left   int64 // of the chunk's size or, in chunkData, of its data

	extension int   // bytes of the extension that is being read
	overhead  int64 // bytes of extensions above their proportion

	// trailers holds the lines that are kept, behind them the line being read.
	trailers []byte
	kept     int // length of the lines that are kept
	lines    int // all trailer lines so far
	lineRead int // bytes of all trailer lines so far
}

type chunkState uint8

const (
	chunkSize    chunkState = iota // at or in the size
	chunkSpace                     // in whitespace before ";"
	chunkExt                       // behind ";"
	chunkSizeLF                    // behind the CR of the size line
	chunkData                      // in the data
	chunkDataCR                    // behind the data
	chunkDataLF                    // behind the CR that ends the data
	chunkTrailer                   // at or in a trailer line
	chunkDone
)

// Reset makes the decoder ready for another body and keeps its memory.
func (d *ChunkDecoder) Reset() { *d = ChunkDecoder{trailers: d.trailers[:0]} }

// Next consumes a prefix of buf and returns its length, and the data that it
// holds, if any, as a part of buf. Call it again with the bytes behind the prefix.
// It takes at most one run of data per call, and everything else that it can use:
// when consumed is len(buf) and done is false, more bytes are needed.
//
// done says that the last chunk and the trailer section were read; what stands
// behind consumed belongs to the next message. The error is nil or an *Error with
// the status for a client's mistake; a body with an error has no trustworthy end.
func (d *ChunkDecoder) Next(buf []byte) (consumed int, data []byte, done bool, err error) {
	p := 0
	for p < len(buf) && d.state != chunkDone {
		switch d.state {
		case chunkData:
			if data != nil {
				return p, data, false, nil
			}
			n := min(int64(len(buf)-p), d.left)
			data = buf[p : p+int(n)]
			p += int(n)
			if d.left -= n; d.left == 0 {
				d.state = chunkDataCR
			}
		case chunkTrailer:
			n, f := d.trailer(buf[p:])
			if f != ok {
				return p, data, false, &requestErrors[f]
			}
			p += n
		default:
			if f := d.control(buf[p]); f != ok {
				return p, data, false, &requestErrors[f]
			}
			p++
		}
	}
	return p, data, d.state == chunkDone, nil
}

// Trailers returns the trailer lines that may be passed on, as "Name: value\r\n"
// each. Framing, routing, authentication and hop-by-hop fields are left out (RFC
// 9110 §6.5.1). Valid until Reset, complete when Next said done.
func (d *ChunkDecoder) Trailers() []byte { return d.trailers[:d.kept] }

// control takes one byte of what stands between the data.
func (d *ChunkDecoder) control(c byte) fault {
	switch d.state {
	case chunkSize:
		return d.sizeByte(c)
	case chunkExt:
		return d.extensionByte(c)
	case chunkSizeLF:
		if c != '\n' {
			return bareCR
		}
		return d.begin()
	case chunkDataCR:
		if c == '\n' {
			return bareLF
		}
		if c != '\r' {
			return badChunkEnd
		}
		d.state = chunkDataLF
	case chunkDataLF:
		if c != '\n' {
			return bareCR
		}
		d.state = chunkSize
	}
	return ok
}

func (d *ChunkDecoder) sizeByte(c byte) fault {
	if v := unhex[c]; v < 16 {
		if d.digits++; d.digits > chunkSizeDigits {
			return badChunkSize
		}
		d.left = d.left<<4 | int64(v)
		return ok
	}
	switch {
	case c == '\n':
		return bareLF
	case d.digits == 0:
		return badChunkSize
	case c == '\r':
		d.state = chunkSizeLF
	case c == ';':
		d.state = chunkExt
	default:
		// Whitespace before ";" too: RFC 9112 §7.1.1 allows it, net/http and others
		// do not read it as we would.
		return badChunkSize
	}
	return ok
}

// extensionByte skips an extension. None has a meaning for a proxy, and none is
// passed on.
func (d *ChunkDecoder) extensionByte(c byte) fault {
	switch {
	case c == '\r':
		d.state = chunkSizeLF
	case c == '\n':
		return bareLF
	case !textByte(c):
		return badChunkExtension
	default:
		if d.extension++; d.extension > chunkExtensionBytes {
			return badChunkExtension
		}
	}
	return ok
}

// begin enters the chunk whose size line has ended.
func (d *ChunkDecoder) begin() fault {
	if d.extension > 0 {
		d.overhead = max(0, d.overhead+int64(d.extension)-16-d.left/8)
		if d.overhead > chunkOverheadBytes {
			return chunkOverhead
		}
	}
	d.digits, d.extension = 0, 0
	d.state = chunkData
	if d.left == 0 {
		d.state = chunkTrailer
	}
	return ok
}

// trailer takes what buf has of the present trailer line.
func (d *ChunkDecoder) trailer(buf []byte) (int, fault) {
	n := 0
	for n < len(buf) && buf[n] != '\n' {
		n++
	}
	complete := n < len(buf)
	if complete {
		n++
	}
	if d.lineRead += n; d.lineRead > trailerBytes {
		return 0, trailersTooLarge
	}
	// The usual end, an empty line in one piece, needs no memory.
	if complete && len(d.trailers) == d.kept && string(buf[:n]) == "\r\n" {
		d.state = chunkDone
		return n, ok
	}
	d.trailers = append(d.trailers, buf[:n]...)
	if !complete {
		return n, ok
	}
	line := d.trailers[d.kept:]
	if string(line) == "\r\n" {
		d.trailers = d.trailers[:d.kept]
		d.state = chunkDone
		return n, ok
	}
	if d.lines++; d.lines > trailerLines {
		return 0, trailersTooLarge
	}
	return n, d.keepTrailer(line)
}

// keepTrailer judges a complete line at the end of trailers, and leaves it there
// in canonical form or removes it.
func (d *ChunkDecoder) keepTrailer(line []byte) fault {
	var field Field
	if _, f := field.scan(line, 0); f != ok {
		return f
	}
	name, value := int(field.nameLen), int(field.valLen)
	if field.Drop || guarded(line[:name]) {
		d.trailers = d.trailers[:d.kept]
		return ok
	}
	// "Name:value" grows by one byte; all other lines stay or shrink.
	d.trailers = append(d.trailers, 0)
	line = d.trailers[d.kept:]
	copy(line[name+2:], line[field.valOff:field.valOff+field.valLen])
	line[name], line[name+1] = ':', ' '
	end := name + 2 + value
	line[end], line[end+1] = '\r', '\n'
	d.kept += end + 2
	d.trailers = d.trailers[:d.kept]
	return ok
}

// AppendChunkHeader appends the size line of a chunk of n bytes. The data and
// "\r\n" follow it; n must not be 0, that would end the body.
func AppendChunkHeader(dst []byte, n int) []byte {
	dst = strconv.AppendUint(dst, uint64(n), 16)
	return append(dst, "\r\n"...)
}

// AppendLastChunk appends the end of a chunked body with trailers as
// ChunkDecoder.Trailers returns them.
func AppendLastChunk(dst, trailers []byte) []byte {
	dst = append(dst, "0\r\n"...)
	dst = append(dst, trailers...)
	return append(dst, "\r\n"...)
}
