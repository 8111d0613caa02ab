package hpack

// mostEntries is how many entries a table of defaultTable bytes can have.
const mostEntries = defaultTable / entryOverhead

// Encoder writes the header blocks of one connection. The zero value is ready. It
// never uses a table of more than 4096 bytes.
type Encoder struct {
	table table
	index *index // made with the first field that may repeat
	lower []byte // the present name in lower case
	begun bool

	// update says that the next block begins with table size updates: to least,
	// and to table.max when that is another (§4.2).
	update bool
	least  uint32
}

// index finds the fields of a table by their hash. Entries with one hash form a
// chain from the newest to the oldest, so nothing has to be removed when the oldest
// is evicted: a chain ends where the table ends.
type index struct {
	inserted uint32 // serial number of the newest entry; the first has 1
	fields   [64]uint32
	names    [64]uint32
	links    [mostEntries]link // by serial number, modulo

	// seen holds hashes of fields that were written as literals, by their low bits.
	seen [128]uint32
}

// link is what an index knows of an entry.
type link struct {
	field, name uint32 // hashes
	// olderField and olderName tell how much older the next entry of the chain is;
	// what is farther than the table is long counts as 255.
	olderField, olderName uint8
}

func (e *Encoder) begin() {
	if !e.begun {
		e.begun = true
		e.table.max = defaultTable
	}
}

// SetMaxTable tells the Encoder what the peer announced as
// SETTINGS_HEADER_TABLE_SIZE. The next block says which size is used.
func (e *Encoder) SetMaxTable(n uint32) {
	e.begin()
	if n == e.table.max {
		return
	}
	// A size over 4096 is not used, and said so: a peer may take its own setting
	// for the size of the table until it is told another.
	n = min(n, defaultTable)
	if !e.update || n < e.least {
		e.update, e.least = true, n
	}
	e.table.resize(n)
}

// Begin begins a header block: it appends the table size updates that are due.
func (e *Encoder) Begin(dst []byte) []byte {
	e.begin()
	if !e.update {
		return dst
	}
	e.update = false
	if e.least < e.table.max {
		dst = appendInt(dst, 0x20, 5, e.least)
	}
	return appendInt(dst, 0x20, 5, e.table.max)
}

// AppendStatus appends the field :status. code has three digits.
func (e *Encoder) AppendStatus(dst []byte, code int) []byte {
	switch code {
	case 200:
		return append(dst, 0x80|statusIndex)
	case 204:
		return append(dst, 0x80|statusIndex+1)
	case 206:
		return append(dst, 0x80|statusIndex+2)
	case 304:
		return append(dst, 0x80|statusIndex+3)
	}
	digits := [3]byte{'0' + byte(code/100%10), '0' + byte(code/10%10), '0' + byte(code%10)}
	return e.append(dst, staticBytes[statusIndex].name, digits[:], false)
}

// Append appends a field. The name is written in lower case. Neither name nor
// value is kept.
func (e *Encoder) Append(dst, name, value []byte) []byte {
	return e.append(dst, name, value, false)
}

// AppendSensitive appends a field that came as one that must never be indexed: no
// hop behind may index it either (§6.2.3, §7.1).
func (e *Encoder) AppendSensitive(dst, name, value []byte) []byte {
	return e.append(dst, name, value, true)
}

func (e *Encoder) append(dst, name, value []byte, sensitive bool) []byte {
	e.begin()
	name = e.lowered(name)
	nameHash := hash(0, name)
	known := lookupName(nameHash, name)
	nameIndex := uint32(known.index)
	if sensitive || known.treatment == secret {
		return appendLiteral(dst, 0x10, 4, nameIndex, name, value)
	}
	for i := nameIndex; i > 0 && i <= statics && staticTable[i].name == known.name; i++ {
		if staticTable[i].value == string(value) {
			return appendInt(dst, 0x80, 7, i)
		}
	}
	size := len(name) + len(value) + entryOverhead
	// An entry of more than half of the table would push out what repeats too.
	if known.treatment == ofMessage || size > int(e.table.max)/2 {
		return appendLiteral(dst, 0x00, 4, nameIndex, name, value)
	}
	if e.index == nil {
		e.index = new(index)
	}
	x := e.index
	fieldHash := hash(nameHash, value)
	if age := e.findField(fieldHash, name, value); age >= 0 {
		return appendInt(dst, 0x80, 7, statics+1+uint32(age))
	}
	if nameIndex == 0 {
		if age := e.findName(nameHash, name); age >= 0 {
			nameIndex = statics + 1 + uint32(age)
		}
	}
	if seen := &x.seen[fieldHash%uint32(len(x.seen))]; *seen != fieldHash {
		*seen = fieldHash
		return appendLiteral(dst, 0x00, 4, nameIndex, name, value)
	}
	e.insert(nameHash, fieldHash, name, value)
	return appendIndexed(dst, nameIndex, name, value)
}

