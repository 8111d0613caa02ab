package registry

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// keyDraft is what a draft knows of keys. Its trees begin as the view's.
type keyDraft struct {
	keyspace
	edition *edition
	touched []treeRef // keys that may differ from the view's
	ending  []string  // sessions that have to end and had no room here
	ended   int       // bytes that the ends of sessions added
	now     int64     // Unix milliseconds
}

func newKeyDraft(k *keyspace, now int64) keyDraft {
	return keyDraft{keyspace: k.fork(), edition: new(edition), now: now}
}

// fork returns a keyspace that can be changed without k.
func (k *keyspace) fork() keyspace { return keyspace{trees: maps.Clone(k.trees), locks: k.locks} }

// keyOverhead is what the store's transaction needs for a key besides the key and
// its value, about: directories, grave and head.
const keyOverhead = 192

// set makes a key have these contents, unless it has them. It returns the entry,
// whose ModifyIndex is 0 when this draft changes it.
func (d *draft) set(r treeRef, e Entry) *Entry {
	old := d.keys.leaf(r)
	l := &leaf{key: r.key, entry: &e}
	e.Key, e.CreateIndex, e.ModifyIndex = r.key, 0, 0
	if old != nil {
		l.delay = d.stillDelayed(old)
		if o := old.entry; o != nil {
			if o.Flags == e.Flags && o.LockIndex == e.LockIndex && o.Session == e.Session && string(o.Value) == string(e.Value) {
				return o
			}
			e.CreateIndex = o.CreateIndex
		}
	}
	d.putLeaf(r.tree, l)
	return &e
}

func (d *draft) putLeaf(tree string, l *leaf) {
	d.keys.put(d.keys.edition, tree, l)
	d.keys.touched = append(d.keys.touched, treeRef{tree, l.key})
	d.size += 2*len(l.key) + keyOverhead
	if l.entry != nil {
		d.size += len(l.entry.Value)
	}
}

// stillDelayed is the time until which a key cannot be locked, 0 when it has come.
func (d *draft) stillDelayed(l *leaf) int64 {
	if l == nil || l.delay <= d.keys.now {
		return 0
	}
	return l.delay
}

// unset deletes a key that may be there.
func (d *draft) unset(r treeRef) {
	if l := d.keys.leaf(r); l != nil && l.entry != nil {
		d.putLeaf(r.tree, &leaf{key: r.key, delay: d.stillDelayed(l)})
	}
}

// release gives a lock back, at the end of its session.
func (d *draft) release(r treeRef, until int64, gone bool) {
	l := &leaf{key: r.key, delay: max(until, d.stillDelayed(d.keys.leaf(r)))}
	if !gone {
		e := *d.keys.entry(r)
		e.Session, e.ModifyIndex = "", 0
		l.entry = &e
	}
	d.putLeaf(r.tree, l)
}

// keyTxn adds what the keys of the draft mean for the store.
func (d *draft) keyTxn(t *store.Txn) {
	seen := make(map[treeRef]bool, len(d.keys.touched))
	trees := make(map[string]bool)
	for _, r := range d.keys.touched {
		if seen[r] {
			continue
		}
		seen[r] = true
		trees[r.tree] = true
		before, after := d.view.keys.leaf(r), d.keys.leaf(r)
		wasThere := before != nil && before.entry != nil
		switch {
		case before == after:
		case after.entry != nil:
			t.Put = append(t.Put, store.KV{Key: treePath(kvDir, r), Value: encodeEntry(after)})
			if before != nil && !wasThere {
				t.Delete = append(t.Delete, treePath(graveDir, r))
			}
		case wasThere:
			t.Delete = append(t.Delete, treePath(kvDir, r))
			grave := store.KV{Key: treePath(graveDir, r)}
			if after.delay != 0 {
				grave.Value = encodeHead(entryHead{Delay: after.delay})
			}
			t.Put = append(t.Put, grave)
		}
	}
	for name := range trees {
		if top := d.keys.trees[name].top; top != nil && top.dead > maxGraves {
			d.collapse(name, top.dead-maxGraves+maxGraves/8, t)
		}
	}
}

// collapse forgets n graves and floors of a tree in favour of the floors of the
// directories above them: the deepest first, as those say most about what they
// stand for, and of these the oldest.
func (d *draft) collapse(name string, n int, t *store.Txn) {
	before := d.view.keys.trees[name]
	if before.top == nil {
		return
	}
	old := before.top.graves("", nil)
	old = slices.DeleteFunc(old, func(g grave) bool {
		if g.floor {
			return g.at == "" // there is nothing above
		}
		return d.keys.leaf(treeRef{name, g.at}) != g.leaf
	})
	slices.SortFunc(old, func(a, b grave) int {
		return cmp.Or(cmp.Compare(depth(b.at), depth(a.at)), cmp.Compare(a.index, b.index))
	})
	old = old[:min(n, len(old))]
	floors := make(map[string]uint64)
	for _, g := range old {
		dir := directory(g.at)
		if b, _ := before.at(dir); b != nil {
			floors[dir] = max(floors[dir], b.floor)
		}
		floors[dir] = max(floors[dir], g.index)
	}
	for _, g := range old {
		if !g.floor {
			t.Delete = append(t.Delete, treePath(graveDir, treeRef{name, g.at}))
		} else if _, put := floors[g.at]; !put {
			t.Delete = append(t.Delete, treePath(floorDir, treeRef{name, g.at}))
		}
	}
	for dir, index := range floors {
		t.Put = append(t.Put, store.KV{
			Key: treePath(floorDir, treeRef{name, dir}), Value: strconv.AppendUint(nil, index, 10),
		})
	}
}

// directory is what stands before a key, or above a directory, with a "/" at its
// end; "" is above all.
func directory(key string) string {
	return key[:strings.LastIndexByte(strings.TrimSuffix(key, "/"), '/')+1]
}

// depth is in how many directories a key or directory is.
func depth(key string) int { return strings.Count(directory(key), "/") }

// mark is a state of a draft to which it can go back.
type mark struct {
	keys      keyDraft
	size      int
	instances map[weft.InstanceKey]*weft.Instance // nil: they are not changed
	nodes     map[string]*weft.Node
	owners    map[checkKey]checkOwner
	records   map[string][]byte
	prepared  map[string]*weft.Instance
}

// mark remembers the draft, with its instances and nodes when all is set.
func (d *draft) mark(all bool) mark {
	m := mark{keys: d.keys, size: d.size}
	m.keys.keyspace = d.keys.fork()
	d.keys.edition = new(edition) // what the mark has must not be changed any more
	if all {
		m.instances, m.nodes, m.owners = maps.Clone(d.instances), maps.Clone(d.nodes), maps.Clone(d.owners)
		m.records, m.prepared = maps.Clone(d.records), maps.Clone(d.prepared)
	}
	return m
}

func (d *draft) back(m mark) {
	m.keys.edition = new(edition)
	d.keys, d.size = m.keys, m.size
	if m.instances != nil {
		d.instances, d.nodes, d.owners, d.records, d.prepared = m.instances, m.nodes, m.owners, m.records, m.prepared
	}
}
