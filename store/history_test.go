package store

import (
	"fmt"
	"strconv"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/weftmesh/weft"
)

// TestHistory compares the past with what a model remembers of it, over several pages
// and across a compaction.
func TestHistory(t *testing.T) {
	s := openTest(t, t.TempDir())
	past := past{make(map[int64]state), make(map[int64]string), 0}
	now := state{}
	var first int64
	for i := range 3*historyPage + 5 {
		key, value := "a/"+strconv.Itoa(i%7), strconv.Itoa(i)
		txn := Txn{Put: []KV{{Key: key, Value: []byte(value)}, {Key: "b/" + strconv.Itoa(i%3)}}}
		change := key + "=" + value
		now[key] = value
		if i%5 == 4 {
			gone := "a/" + strconv.Itoa((i+3)%7)
			if _, there := now[gone]; there {
				txn.Delete = []string{gone}
				change += " -" + gone
				delete(now, gone)
			}
		}
		rev, err := s.Commit(t.Context(), txn)
		if err != nil {
			t.Fatal(err)
		}
		if first == 0 {
			first = rev
		}
		past.last = rev
		past.states[rev], past.changes[rev] = make(state), change
		for k, v := range now {
			past.states[rev][k] = v
		}
	}
	past.checkStates(t, s, first)
	past.checkChanges(t, s, first)
	s.server.Backend().ForceCommit() // what was read from etcd's buffer is in its file now
	past.checkChanges(t, s, first)

	compacted := first + historyPage + 3
	if _, err := s.server.Compact(t.Context(), &pb.CompactionRequest{Revision: compacted, Physical: true}); err != nil {
		t.Fatal(err)
	}
	past.checkStates(t, s, compacted) // the state at it is still known
	past.checkChanges(t, s, compacted+1)
	_, err := s.ListAt(t.Context(), "a/", compacted-1)
	wantKind(t, err, weft.NotFound, "compacted", fmt.Sprintf("before revision %d", compacted+1))
	_, _, err = s.GetAt(t.Context(), "a/1", compacted-1)
	wantKind(t, err, weft.NotFound, "compacted")
	_, err = s.History(t.Context(), "a/", compacted-1, past.last)
	wantKind(t, err, weft.NotFound, "compacted")
}

// state is what a store holds below "a/".
type state map[string]string

// past is a model of a store's history, by revision.
type past struct {
	states  map[int64]state
	changes map[int64]string
	last    int64
}

// checkStates compares ListAt and GetAt with it, from a revision on.
func (p past) checkStates(t *testing.T, s *Store, from int64) {
	t.Helper()
	for rev := from; rev <= p.last; rev++ {
		kvs, err := s.ListAt(t.Context(), "a/", rev)
		if err != nil {
			t.Fatal(err)
		}
		got := make(state)
		for _, kv := range kvs {
			got[kv.Key] = string(kv.Value)
			one, ok, err := s.GetAt(t.Context(), kv.Key, rev)
			if err != nil || !ok || string(one.Value) != string(kv.Value) || one.ModRev != kv.ModRev {
				t.Errorf("%s at %d is %+v, %v, %v", kv.Key, rev, one, ok, err)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(p.states[rev]) {
			t.Errorf("at %d it was %v; want %v", rev, got, p.states[rev])
		}
	}
}

// checkChanges compares History with it.
func (p past) checkChanges(t *testing.T, s *Store, from int64) {
	t.Helper()
	batches, err := s.History(t.Context(), "a/", from, p.last+100)
	if err != nil {
		t.Fatal(err)
	}
	if len(batches) != int(p.last-from+1) {
		t.Errorf("%d batches for the revisions from %d to %d", len(batches), from, p.last)
	}
	for _, b := range batches {
		text := ""
		for i, ev := range b.Events {
			if i > 0 {
				text += " "
			}
			if ev.Deleted {
				text += "-" + ev.Key
			} else {
				text += ev.Key + "=" + string(ev.Value)
			}
			if ev.ModRev != b.Rev {
				t.Errorf("an event of %d in the batch of %d", ev.ModRev, b.Rev)
			}
		}
		if text != p.changes[b.Rev] {
			t.Errorf("revision %d changed %s; want %s", b.Rev, text, p.changes[b.Rev])
		}
	}
}

func TestHistoryLimits(t *testing.T) {
	s := openTest(t, t.TempDir())
	rev := put(t, s, "k", "v")
	for name, call := range map[string]func() error{
		"a list of revision 0":      func() error { _, err := s.ListAt(t.Context(), "", 0); return err },
		"a history from revision 0": func() error { _, err := s.History(t.Context(), "", 0, rev); return err },
		"a history backwards":       func() error { _, err := s.History(t.Context(), "", rev, rev-1); return err },
		"a value of no key":         func() error { _, _, err := s.GetAt(t.Context(), "", rev); return err },
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, call(), weft.Invalid) })
	}
	_, err := s.ListAt(t.Context(), "", rev+100)
	wantKind(t, err, weft.NotFound, fmt.Sprintf("the newest revision is %d", rev))

	// More than a question may take: eight values of 8 MB, and one more.
	big := make([]byte, maxTxnBytes-1<<10)
	var last int64
	for range maxHistoryBytes/len(big) + 1 {
		last = put(t, s, "big", string(big))
	}
	_, err = s.History(t.Context(), "big", rev, last)
	wantKind(t, err, weft.TooLarge, "shorter span")
	if batches, err := s.History(t.Context(), "big", last, last); err != nil || len(batches) != 1 {
		t.Errorf("a shorter span: %d batches, %v", len(batches), err)
	}
	if batches, err := s.History(t.Context(), "other", rev, last); err != nil || len(batches) != 0 {
		t.Errorf("other keys: %d batches, %v", len(batches), err)
	}
}
