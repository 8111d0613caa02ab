package registry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/url"
	"strconv"
	"strings"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// What the store holds of keys. The name of a tree is escaped; a key stands as it
// is, up to its end, so that the order of the records is that of the keys.
//
//	registry/kv/<tree>/<key>              a line of JSON (entryHead), then the value's bytes
//	registry/index/kv/<tree>/<key>        of a deleted key: nothing, or an entryHead
//	registry/index/floor/<tree>/<dir>     an index, as text
//
// The revision of a record is the key's index, also when what is left of the key is
// its grave below index/kv/, by which indexes do not go back. When a tree has more
// than maxGraves of them, some are collapsed into the floor of the directory that
// they are in (up to the last "/"), and floors into that of its parent. From then on
// the index of what is absent below a floor, and of every prefix below it, is at
// least the floor. So a reader that comes back with the older index is answered at
// once, one time, with the same as before; nobody who waits is woken.
const (
	kvDir     = root + "kv/"
	graveDir  = root + "index/kv/"
	floorDir  = root + "index/floor/"
	maxGraves = 8192
)

// entryHead is what a record says of an entry besides its value.
type entryHead struct {
	Flags   uint64 `json:"flags,omitempty"`
	Session string `json:"session,omitempty"`
	Locks   uint64 `json:"locks,omitempty"`
	Created uint64 `json:"created,omitempty"` // index; 0 is that of this record
	Delay   int64  `json:"delay,omitempty"`   // Unix milliseconds until which it cannot be locked
}

func treePath(dir string, r treeRef) string {
	if !plainTree(r.tree) {
		return dir + url.PathEscape(r.tree) + "/" + r.key
	}
	return dir + r.tree + "/" + r.key
}

// plainTree reports whether the name needs no escape: KV, above all.
func plainTree(name string) bool {
	for i := range len(name) {
		if c := name[i]; c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

func parseTreePath(dir, path string) (r treeRef, ok bool) {
	rest, found := strings.CutPrefix(path, dir)
	if !found {
		return r, false
	}
	name, key, found := strings.Cut(rest, "/")
	name, err := url.PathUnescape(name)
	return treeRef{name, key}, found && err == nil
}

// encodeEntry returns the record of a leaf.
func encodeEntry(l *leaf) []byte {
	head := encodeHead(entryHead{l.entry.Flags, l.entry.Session, l.entry.LockIndex, l.entry.CreateIndex, l.delay})
	b := make([]byte, 0, len(head)+1+len(l.entry.Value))
	b = append(b, head...)
	b = append(b, '\n')
	return append(b, l.entry.Value...)
}

func encodeHead(h entryHead) []byte {
	if h == (entryHead{}) {
		return []byte("{}")
	}
	b, _ := json.Marshal(h) // numbers, and the id of a session: cannot fail
	return b
}

// decodeEntry reads a record of revision rev. The entry shares its memory.
func decodeEntry(r treeRef, record []byte, rev uint64) (*leaf, error) {
	line, value, found := bytes.Cut(record, []byte{'\n'})
	if !found {
		return nil, weft.Errorf(weft.Invalid, "read", "key "+r.key, "the record has no value")
	}
	var h entryHead
	if !bytes.Equal(line, []byte("{}")) {
		if err := json.Unmarshal(line, &h); err != nil {
			return nil, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: "key " + r.key, Err: err}
		}
	}
	e := &Entry{
		Key: r.key, Value: value, Flags: h.Flags, Session: h.Session, LockIndex: h.Locks,
		CreateIndex: h.Created, ModifyIndex: rev,
	}
	if len(value) == 0 {
		e.Value = nil
	}
	if e.CreateIndex == 0 {
		e.CreateIndex = rev
	}
	l := &leaf{key: r.key, index: rev, entry: e, delay: h.Delay}
	if r.tree == sessionTree {
		l.session = new(Session)
		if err := json.Unmarshal(value, l.session); err != nil {
			return nil, &weft.Error{Kind: weft.Invalid, Op: "read", Thing: "session " + r.key, Err: err}
		}
		l.session.CreateIndex, l.session.ModifyIndex = e.CreateIndex, rev
	}
	return l, nil
}

// keyEvent is one event of the store that is about a key.
type keyEvent struct {
	what  keyEventKind
	ref   treeRef
	leaf  *leaf  // of a record and of a grave; nil when that went
	floor uint64 // of a floor, whose directory is ref.key; 0 when it went
}

type keyEventKind uint8

const (
	recordEvent keyEventKind = iota
	graveEvent
	floorEvent
)

// decodeKey reads an event that is about a key. It returns nil for another one, and
// with isKey for a record that cannot be read, which is logged.
func decodeKey(ev *store.Event, log *slog.Logger) (k *keyEvent, isKey bool) {
	rev := uint64(ev.ModRev)
	var err error
	if ref, ok := parseTreePath(kvDir, ev.Key); ok {
		k = &keyEvent{what: recordEvent, ref: ref}
		if !ev.Deleted {
			k.leaf, err = decodeEntry(ref, ev.Value, rev)
		}
	} else if ref, ok := parseTreePath(graveDir, ev.Key); ok {
		k = &keyEvent{what: graveEvent, ref: ref}
		var h entryHead
		if len(ev.Value) > 0 {
			err = json.Unmarshal(ev.Value, &h)
		}
		if !ev.Deleted {
			k.leaf = &leaf{key: ref.key, index: rev, delay: h.Delay}
		}
	} else if ref, ok := parseTreePath(floorDir, ev.Key); ok {
		k = &keyEvent{what: floorEvent, ref: ref}
		if !ev.Deleted {
			k.floor, err = strconv.ParseUint(string(ev.Value), 10, 64)
		}
	} else {
		return nil, false
	}
	if err != nil {
		log.Error("registry: record of a key cannot be read", "key", ev.Key, "error", err)
		return nil, true
	}
	return k, true
}

// applyKey brings a keyspace forward by one event.
func (s *state) applyKey(ev *decoded, e *edition, c *change, loading bool) {
	k := &s.keys
	name, now := ev.keyed.ref.tree, k.leaf(ev.keyed.ref)
	there := now != nil && now.entry != nil
	switch ev.keyed.what {
	case recordEvent:
		l := ev.keyed.leaf
		if l == nil {
			if !there {
				return // its grave was there before
			}
			l = &leaf{key: ev.keyed.ref.key, index: ev.rev}
		}
		k.put(e, name, l)
		c.key(ev.keyed.ref, l, loading)
	case graveEvent:
		l := ev.keyed.leaf
		switch {
		case l == nil && now != nil && !there:
			t := k.trees[name]
			t.remove(e, now.key)
			k.trees[name] = t
		case l != nil && (now == nil || now.index <= l.index):
			k.put(e, name, l)
			c.key(ev.keyed.ref, l, loading)
		}
	case floorEvent:
		t := k.trees[name]
		t.raise(e, ev.keyed.ref.key, ev.keyed.floor)
		k.trees[name] = t
	}
}

// key notes that a key changed.
func (c *change) key(r treeRef, l *leaf, loading bool) {
	if r.tree == sessionTree {
		if c.sessions == nil {
			c.sessions = make(map[string]*Session)
		}
		c.sessions[r.key] = l.session
	}
	if loading {
		return // everybody is told: see everyKey
	}
	c.topics[KeyTopic(r.tree, r.key)] = true
}
