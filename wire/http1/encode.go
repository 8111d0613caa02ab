package http1

import "strconv"

// AppendFields appends every field that is not marked Drop as "Name: value\r\n",
// in the order, case and bytes as they came.
func (h *Head) AppendFields(dst []byte) []byte {
	// Lines that already look like that are copied in runs.
	var from, to uint32 // the run that is not copied yet
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.Drop {
			continue
		}
		end := f.valOff + f.valLen
		canonical := f.valOff == f.nameOff+uint32(f.nameLen)+2 && h.buf[f.valOff-1] == ' ' &&
			h.buf[end] == '\r'
		if canonical && f.nameOff == to {
			to = end + 2
			continue
		}
		dst = append(dst, h.buf[from:to]...)
		from, to = 0, 0
		if canonical {
			from, to = f.nameOff, end+2
			continue
		}
		dst = append(dst, h.Name(i)...)
		dst = append(dst, ": "...)
		dst = append(dst, h.Value(i)...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, h.buf[from:to]...)
}

// AppendRequestLine appends "METHOD target HTTP/1.1\r\n".
func AppendRequestLine(dst, method, target []byte) []byte {
	dst = append(dst, method...)
	dst = append(dst, ' ')
	dst = append(dst, target...)
	return append(dst, " HTTP/1.1\r\n"...)
}

// AppendStatusLine appends "HTTP/1.1 status reason\r\n". Without a reason it
// writes the usual one.
func AppendStatusLine(dst []byte, status int, reason []byte) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if len(reason) > 0 {
		dst = append(dst, reason...)
	} else {
		dst = append(dst, StatusText(status)...)
	}
	return append(dst, "\r\n"...)
}

// AppendFraming appends the field that announces the framing: Content-Length,
// Transfer-Encoding, or nothing.
func AppendFraming(dst []byte, f Framing, length int64) []byte {
	switch f {
	case FixedLength:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, length, 10)
		dst = append(dst, "\r\n"...)
	case Chunked:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	return dst
}
