package weft

import (
	"slices"
	"strings"
)

// routeIndex finds the first rule of a table that fits without looking at those
// that ask for other paths. It holds positions in the table's Rules and no copies.
//
// The exact paths and the prefixes that rules ask for stand in one sorted list.
// Every prefix of a path sorts before the path, and whatever stands between the two
// begins with that prefix, too: so the prefixes of a path are the entry before it in
// the list and that entry's parents, as far as they are not longer than what the
// entry has in common with the path.
type routeIndex struct {
	paths  []indexedPath // sorted by path
	blocks []blockRef    // of all paths
	rest   []blockRef    // those that ask for no path, or by regex, or without case
}

// indexedPath is a path that rules ask for. Its blocks are blocks[from:prefix] for
// the whole path, and blocks[prefix:to] for what begins with it, each in order.
type indexedPath struct {
	path             string
	parent           int32 // the longest other entry with which it begins; -1 is none
	from, prefix, to int32
}

// blockRef is a block of a rule's Matches; -1 stands for a rule without any, which
// fits everything.
type blockRef struct{ rule, block int32 }

// indexedBlocks is from how many blocks on a table is indexed: fewer are looked
// through faster.
const indexedBlocks = 12

// newRouteIndex returns nil for a table that needs none.
func newRouteIndex(rules []Rule) *routeIndex {
	n := 0
	for i := range rules {
		n += max(len(rules[i].Matches), 1)
	}
	if n < indexedBlocks {
		return nil
	}
	type wanted struct {
		path   string
		prefix bool
		ref    blockRef
	}
	x := new(routeIndex)
	all := make([]wanted, 0, n)
	for i := range rules {
		if len(rules[i].Matches) == 0 {
			x.rest = append(x.rest, blockRef{int32(i), -1})
		}
		for k := range rules[i].Matches {
			ref := blockRef{int32(i), int32(k)}
			if m := rules[i].Matches[k].Path; m != nil && !m.IgnoreCase && (m.Kind == MatchExact || m.Kind == MatchPrefix) {
				all = append(all, wanted{m.Value, m.Kind == MatchPrefix, ref})
			} else {
				x.rest = append(x.rest, ref)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b wanted) int {
		if c := strings.Compare(a.path, b.path); c != 0 || a.prefix == b.prefix {
			return c
		}
		if a.prefix {
			return 1
		}
		return -1
	})
	x.blocks = make([]blockRef, 0, len(all))
	for _, w := range all {
		if last := len(x.paths) - 1; last < 0 || x.paths[last].path != w.path {
			at := int32(len(x.blocks))
			x.paths = append(x.paths, indexedPath{path: w.path, parent: x.parentOf(w.path), from: at, prefix: at, to: at})
		}
		p := &x.paths[len(x.paths)-1]
		x.blocks = append(x.blocks, w.ref)
		p.to++
		if !w.prefix {
			p.prefix++
		}
	}
	x.paths, x.rest = slices.Clip(x.paths), slices.Clip(x.rest)
	return x
}

// parentOf finds the longest entry so far with which path begins: the last entry, or
// one of its parents.
func (x *routeIndex) parentOf(path string) int32 {
	for at := int32(len(x.paths) - 1); at >= 0; at = x.paths[at].parent {
		if strings.HasPrefix(path, x.paths[at].path) {
			return at
		}
	}
	return -1
}

// match returns the position of the first rule that fits, or -1.
func (x *routeIndex) match(rules []Rule, r *Request) int {
	best := int32(len(rules))
	at := x.before(r.Path)
	if at >= 0 && x.paths[at].path == r.Path {
		p := &x.paths[at]
		best = firstOf(rules, x.blocks[p.from:p.prefix], r, best)
	}
	if at >= 0 {
		common := commonPrefix(x.paths[at].path, r.Path)
		for ; at >= 0; at = int(x.paths[at].parent) {
			if p := &x.paths[at]; len(p.path) <= common {
				best = firstOf(rules, x.blocks[p.prefix:p.to], r, best)
			}
		}
	}
	best = firstOf(rules, x.rest, r, best)
	if int(best) == len(rules) {
		return -1
	}
	return int(best)
}

// before is the last entry that does not sort after path, or -1.
func (x *routeIndex) before(path string) int {
	low, high := 0, len(x.paths)
	for low < high {
		if middle := int(uint(low+high) >> 1); x.paths[middle].path <= path {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low - 1
}

// firstOf is the rule of the first block that fits, if it is before best.
func firstOf(rules []Rule, blocks []blockRef, r *Request, best int32) int32 {
	for _, b := range blocks {
		if b.rule >= best {
			break
		}
		if b.block < 0 || rules[b.rule].Matches[b.block].Matches(r) {
			return b.rule
		}
	}
	return best
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
