package registry

import (
	"slices"
	"strings"
)

// tree is a sorted map of keys in memory, a radix tree. What was changed stays
// where it was: an edit copies the way to it, so a reader may go on with the tree
// that it has, and a draft begins with the view's. Each branch knows the greatest
// index below it, so the index of a prefix costs no more than the way to it.
//
// Deleted keys leave graves, which keep their index. Old graves are collapsed into
// floors: a floor at "a/b/" says that anything below may have changed as late as
// that, which is the price of forgetting what it was.
type tree struct {
	top *branch // nil when empty
}

// leaf is one key. It is immutable.
type leaf struct {
	key     string
	index   uint64   // of the last change; 0 in a draft, as it is not known yet
	entry   *Entry   // nil in a grave
	session *Session // what the entry says, in the tree of sessions
	delay   int64    // Unix milliseconds until which the key cannot be locked; 0 is never
}

// branch is a piece of the way that some keys share.
type branch struct {
	way    string // from the branch above
	leaf   *leaf  // whose key ends here
	floor  uint64
	below  []*branch // sorted by the first byte of their ways, which differ
	newest uint64    // the greatest index and floor, here and below
	live   int       // entries, here and below
	dead   int       // graves and floors, here and below
	made   *edition  // may change it in place; nobody else does
}

// edition is a time in which a tree has one owner: branches that were made in it
// need not be copied again.
type edition struct{ _ byte }

// get returns the leaf of a key, nil when there is none, and the floor above it.
func (t tree) get(key string) (l *leaf, floor uint64) {
	b, floor := t.at(key)
	if b == nil {
		return nil, floor
	}
	return b.leaf, floor
}

// at returns the branch at the end of a way, nil when there is none, and the floor
// above it, its own included.
func (t tree) at(way string) (b *branch, floor uint64) {
	b = t.top
	for b != nil {
		floor = max(floor, b.floor)
		if way == "" {
			return b, floor
		}
		i, found := b.find(way[0])
		if !found || !strings.HasPrefix(way, b.below[i].way) {
			return nil, floor
		}
		b = b.below[i]
		way = way[len(b.way):]
	}
	return nil, floor
}

// under returns the branch below which all keys with the prefix are (some others
// are never there), nil when there are none, and the floor above it.
func (t tree) under(prefix string) (b *branch, floor uint64) {
	b = t.top
	for b != nil && prefix != "" {
		floor = max(floor, b.floor)
		i, found := b.find(prefix[0])
		if !found {
			return nil, floor
		}
		b = b.below[i]
		n := commonPrefix(b.way, prefix)
		if n < len(b.way) && n < len(prefix) {
			return nil, floor
		}
		prefix = prefix[n:]
	}
	return b, floor
}

// newest returns the greatest index of any key with the prefix, graves included.
func (t tree) newest(prefix string) uint64 {
	b, floor := t.under(prefix)
	if b == nil {
		return floor
	}
	return max(floor, b.newest)
}

// entries returns the entries whose keys have the prefix, sorted.
func (t tree) entries(prefix string) []*Entry {
	b, _ := t.under(prefix)
	if b == nil || b.live == 0 {
		return nil
	}
	list := make([]*Entry, 0, b.live)
	b.each(func(l *leaf) { list = append(list, l.entry) })
	return list
}

// each visits the leaves that have an entry, sorted.
func (b *branch) each(visit func(*leaf)) {
	if b.leaf != nil && b.leaf.entry != nil {
		visit(b.leaf)
	}
	for _, c := range b.below {
		if c.live > 0 {
			c.each(visit)
		}
	}
}

// grave is a forgotten key, or a floor.
type grave struct {
	at    string // the key, or the directory of the floor
	index uint64
	floor bool
	leaf  *leaf // nil of a floor
}

// graves appends the graves and floors of the branch whose keys begin with at.
func (b *branch) graves(at string, to []grave) []grave {
	if b.floor != 0 {
		to = append(to, grave{at: at, index: b.floor, floor: true})
	}
	if b.leaf != nil && b.leaf.entry == nil {
		to = append(to, grave{at: at, index: b.leaf.index, leaf: b.leaf})
	}
	for _, c := range b.below {
		if c.dead > 0 {
			to = c.graves(at+c.way, to)
		}
	}
	return to
}

// put adds or replaces a leaf.
func (t *tree) put(e *edition, l *leaf) {
	t.edit(e, l.key, func(b *branch) { b.leaf = l })
}

// remove takes the leaf of a key away.
func (t *tree) remove(e *edition, key string) {
	t.edit(e, key, func(b *branch) { b.leaf = nil })
}

// raise sets the floor of a directory; 0 takes it away.
func (t *tree) raise(e *edition, dir string, floor uint64) {
	t.edit(e, dir, func(b *branch) { b.floor = floor })
}

// edit changes the branch at the end of a way.
func (t *tree) edit(e *edition, way string, change func(*branch)) {
	top := t.top
	if top == nil {
		top = &branch{made: e}
	}
	t.top = top.edit(e, way, change)
	if t.top.empty() {
		t.top = nil
	}
}

func (b *branch) edit(e *edition, way string, change func(*branch)) *branch {
	b = b.own(e)
	if way == "" {
		change(b)
		b.sum()
		return b
	}
	i, found := b.find(way[0])
	if !found {
		c := &branch{way: way, made: e}
		change(c)
		if c.sum(); !c.empty() {
			b.below = slices.Insert(b.below, i, c)
		}
		b.sum()
		return b
	}
	c := b.below[i]
	n := commonPrefix(c.way, way)
	if n < len(c.way) {
		c = c.split(e, n)
	}
	c = c.edit(e, way[n:], change).join(e)
	if c == nil {
		b.below = slices.Delete(b.below, i, i+1)
	} else {
		b.below[i] = c
	}
	b.sum()
	return b
}

// own returns a branch that may be changed.
func (b *branch) own(e *edition) *branch {
	if b.made == e {
		return b
	}
	c := *b
	c.made = e
	c.below = slices.Clone(b.below)
	return &c
}

// split puts a branch above b, for the first n bytes of its way.
func (b *branch) split(e *edition, n int) *branch {
	b = b.own(e)
	above := &branch{way: b.way[:n], made: e, below: []*branch{b}}
	b.way = b.way[n:]
	return above
}

// join returns b, or what may stand in its place: nil, or its only branch.
func (b *branch) join(e *edition) *branch {
	if b.leaf != nil || b.floor != 0 || len(b.below) > 1 {
		return b
	}
	if len(b.below) == 0 {
		return nil
	}
	c := b.below[0].own(e)
	c.way = b.way + c.way
	return c
}

func (b *branch) empty() bool { return b.leaf == nil && b.floor == 0 && len(b.below) == 0 }

// sum counts again what is here and below.
func (b *branch) sum() {
	b.newest, b.live, b.dead = b.floor, 0, 0
	if b.floor != 0 {
		b.dead++
	}
	if b.leaf != nil {
		b.newest = max(b.newest, b.leaf.index)
		if b.leaf.entry != nil {
			b.live++
		} else {
			b.dead++
		}
	}
	for _, c := range b.below {
		b.newest = max(b.newest, c.newest)
		b.live += c.live
		b.dead += c.dead
	}
}

// find returns the place of the branch whose way begins with first.
func (b *branch) find(first byte) (int, bool) {
	low, high := 0, len(b.below)
	for low < high {
		mid := int(uint(low+high) >> 1)
		if b.below[mid].way[0] < first {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < len(b.below) && b.below[low].way[0] == first
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
