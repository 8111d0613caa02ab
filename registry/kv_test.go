package registry_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// op is an operation on a key of the users' tree: "cas a=1 #7" is a cas of key a to
// value 1 at index 7.
func op(verb, key, value string) registry.KeyOp {
	return registry.KeyOp{Tree: registry.KV, Verb: verb, Key: key, Value: []byte(value)}
}

func at(o registry.KeyOp, index uint64) registry.KeyOp { o.Index = index; return o }

func by(o registry.KeyOp, session string) registry.KeyOp { o.Session = session; return o }

func transact(t testing.TB, r *registry.Registry, ops ...registry.KeyOp) registry.TxnResult {
	t.Helper()
	var q registry.TxnRequest
	for i := range ops {
		q.Ops = append(q.Ops, registry.Op{Key: &ops[i]})
	}
	res, err := r.Transact(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// commit returns the index of a transaction that succeeds.
func commit(t testing.TB, r *registry.Registry, ops ...registry.KeyOp) uint64 {
	t.Helper()
	res := transact(t, r, ops...)
	if len(res.Errors) > 0 {
		t.Fatalf("refused: %+v", res.Errors)
	}
	return res.Index
}

// refused returns the text of the only error of a transaction.
func refused(t testing.TB, r *registry.Registry, ops ...registry.KeyOp) string {
	t.Helper()
	res := transact(t, r, ops...)
	if len(res.Errors) != 1 || len(res.Results) != 0 {
		t.Fatalf("errors %+v, results %+v; want one error and no result", res.Errors, res.Results)
	}
	return res.Errors[0].What
}

func value(r *registry.Registry, key string) string {
	e, _ := r.Key(registry.KV, key)
	if e == nil {
		return "-"
	}
	return string(e.Value)
}

func keysOf(list []*registry.Entry) (keys []string) {
	for _, e := range list {
		keys = append(keys, e.Key)
	}
	return keys
}

func TestKeysAreSetReadAndDeleted(t *testing.T) {
	r := open(t)
	if e, index := r.Key(registry.KV, "a"); e != nil || index != 1 {
		t.Errorf("key that never was: %v at %d, want nothing at 1", e, index)
	}
	o := op("set", "a", "1")
	o.Flags = 42
	created := commit(t, r, o)
	e, index := r.Key(registry.KV, "a")
	want := &registry.Entry{Key: "a", Value: []byte("1"), Flags: 42, CreateIndex: created, ModifyIndex: created}
	if diff := cmp.Diff(want, e); diff != "" || index != created {
		t.Errorf("index %d, want %d; entry (-want +got):\n%s", index, created, diff)
	}
	changed := commit(t, r, op("set", "a", "2"))
	e, _ = r.Key(registry.KV, "a")
	want = &registry.Entry{Key: "a", Value: []byte("2"), CreateIndex: created, ModifyIndex: changed}
	if diff := cmp.Diff(want, e); diff != "" || changed <= created {
		t.Errorf("changed at %d after %d; entry (-want +got):\n%s", changed, created, diff)
	}
	commit(t, r, op("set", "a", "2"))
	if e, _ := r.Key(registry.KV, "a"); e.ModifyIndex != changed {
		t.Errorf("the same value moved the index from %d to %d", changed, e.ModifyIndex)
	}
	gone := commit(t, r, op("delete", "a", ""))
	if e, index := r.Key(registry.KV, "a"); e != nil || index != gone || gone <= changed {
		t.Errorf("deleted key: %v at %d, want nothing at %d", e, index, gone)
	}
	commit(t, r, op("delete", "a", ""))
	if _, index := r.Key(registry.KV, "a"); index != gone {
		t.Errorf("deleting what is not there moved the index from %d to %d", gone, index)
	}
	again := commit(t, r, op("set", "a", "2"))
	if e, _ := r.Key(registry.KV, "a"); e.CreateIndex != again {
		t.Errorf("the index at which it was made is %d, want %d", e.CreateIndex, again)
	}
}

func TestKeysByPrefix(t *testing.T) {
	r := open(t)
	for _, key := range []string{"b", "a/c", "a/b", "a", "a/b/c", "aa"} {
		commit(t, r, op("set", key, key))
	}
	list, _ := r.Keys(registry.KV, "a/")
	if got, want := keysOf(list), []string{"a/b", "a/b/c", "a/c"}; !slices.Equal(got, want) {
		t.Errorf("below a/: %q, want %q", got, want)
	}
	list, before := r.Keys(registry.KV, "")
	if got, want := keysOf(list), []string{"a", "a/b", "a/b/c", "a/c", "aa", "b"}; !slices.Equal(got, want) {
		t.Errorf("all: %q, want %q", got, want)
	}
	if list, index := r.Keys("query", ""); len(list) != 0 || index != 1 {
		t.Errorf("another tree has %q at %d, want nothing at 1", keysOf(list), index)
	}
	gone := commit(t, r, op("delete-tree", "a/b", ""))
	list, index := r.Keys(registry.KV, "a/")
	if got, want := keysOf(list), []string{"a/c"}; !slices.Equal(got, want) || index != gone || gone <= before {
		t.Errorf("after delete-tree: %q at %d, want %q at %d", got, index, want, gone)
	}
	if _, index := r.Keys(registry.KV, "a/b/"); index != gone {
		t.Errorf("index of the empty prefix is %d, want %d", index, gone)
	}
}

func TestCompareAndSet(t *testing.T) {
	r := open(t)
	created := commit(t, r, at(op("cas", "a", "1"), 0))
	if got := refused(t, r, at(op("cas", "a", "2"), 0)); !strings.Contains(got, "index is stale") {
		t.Errorf("cas 0 of a key that is there: %q", got)
	}
	if got := refused(t, r, at(op("cas", "a", "2"), created-1)); !strings.Contains(got, "index is stale") {
		t.Errorf("cas with another index: %q", got)
	}
	changed := commit(t, r, at(op("cas", "a", "2"), created))
	refused(t, r, at(op("delete-cas", "a", ""), created))
	refused(t, r, at(op("delete-cas", "a", ""), 0))
	if value(r, "a") != "2" {
		t.Errorf("value is %q after deletes that were refused", value(r, "a"))
	}
	commit(t, r, at(op("delete-cas", "a", ""), changed))
	commit(t, r, at(op("delete-cas", "a", ""), changed))
	refused(t, r, at(op("cas", "a", "3"), changed))
	if value(r, "a") != "-" {
		t.Errorf("value is %q after it was deleted", value(r, "a"))
	}
}

func TestTransactionsHappenWholeOrNotAtAll(t *testing.T) {
	r := open(t)
	commit(t, r, op("set", "a/1", "1"), op("set", "a/2", "2"))
	before, _ := r.Keys(registry.KV, "")
	res := transact(t, r, op("set", "a/1", "new"), op("delete", "a/2", ""), op("get", "ghost", ""),
		op("set", "a/3", "3"), at(op("check-index", "a/3", ""), 5))
	if len(res.Errors) != 2 || res.Errors[0].Op != 2 || res.Errors[1].Op != 4 {
		t.Fatalf("errors: %+v, want those of operations 2 and 4", res.Errors)
	}
	if got := res.Errors[0].What; got != `key "ghost" doesn't exist` {
		t.Errorf("text of a missing key: %q", got)
	}
	after, _ := r.Keys(registry.KV, "")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("it did something (-before +after):\n%s", diff)
	}

	res = transact(t, r, op("set", "a/3", "3"), op("get-tree", "a/", ""), op("delete", "a/1", ""),
		op("get-or-empty", "a/1", ""), op("check-not-exists", "a/1", ""), op("get", "a/3", ""))
	var got []string
	for _, result := range res.Results {
		got = append(got, result.Key.Key+"="+string(result.Key.Value))
		if result.Key.Key == "a/3" && (result.Key.CreateIndex != res.Index || result.Key.ModifyIndex != res.Index) {
			t.Errorf("indexes of what was made at %d: %+v", res.Index, result.Key)
		}
	}
	if want := []string{"a/3=", "a/1=1", "a/2=2", "a/3=3", "a/1=", "a/3=3"}; !slices.Equal(got, want) || len(res.Errors) != 0 {
		t.Errorf("results %q, want %q; errors %+v", got, want, res.Errors)
	}
}

func TestLimitsOfTransactions(t *testing.T) {
	r := open(t)
	big := strings.Repeat("x", 512<<10)
	commit(t, r, op("set", "big", big))
	if value(r, "big") != big {
		t.Error("a value of 512 KiB is not kept")
	}
	many := make([]registry.KeyOp, 129)
	for i := range many {
		many[i] = op("set", "a", "1")
	}
	commit(t, r, many[:128]...)
	for name, ops := range map[string][]registry.KeyOp{
		"value": {op("set", "big", big+"x")}, "key": {op("set", strings.Repeat("k", 5000), "")}, "operations": many,
		"sum": {op("set", "1", big), op("set", "2", big), op("set", "3", big), op("set", "4", big), op("set", "5", "x")},
	} {
		var q registry.TxnRequest
		for i := range ops {
			q.Ops = append(q.Ops, registry.Op{Key: &ops[i]})
		}
		if _, err := r.Transact(t.Context(), q); weft.KindOf(err) != weft.TooLarge {
			t.Errorf("%s: %v, want an error of kind too large", name, err)
		}
	}
	for name, o := range map[string]registry.KeyOp{
		"no key": op("set", "", ""), "no tree": {Verb: "set", Key: "a"}, "a tree of our own": {Tree: "session", Verb: "delete-tree"},
	} {
		_, err := r.Transact(t.Context(), registry.TxnRequest{Ops: []registry.Op{{Key: &o}}})
		var e *weft.Error
		if !errors.As(err, &e) || e.Kind != weft.Invalid {
			t.Errorf("%s: %v, want an error of kind invalid", name, err)
		}
	}
	if _, err := r.Transact(t.Context(), registry.TxnRequest{Ops: []registry.Op{{}}}); weft.KindOf(err) != weft.Invalid {
		t.Errorf("an operation on nothing: %v", err)
	}
	if got := refused(t, r, op("push", "a", "")); !strings.Contains(got, `unknown KV verb "push"`) {
		t.Errorf("an unknown verb: %q", got)
	}
}

func session(t testing.TB, r *registry.Registry, s registry.Session) registry.Session {
	t.Helper()
	made, err := r.CreateSession(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func destroy(t testing.TB, r *registry.Registry, s registry.Session) {
	t.Helper()
	if there, err := r.DestroySession(t.Context(), s.ID); !there || err != nil {
		t.Fatalf("destroy: was there %v, error %v", there, err)
	}
}

func TestLocks(t *testing.T) {
	r := open(t)
	first, second := session(t, r, registry.Session{}), session(t, r, registry.Session{})
	if got := refused(t, r, op("lock", "l", "1")); got != "missing session" {
		t.Errorf("without a session: %q", got)
	}
	if got := refused(t, r, by(op("lock", "l", "1"), "nobody")); got != `invalid session "nobody"` {
		t.Errorf("with a session that is not there: %q", got)
	}
	commit(t, r, by(op("lock", "l", "1"), first.ID))
	if got := refused(t, r, by(op("lock", "l", "2"), second.ID)); !strings.Contains(got, "lock is already held") {
		t.Errorf("while another session has it: %q", got)
	}
	commit(t, r, by(op("lock", "l", "1b"), first.ID))
	e, _ := r.Key(registry.KV, "l")
	if e.LockIndex != 1 || e.Session != first.ID || string(e.Value) != "1b" {
		t.Errorf("locked again by the same session: %+v", e)
	}
	commit(t, r, op("set", "l", "others"))
	if e, _ := r.Key(registry.KV, "l"); e.Session != first.ID || string(e.Value) != "others" {
		t.Errorf("set by somebody: %+v, want the lock kept", e)
	}
	refused(t, r, by(op("unlock", "l", ""), second.ID))
	commit(t, r, by(op("check-session", "l", ""), first.ID))
	if got := refused(t, r, by(op("check-session", "l", ""), second.ID)); !strings.Contains(got, "failed session check") {
		t.Errorf("check of another session: %q", got)
	}
	commit(t, r, by(op("unlock", "l", "free"), first.ID))
	if e, _ := r.Key(registry.KV, "l"); e.Session != "" || e.LockIndex != 1 || string(e.Value) != "free" {
		t.Errorf("given back: %+v", e)
	}
	refused(t, r, by(op("unlock", "l", ""), first.ID))
	commit(t, r, by(op("lock", "l", "2"), second.ID))
	if e, _ := r.Key(registry.KV, "l"); e.Session != second.ID || e.LockIndex != 2 {
		t.Errorf("locked by the next: %+v", e)
	}
}

func TestLockDelay(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	for _, deletes := range []bool{false, true} {
		commit(t, r, op("delete", "l", ""))
		first := session(t, r, registry.Session{LockDelay: weft.Duration(time.Hour), DeleteKeys: deletes})
		second := session(t, r, registry.Session{})
		key := map[bool]string{false: "released", true: "deleted"}[deletes]
		commit(t, r, by(op("lock", key, "1"), first.ID), by(op("lock", key+"2", "1"), first.ID))
		commit(t, r, by(op("unlock", key+"2", "1"), first.ID))
		destroy(t, r, first)
		e, _ := r.Key(registry.KV, key)
		if deletes != (e == nil) || e != nil && e.Session != "" {
			t.Errorf("%s: entry %+v", key, e)
		}
		commit(t, r, by(op("lock", key+"2", "2"), second.ID)) // was given back, not lost
		for range 2 {
			if got := refused(t, r, by(op("lock", key, "2"), second.ID)); !strings.Contains(got, "lock delay") {
				t.Errorf("%s: %q", key, got)
			}
			commit(t, r, op("set", key, "x")) // a set does not end the delay
			closeRegistry(t, r)               // nor does a new writer
			r = openRegistry(t, s)
		}
	}
	short := session(t, r, registry.Session{LockDelay: weft.Duration(20 * time.Millisecond)})
	commit(t, r, by(op("lock", "short", ""), short.ID))
	destroy(t, r, short)
	next := session(t, r, registry.Session{})
	eventually(t, "end of the delay", func() bool {
		return len(transact(t, r, by(op("lock", "short", ""), next.ID)).Errors) == 0
	})
}
