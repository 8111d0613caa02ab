package hpack

import "math"

// Error is a header block that cannot be decoded: a connection error of type
// COMPRESSION_ERROR (RFC 9113 §4.3). All Errors are static values of this package.
type Error struct {
	// Reason is a short word for logs and metric labels: "bad_index", …
	Reason string
}

func (e *Error) Error() string { return "hpack: " + e.Reason }

var (
	ErrTruncated  = &Error{"truncated"}    // the block ends inside a field
	ErrInteger    = &Error{"huge_integer"} // a number of more than 32 bits or 5 continuations
	ErrIndex      = &Error{"bad_index"}    // no entry has this index
	ErrHuffman    = &Error{"bad_huffman"}  // EOS, a broken code or wrong padding
	ErrUpdate     = &Error{"bad_update"}   // a table size over what was announced
	ErrLateUpdate = &Error{"late_update"}  // a table size update behind a field
	ErrNoUpdate   = &Error{"needs_update"} // the table was to shrink and the block does not say so
)

// Decoder reads the header blocks of one connection. The zero value is ready, with
// a table of 4096 bytes. After an error it must not be used again.
type Decoder struct {
	table   table
	scratch []byte // literals of the present field that had to be unpacked
	begun   bool
	allowed uint32 // largest table that the peer may choose
	shrink  bool   // the next block must choose one of at most least
	least   uint32
}

// mostScratch is the memory for literals that is kept from block to block.
const mostScratch = 8 << 10

func (d *Decoder) begin() {
	if !d.begun {
		d.begun = true
		d.allowed = defaultTable
		d.table.max = defaultTable
	}
}

// SetMaxTable sets how large the peer's encoder may make the table: what we
// announced as SETTINGS_HEADER_TABLE_SIZE. Call it when the peer has acknowledged
// the setting: from then on it is bound by it, and when the table has to shrink the
// next block must begin by saying so (RFC 9113 §4.3.1).
func (d *Decoder) SetMaxTable(n uint32) {
	d.begin()
	d.allowed = n
	if n < d.table.max && (!d.shrink || n < d.least) {
		d.shrink, d.least = true, n
	}
}

// Decode reads one complete header block and reports its fields in their order.
// name and value are valid until emit returns and must not be changed; sensitive
// fields must be written as such again (Encoder.AppendSensitive). When emit returns
// false it is not called again, and the block is still decoded to its end, so that
// the table stays the one of the peer. A nil emit reports nothing.
//
// The error is nil or an *Error; the fields before the fault were reported.
func (d *Decoder) Decode(block []byte, emit func(name, value []byte, sensitive bool) bool) error {
	d.begin()
	p, err := d.sizeUpdates(block)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		var name, value []byte
		first := p[0]
		d.scratch = d.scratch[:0]
		switch {
		case first&0x80 != 0:
			var index uint32
			if index, p, err = readInt(p, 7); err == nil {
				name, value, err = d.entry(index)
			}
		case first&0x40 != 0:
			if name, value, p, err = d.literal(p, 6); err == nil {
				d.table.insert(name, value)
			}
		case first&0x20 != 0:
			err = ErrLateUpdate
		default:
			name, value, p, err = d.literal(p, 4)
		}
		if err != nil {
			return err
		}
		if emit != nil && !emit(name, value, first&0xf0 == 0x10) {
			emit = nil
		}
	}
	if cap(d.scratch) > mostScratch {
		d.scratch = nil
	}
	return nil
}

// sizeUpdates reads the updates that may stand before the first field (§4.2).
func (d *Decoder) sizeUpdates(p []byte) ([]byte, error) {
	for len(p) > 0 && p[0]&0xe0 == 0x20 {
		n, rest, err := readInt(p, 5)
		switch {
		case err != nil:
			return p, err
		case n > d.allowed, d.shrink && n > d.least:
			return p, ErrUpdate
		}
		d.shrink = false
		d.table.resize(n)
		p = rest
	}
	if d.shrink {
		return p, ErrNoUpdate
	}
	return p, nil
}

// entry returns the field that an index stands for (§2.3.3).
func (d *Decoder) entry(index uint32) (name, value []byte, err error) {
	switch {
	case index == 0:
		return nil, nil, ErrIndex
	case index <= statics:
		f := &staticBytes[index]
		return f.name, f.value, nil
	case index-statics > uint32(d.table.len()):
		return nil, nil, ErrIndex
	}
	name, value = d.table.at(int(index - statics - 1))
	return name, value, nil
}

// literal reads a field of which at least the value is spelled out (§6.2); the
// index of its name has the given number of bits.
func (d *Decoder) literal(p []byte, bits uint8) (name, value, rest []byte, err error) {
	index, p, err := readInt(p, bits)
	switch {
	case err != nil:
		return nil, nil, p, err
	case index == 0:
		name, p, err = d.text(p)
	default:
		name, _, err = d.entry(index)
		if index > statics {
			// Inserting the field may move or evict the entry that lends its name.
			d.scratch = append(d.scratch, name...)
			name = d.scratch[:len(name):len(name)]
		}
	}
	if err != nil {
		return nil, nil, p, err
	}
	value, p, err = d.text(p)
	return name, value, p, err
}

// text reads a string literal (§5.2): a part of p, or of scratch.
func (d *Decoder) text(p []byte) (s, rest []byte, err error) {
	if len(p) == 0 {
		return nil, p, ErrTruncated
	}
	coded := p[0]&0x80 != 0
	n, p, err := readInt(p, 7)
	if err != nil {
		return nil, p, err
	}
	if uint64(n) > uint64(len(p)) {
		return nil, p, ErrTruncated
	}
	s, rest = p[:n:n], p[n:]
	if !coded {
		return s, rest, nil
	}
	from := len(d.scratch)
	var valid bool
	if d.scratch, valid = decodeHuffman(d.scratch, s); !valid {
		return nil, rest, ErrHuffman
	}
	return d.scratch[from:], rest, nil
}

// readInt reads a number with a prefix of the given number of bits (§5.1). p is
// not empty.
func readInt(p []byte, bits uint8) (uint32, []byte, error) {
	mask := byte(1)<<bits - 1
	n := uint64(p[0] & mask)
	p = p[1:]
	if n < uint64(mask) {
		return uint32(n), p, nil
	}
	for shift := 0; shift < 35; shift += 7 {
		if len(p) == 0 {
			return 0, p, ErrTruncated
		}
		c := p[0]
		p = p[1:]
		n += uint64(c&0x7f) << shift
		if n > math.MaxUint32 {
			break
		}
		if c < 0x80 {
			return uint32(n), p, nil
		}
	}
	return 0, p, ErrInteger
}