// lowered returns the name in lower case, valid until the next call.
func (e *Encoder) lowered(name []byte) []byte {
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			e.lower = append(e.lower[:0], name...)
			for j := i; j < len(name); j++ {
				if c := name[j]; 'A' <= c && c <= 'Z' {
					e.lower[j] = c + 'a' - 'A'
				}
			}
			return e.lower
		}
	}
	return name
}

// findField returns the age of a field in the dynamic table, or -1.
func (e *Encoder) findField(h uint32, name, value []byte) int {
	x := e.index
	age := x.inserted - x.fields[h%uint32(len(x.fields))]
	for age < uint32(e.table.len()) {
		l := &x.links[(x.inserted-age)%mostEntries]
		if l.field == h {
			if n, v := e.table.at(int(age)); string(n) == string(name) && string(v) == string(value) {
				return int(age)
			}
		}
		age += uint32(l.olderField)
	}
	return -1
}

// findName returns the age of the newest field with a name, or -1.
func (e *Encoder) findName(h uint32, name []byte) int {
	x := e.index
	age := x.inserted - x.names[h%uint32(len(x.names))]
	for age < uint32(e.table.len()) {
		l := &x.links[(x.inserted-age)%mostEntries]
		if l.name == h {
			if n, _ := e.table.at(int(age)); string(n) == string(name) {
				return int(age)
			}
		}
		age += uint32(l.olderName)
	}
	return -1
}

// insert adds a field that the table has room for.
func (e *Encoder) insert(nameHash, fieldHash uint32, name, value []byte) {
	e.table.insert(name, value)
	x := e.index
	x.inserted++
	field := &x.fields[fieldHash%uint32(len(x.fields))]
	byName := &x.names[nameHash%uint32(len(x.names))]
	x.links[x.inserted%mostEntries] = link{
		field: fieldHash, olderField: uint8(min(x.inserted-*field, 255)),
		name: nameHash, olderName: uint8(min(x.inserted-*byName, 255)),
	}
	*field, *byName = x.inserted, x.inserted
}

// appendLiteral appends a plain literal that is not put into the table: kind is
// 0x00 or 0x10, with an index of the given number of bits.
func appendLiteral(dst []byte, kind byte, bits uint8, nameIndex uint32, name, value []byte) []byte {
	dst = appendInt(dst, kind, bits, nameIndex)
	if nameIndex == 0 {
		dst = appendPlain(dst, name)
	}
	return appendPlain(dst, value)
}

// appendIndexed appends a literal that the peer puts into its table.
func appendIndexed(dst []byte, nameIndex uint32, name, value []byte) []byte {
	dst = appendInt(dst, 0x40, 6, nameIndex)
	if nameIndex == 0 {
		dst = appendText(dst, name)
	}
	return appendText(dst, value)
}

func appendPlain(dst, s []byte) []byte {
	dst = appendInt(dst, 0x00, 7, uint32(len(s)))
	return append(dst, s...)
}

// appendText appends a string in the shorter of its two forms.
func appendText(dst, s []byte) []byte {
	n := huffmanLen(s)
	if n >= len(s) {
		return appendPlain(dst, s)
	}
	dst = appendInt(dst, 0x80, 7, uint32(n))
	return appendHuffman(dst, s)
}

// appendInt appends a number behind the bits of kind (§5.1).
func appendInt(dst []byte, kind byte, bits uint8, n uint32) []byte {
	most := uint32(1)<<bits - 1
	if n < most {
		return append(dst, kind|byte(n))
	}
	dst = append(dst, kind|byte(most))
	n -= most
	for n >= 0x80 {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}
