package http1

import "bytes"

// Limits bounds one head. The zero value is good for a proxy.
type Limits struct {
	HeadBytes   int // start line, fields and the empty line; 0: 16 KiB
	Fields      int // field lines; 0: 100, at most 65535
	TargetBytes int // request target; 0: 8 KiB
}

const (
	defaultHeadBytes   = 16 << 10
	defaultFields      = 100
	defaultTargetBytes = 8 << 10
	mostFields         = 1<<16 - 1 // Head.first counts in 16 bits
)

// filled returns the limits with the defaults in place of zeros; l may be nil.
func (l *Limits) filled() Limits {
	var f Limits
	if l != nil {
		f = *l
	}
	if f.HeadBytes <= 0 {
		f.HeadBytes = defaultHeadBytes
	}
	if f.Fields <= 0 {
		f.Fields = defaultFields
	}
	f.Fields = min(f.Fields, mostFields)
	if f.TargetBytes <= 0 {
		f.TargetBytes = defaultTargetBytes
	}
	return f
}

// Field is one field line: where its name and value stand in the buffer, which
// well-known field it is, and whether it stays behind. The value has no
// whitespace around it.
type Field struct {
	nameOff uint32
	valOff  uint32
	valLen  uint32
	nameLen uint16
	ID      FieldID
	// Drop keeps the field out of AppendFields. Parse sets it on what must not be
	// forwarded; the caller may set and clear it.
	Drop bool
}

// Head is the field section of a message, in the order and with the bytes of the
// wire. It points into the buffer that Parse was given, or into its own memory when
// it is built by Reset and Add.
type Head struct {
	Fields []Field

	buf     []byte           // the head alone; its end is the end of the empty line
	first   [fieldIDs]uint16 // index+1 of the first field with an ID; 0: none
	seen    uint32           // bit per ID
	repeats uint32           // bit per ID that stands on more than one line

	// scanned is how long the head was when it was last found incomplete, else 0.
	// It is a hint that waiting checks against the bytes, so a Head that moves to
	// another connection need not be reset.
	scanned int

	own   []byte // memory of built heads
	built bool   // buf is own
}

// Name returns the name of field i as it was written.
func (h *Head) Name(i int) []byte {
	f := &h.Fields[i]
	return h.buf[f.nameOff : f.nameOff+uint32(f.nameLen)]
}

// Value returns the value of field i without the whitespace around it.
func (h *Head) Value(i int) []byte {
	f := &h.Fields[i]
	return h.buf[f.valOff : f.valOff+f.valLen]
}

// Find returns the index of the first field with a well-known name, or -1. Names
// that share an ID (FieldOther, FieldXWeft) are better asked for by Lookup.
func (h *Head) Find(id FieldID) int { return int(h.first[id]) - 1 }

// Lookup finds a field by name, whatever its case: the value of the first such
// line, and the number of such lines (0: no such field).
func (h *Head) Lookup(name string) (value []byte, n int) {
	for i := range h.Fields {
		if int(h.Fields[i].nameLen) != len(name) || !equalFold(h.Name(i), name) {
			continue
		}
		if n == 0 {
			value = h.Value(i)
		}
		n++
	}
	return value, n
}

// has tells whether a field with one of the IDs in mask was seen.
func (h *Head) has(mask uint32) bool { return h.seen&mask != 0 }

// reset empties the head and keeps the memory. The buffer is the one that is
// about to be parsed.
func (h *Head) reset(buf []byte) {
	h.Fields = h.Fields[:0]
	h.buf, h.built = buf, false
	h.first = [fieldIDs]uint16{}
	h.seen, h.repeats = 0, 0
}

// waiting tells cheaply that buf still holds no complete head and no new line
// since the last call, so that a head that arrives in many small reads costs one
// vectorised search per read instead of a parse: a parse happens once per line.
func (h *Head) waiting(buf []byte, lim *Limits) bool {
	// The first bytes are parsed each time: what cannot be a request fails at once.
	const always = 2*mostEmptyLines + methodBytes
	if h.scanned <= always || len(buf) < h.scanned || len(buf) >= lim.HeadBytes {
		return false
	}
	if bytes.IndexByte(buf[h.scanned:], '\n') >= 0 {
		return false
	}
	if len(buf) > lim.TargetBytes && bytes.IndexByte(buf, '\n') < 0 {
		return false // the target may be over its limit
	}
	return !bytes.Contains(buf[:h.scanned], emptyLine)
}

