package registry

import "strings"

// Entry is one key of a tree. Trees are apart from each other: KV is the users' own,
// which Consul's clients read and write; dialects keep what they have to keep in
// others ("acl/token", "query", "config", …).
type Entry struct {
	Key         string `json:"key"`
	Value       []byte `json:"value,omitempty"`
	Flags       uint64 `json:"flags,omitempty"`     // the client's; nobody here looks at them
	Session     string `json:"session,omitempty"`   // id of the session that holds the key's lock
	LockIndex   uint64 `json:"lockIndex,omitempty"` // how often the key was locked
	CreateIndex uint64 `json:"createIndex,omitempty"`
	ModifyIndex uint64 `json:"modifyIndex,omitempty"`
}

// KV is the name of the users' tree.
const KV = "kv"

const (
	maxKey   = 2 << 10   // bytes of a key
	maxTree  = 128       // bytes of the name of a tree
	maxValue = 512 << 10 // bytes of a value, as in Consul
)

// Key returns an entry, nil when it is not there, with the index of KeyTopic.
func (r *Registry) Key(tree, key string) (e *Entry, index uint64) {
	l, floor := r.treeOf(tree).get(key)
	if l == nil {
		return nil, max(floor, 1)
	}
	if l.entry == nil {
		return nil, max(floor, l.index, 1)
	}
	return l.entry, l.index
}

// Keys returns the entries whose keys begin with prefix, sorted by key, with the
// index of KeysTopic.
func (r *Registry) Keys(tree, prefix string) (list []*Entry, index uint64) {
	t := r.treeOf(tree)
	return t.entries(prefix), max(t.newest(prefix), 1)
}

// treeOf returns a tree as it is now; nobody changes it.
func (r *Registry) treeOf(name string) tree {
	r.view.mu.RLock()
	defer r.view.mu.RUnlock()
	return r.view.keys.trees[name]
}

// KeyTopic changes when the key is put, locked, released or deleted, and with
// nothing else.
func KeyTopic(tree, key string) Topic { return Topic{kind: keyTopic, namespace: tree, name: key} }

// KeysTopic changes with any key that begins with prefix, and with nothing else.
func KeysTopic(tree, prefix string) Topic {
	return Topic{kind: keysTopic, namespace: tree, name: prefix}
}

// everyKeyTopic stands for all of them when everything is loaded again. Who is woken
// by it looks whether the own index moved, and waits on when it did not.
func everyKeyTopic() Topic { return Topic{kind: everyKey} }

// count notes that somebody begins (1) or ends (-1) to wait for a prefix.
func (w *waiters) count(t Topic, n int) {
	if t.kind != keysTopic {
		return
	}
	byLength := w.lengths[t.namespace]
	if byLength == nil {
		if w.lengths == nil {
			w.lengths = make(map[string]map[int]int)
		}
		byLength = make(map[int]int)
		w.lengths[t.namespace] = byLength
	}
	if byLength[len(t.name)] += n; byLength[len(t.name)] == 0 {
		delete(byLength, len(t.name))
	}
	if len(byLength) == 0 {
		delete(w.lengths, t.namespace)
	}
}

// wakePrefixes wakes who waits for a prefix of a changed key.
func (w *waiters) wakePrefixes(key Topic) {
	for n := range w.lengths[key.namespace] {
		if n <= len(key.name) {
			w.wakeOne(KeysTopic(key.namespace, key.name[:n]))
		}
	}
}

func (w *waiters) wakeEveryKey() {
	for t := range w.topics {
		if t.kind == keyTopic || t.kind == keysTopic {
			w.wakeOne(t)
		}
	}
}

// treeRef finds a key.
type treeRef struct{ tree, key string }

// keyspace is every tree, as a view or a draft has it.
type keyspace struct {
	trees map[string]tree // by name
	locks tree            // who holds what: lockKey -> the locked entry
}

func newKeyspace() keyspace { return keyspace{trees: make(map[string]tree)} }

// lockKey is the key in locks of a key that a session has locked: session, tree and
// key, with zero bytes between.
func lockKey(session string, r treeRef) string { return session + "\x00" + r.tree + "\x00" + r.key }

func (k *keyspace) leaf(r treeRef) *leaf {
	l, _ := k.trees[r.tree].get(r.key)
	return l
}

// entry returns an entry, nil when it is not there.
func (k *keyspace) entry(r treeRef) *Entry {
	if l := k.leaf(r); l != nil {
		return l.entry
	}
	return nil
}

// keyIndex is the index of a key's topic; 0 when it never changed.
func (k *keyspace) keyIndex(r treeRef) uint64 {
	l, floor := k.trees[r.tree].get(r.key)
	switch {
	case l == nil:
		return floor
	case l.entry == nil:
		return max(floor, l.index)
	}
	return l.index
}

// put adds or replaces a leaf of a tree.
func (k *keyspace) put(e *edition, name string, l *leaf) {
	t := k.trees[name]
	old, _ := t.get(l.key)
	t.put(e, l)
	k.trees[name] = t
	was, is := old.holder(), l.holder()
	if was == is {
		return
	}
	if was != "" {
		k.locks.remove(e, lockKey(was, treeRef{name, l.key}))
	}
	if is != "" {
		lock := lockKey(is, treeRef{name, l.key})
		k.locks.put(e, &leaf{key: lock, entry: l.entry})
	}
}

// holder is the session that has the key locked, "" when there is none.
func (l *leaf) holder() string {
	if l == nil || l.entry == nil {
		return ""
	}
	return l.entry.Session
}

// locked returns what a session has locked, sorted by tree and key.
func (k *keyspace) locked(session string) (refs []treeRef) {
	prefix := session + "\x00"
	b, _ := k.locks.under(prefix)
	if b == nil {
		return nil
	}
	b.each(func(l *leaf) {
		name, key, _ := strings.Cut(l.key[len(prefix):], "\x00")
		refs = append(refs, treeRef{name, key})
	})
	return refs
}
