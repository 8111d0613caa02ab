package registry

import (
	"io"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/store"
)

func FuzzKeyRecord(f *testing.F) {
	f.Add("kv", "a/b", []byte("value"), uint64(0), "", uint64(0), uint64(0), int64(0))
	f.Add("acl/token", "/a//b%2F", []byte("{}\n{}\n"), uint64(42), "4a6f", uint64(3), uint64(7), int64(1700000000000))
	f.Add("%", "\x00\xff\n", []byte(nil), uint64(1<<63), "s", uint64(1), uint64(1), int64(0))
	f.Fuzz(func(t *testing.T, tree, key string, value []byte, flags uint64, session string, locks, created uint64, delay int64) {
		if tree == "" || tree == sessionTree || len(value) == 0 {
			t.Skip()
		}
		const rev = 9
		l := &leaf{key: key, index: rev, delay: delay, entry: &Entry{
			Key: key, Value: value, Flags: flags, Session: session, LockIndex: locks, CreateIndex: created,
		}}
		ev := store.Event{KV: store.KV{Key: treePath(kvDir, treeRef{tree, key}), Value: encodeEntry(l), ModRev: rev}}
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		k, isKey := decodeKey(&ev, log)
		if !isKey || k == nil {
			t.Fatalf("%q is not read as a key", ev.Key)
		}
		if k.ref != (treeRef{tree, key}) || k.what != recordEvent || k.leaf.key != key || k.leaf.delay != delay || k.leaf.index != rev {
			t.Errorf("read as %+v with leaf %+v, want tree %q and leaf %+v", k, k.leaf, tree, l)
		}
		want := *l.entry
		want.ModifyIndex = rev
		if created == 0 {
			want.CreateIndex = rev
		}
		if !isText(session) {
			want.Session = k.leaf.entry.Session // JSON cannot hold it, and ids are checked
		}
		if diff := cmp.Diff(&want, k.leaf.entry); diff != "" {
			t.Errorf("entry (-want +got):\n%s", diff)
		}
		for _, dir := range []string{graveDir, floorDir} {
			if got, ok := parseTreePath(dir, treePath(dir, treeRef{tree, key})); !ok || got != (treeRef{tree, key}) {
				t.Errorf("%s: %q %q is read as %+v", dir, tree, key, got)
			}
		}
	})
}

func isText(s string) bool {
	for _, r := range s {
		if r == '\uFFFD' {
			return false
		}
	}
	return true
}

// TestBrokenRecords: they are logged and left alone, and take nothing else along.
func TestBrokenRecords(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, kv := range map[string]store.KV{
		"no value": {Key: kvDir + "kv/a", Value: []byte("{}")}, "no JSON": {Key: kvDir + "kv/a", Value: []byte("x\ny")},
		"no index": {Key: floorDir + "kv/a/", Value: []byte("x")}, "no session": {Key: kvDir + "session/a", Value: []byte("{}\nx")},
		"no delay": {Key: graveDir + "kv/a", Value: []byte("x")},
	} {
		if k, isKey := decodeKey(&store.Event{KV: kv}, log); k != nil || !isKey {
			t.Errorf("%s: %+v, a key %v", name, k, isKey)
		}
	}
	if _, isKey := decodeKey(&store.Event{KV: store.KV{Key: nodesDir + "a"}}, log); isKey {
		t.Error("a node is read as a key")
	}
}
