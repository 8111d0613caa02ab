package hpack

import "encoding/binary"

const (
	// defaultTable is the size of the dynamic table when no setting says another
	// (RFC 9113 §6.5.2).
	defaultTable = 4096
	// entryOverhead is added to the bytes of each entry (§4.1).
	entryOverhead = 32
)

// entry is where a name and, behind it, a value stand in table.buf.
type entry struct{ off, nameLen, valLen uint32 }

func (e entry) size() uint32 { return e.nameLen + e.valLen + entryOverhead }

// table is a dynamic table (§2.3.2): first in, first out. Strings are appended to
// buf and stay in one piece; when its end is reached, what lives moves to the
// front. That is the price of one copy per table of insertions, for slices that
// never wrap.
type table struct {
	buf     []byte
	entries []entry // the oldest first
	first   int     // the entries before it are evicted
	size    uint32  // sum of size() of the others
	max     uint32
}

func (t *table) len() int { return len(t.entries) - t.first }

// at returns the entry of a given age; the newest has age 0.
func (t *table) at(age int) (name, value []byte) {
	e := t.entries[len(t.entries)-1-age]
	mid := e.off + e.nameLen
	end := mid + e.valLen
	return t.buf[e.off:mid:mid], t.buf[mid:end:end]
}

// resize sets the maximum and evicts what is over it (§4.3).
func (t *table) resize(most uint32) {
	t.max = most
	t.evict(0)
}

// evict removes the oldest entries until there is room for size more.
func (t *table) evict(size uint32) {
	for t.first < len(t.entries) && uint64(t.size)+uint64(size) > uint64(t.max) {
		t.size -= t.entries[t.first].size()
		t.first++
	}
	if t.first == len(t.entries) {
		t.buf, t.entries, t.first = t.buf[:0], t.entries[:0], 0
	}
}

// insert adds an entry, or empties the table when the entry is larger (§4.4), and
// tells which. Neither name nor value may be a part of buf.
func (t *table) insert(name, value []byte) bool {
	need := uint64(len(name)) + uint64(len(value)) + entryOverhead
	if need > uint64(t.max) {
		t.evict(t.max)
		return false
	}
	t.evict(uint32(need))
	t.makeRoom(len(name) + len(value))
	t.entries = append(t.entries, entry{uint32(len(t.buf)), uint32(len(name)), uint32(len(value))})
	t.buf = append(append(t.buf, name...), value...)
	t.size += uint32(need)
	return true
}

// makeRoom sees to it that one entry with n bytes can be appended. Memory grows
// to at most twice of what lives; the half that is free pays for the move.
func (t *table) makeRoom(n int) {
	if len(t.buf)+n > cap(t.buf) {
		from := 0
		if t.first < len(t.entries) {
			from = int(t.entries[t.first].off)
		}
		live := t.buf[from:]
		to := t.buf[:0]
		if room := 2 * (len(live) + n); room > cap(t.buf) {
			to = make([]byte, 0, max(room, 512))
		}
		t.buf = append(to, live...)
		for i := t.first; i < len(t.entries); i++ {
			t.entries[i].off -= uint32(from)
		}
	}
	if len(t.entries) == cap(t.entries) {
		live := t.entries[t.first:]
		to := t.entries[:0]
		if room := 2 * (len(live) + 1); room > cap(t.entries) {
			to = make([]entry, 0, max(room, 16))
		}
		t.entries = append(to, live...)
		t.first = 0
	}
}

// hash mixes b into h. It is for tables that compare what they find.
func hash(h uint32, b []byte) uint32 {
	const k = 0x9e3779b97f4a7c15
	x := uint64(h) ^ uint64(len(b))
	for len(b) >= 8 {
		x = (x ^ binary.LittleEndian.Uint64(b)) * k
		x ^= x >> 32
		b = b[8:]
	}
	var tail uint64
	for i, c := range b {
		tail |= uint64(c) << (8 * i)
	}
	x = (x ^ tail) * k
	return uint32(x ^ x>>32)
}