var emptyLine = []byte("\r\n\r\n")

// verdict turns a fault at buf[p] into the answer of a parse. buf is what was
// read of the head, at most limit bytes.
func (h *Head) verdict(buf []byte, p int, f fault, limit int) fault {
	switch f {
	case notHTTP, methodTooLong, targetTooLong:
		h.scanned = 0
		return f // whatever follows
	case incomplete:
	default:
		if bytes.IndexByte(buf[p:], '\n') >= 0 {
			h.scanned = 0
			return f
		}
		// The line at fault is not complete: it is judged when it is.
	}
	if len(buf) >= limit {
		h.scanned = 0
		return headTooLarge
	}
	h.scanned = len(buf)
	return incomplete
}

// parseFields reads field lines from buf[p:] up to and including the empty line.
// It returns the offset behind it, or the offset of the fault.
func (h *Head) parseFields(buf []byte, p, most int) (int, fault) {
	for {
		if p >= len(buf) {
			return p, incomplete
		}
		if buf[p] == '\r' {
			if p+1 >= len(buf) {
				return p, incomplete
			}
			if buf[p+1] != '\n' {
				return p, bareCR
			}
			h.buf = buf[:p+2]
			return p + 2, ok
		}
		if len(h.Fields) >= most {
			return p, tooManyFields
		}
		n := len(h.Fields)
		if n < cap(h.Fields) {
			h.Fields = h.Fields[:n+1]
		} else {
			h.Fields = append(h.Fields, Field{})
		}
		next, f := h.Fields[n].scan(buf, p)
		if f != ok {
			if f == obsFold && n == 0 {
				f = leadingSpace
			}
			return next, f
		}
		h.note(n)
		p = next
	}
}

// note enters field i into the table of Find. Fields are entered in their order.
func (h *Head) note(i int) {
	id := h.Fields[i].ID
	bit := uint32(1) << id
	h.repeats |= h.seen & bit
	if h.seen&bit == 0 {
		h.seen |= bit
		h.first[id] = uint16(i + 1)
	}
}

// scan reads the field line at buf[p:] into f. It returns the offset of the next
// line, or of the fault. (Filled in place: returning a Field costs more than the
// rest of a short line.)
func (f *Field) scan(buf []byte, p int) (int, fault) {
	start := p
	var class uint8
	for p < len(buf) {
		c := tokenClass[buf[p]]
		if c == 0 {
			break
		}
		class |= c
		p++
	}
	if p >= len(buf) {
		return start, incomplete
	}
	if buf[p] != ':' || p == start {
		return p, nameFault(buf, start, p)
	}
	name := buf[start:p]
	p++
	for p < len(buf) && (buf[p] == ' ' || buf[p] == '\t') {
		p++
	}
	val := p
	p = skipText(buf, p)
	if p >= len(buf) {
		return start, incomplete
	}
	if buf[p] != '\r' {
		return p, textFault(buf[p])
	}
	if p+1 >= len(buf) {
		return start, incomplete
	}
	if buf[p+1] != '\n' {
		return p, bareCR
	}
	end := p
	for end > val && (buf[end-1] == ' ' || buf[end-1] == '\t') {
		end--
	}
	if len(name) > 1<<16-1 {
		return start, headTooLarge
	}
	f.nameOff, f.nameLen = uint32(start), uint16(len(name))
	f.valOff, f.valLen = uint32(val), uint32(end-val)
	f.ID, f.Drop = identify(name, class)
	return p + 2, ok
}

// nameFault says what is wrong with a field name that began at start and broke
// off at buf[p].
func nameFault(buf []byte, start, p int) fault {
	switch c := buf[p]; {
	case (c == ' ' || c == '\t') && p == start:
		return obsFold
	case c == ' ' || c == '\t':
		for p < len(buf) && (buf[p] == ' ' || buf[p] == '\t') {
			p++
		}
		if p < len(buf) && buf[p] == ':' {
			return spaceBeforeColon
		}
		return badName
	case c == ':':
		return emptyName
	case c == '\n':
		return bareLF
	case c == '\r' && p+1 < len(buf) && buf[p+1] == '\n':
		return noColon
	case c == '\r':
		return bareCR
	}
	return badName
}

// textFault says what is wrong with a byte where skipText stopped, CR excepted.
func textFault(c byte) fault {
	if c == '\n' {
		return bareLF
	}
	return controlByte
}
