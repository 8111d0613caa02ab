package registry_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/registry"
)

// kvModel is the obvious registry of keys: it is copied for each transaction, and
// tells in one text what a topic is about.
type kvModel struct {
	keys     map[string]registry.Entry
	sessions map[string]registry.Session
}

func (m kvModel) clone() kvModel { return kvModel{maps.Clone(m.keys), maps.Clone(m.sessions)} }

// step does one operation at an index, and reports whether it is refused.
func (m kvModel) step(o registry.KeyOp, index uint64) (results []registry.Entry, refused bool) {
	e, there := m.keys[o.Key]
	told := func(value bool) []registry.Entry {
		e := m.keys[o.Key]
		if !value {
			e.Value = nil
		}
		return []registry.Entry{e}
	}
	put := func(session string, locks uint64) []registry.Entry {
		next := registry.Entry{Key: o.Key, Value: o.Value, Flags: o.Flags, Session: session, LockIndex: locks, CreateIndex: index, ModifyIndex: index}
		if there {
			next.CreateIndex = e.CreateIndex
			same := next
			same.ModifyIndex = e.ModifyIndex
			if cmp.Equal(same, e) {
				next = same
			}
		}
		m.keys[o.Key] = next
		return told(false)
	}
	switch o.Verb {
	case "get":
		if !there {
			return nil, true
		}
		return told(true), false
	case "get-tree":
		for _, key := range slices.Sorted(maps.Keys(m.keys)) {
			if strings.HasPrefix(key, o.Key) {
				results = append(results, m.keys[key])
			}
		}
		return results, false
	case "set":
		return put(e.Session, e.LockIndex), false
	case "cas":
		if there != (o.Index != 0) || there && e.ModifyIndex != o.Index {
			return nil, true
		}
		return put(e.Session, e.LockIndex), false
	case "delete":
		delete(m.keys, o.Key)
		return nil, false
	case "delete-cas":
		if there && e.ModifyIndex != o.Index {
			return nil, true
		}
		delete(m.keys, o.Key)
		return nil, false
	case "delete-tree":
		maps.DeleteFunc(m.keys, func(key string, _ registry.Entry) bool { return strings.HasPrefix(key, o.Key) })
		return nil, false
	case "lock":
		if _, ok := m.sessions[o.Session]; !ok || e.Session != "" && e.Session != o.Session {
			return nil, true
		}
		if e.Session == o.Session {
			return put(o.Session, e.LockIndex), false
		}
		return put(o.Session, e.LockIndex+1), false
	case "unlock":
		if o.Session == "" || e.Session != o.Session {
			return nil, true
		}
		return put("", e.LockIndex), false
	case "check-index":
		if !there || e.ModifyIndex != o.Index {
			return nil, true
		}
		return told(false), false
	case "check-session":
		if !there || e.Session != o.Session {
			return nil, true
		}
		return told(false), false
	case "check-not-exists":
		return nil, there
	}
	panic(o.Verb)
}

// destroy ends a session at an index.
func (m kvModel) destroy(id string, index uint64) {
	for key, e := range m.keys {
		switch {
		case e.Session != id:
		case m.sessions[id].DeleteKeys:
			delete(m.keys, key)
		default:
			e.Session, e.ModifyIndex = "", index
			m.keys[key] = e
		}
	}
	delete(m.sessions, id)
}

// unknown is an index that no operation knows: that of the transaction itself.
const unknown = 1 << 40

var modelKeys = []string{"a", "a/", "a/b", "a/b/c", "a/b/d", "ab", "b", "b/c", "\x00", "ü/x"}

// tell says what every topic is about, and the topic.
func (m kvModel) tell(sessions []string) (map[string]string, map[string]registry.Topic) {
	told, topics := make(map[string]string), make(map[string]registry.Topic)
	for _, key := range append(modelKeys, "never") {
		told["key "+key] = fmt.Sprintf("%+v", m.keys[key])
		topics["key "+key] = registry.KeyTopic(registry.KV, key)
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b/", "b", "c", "never/"} {
		var list strings.Builder
		for _, key := range slices.Sorted(maps.Keys(m.keys)) {
			if strings.HasPrefix(key, prefix) {
				fmt.Fprintf(&list, "%+v;", m.keys[key])
			}
		}
		told["keys "+prefix] = list.String()
		topics["keys "+prefix] = registry.KeysTopic(registry.KV, prefix)
	}
	for _, id := range sessions {
		told["session "+id] = fmt.Sprint(m.sessions[id].CreateIndex)
		topics["session "+id] = registry.SessionTopic(id)
	}
	told["sessions"] = fmt.Sprintf("%q", slices.Sorted(maps.Keys(m.sessions)))
	topics["sessions"] = registry.SessionsTopic("")
	told["other node"], topics["other node"] = "", registry.SessionsTopic("other")
	told["own node"], topics["own node"] = told["sessions"], registry.SessionsTopic(ownNode)
	return told, topics
}

// kvRun compares a registry with the model, step by step.
type kvRun struct {
	t        *testing.T
	rng      *rand.Rand
	r        *registry.Registry
	m        kvModel
	sessions []string // that were ever made

	waiting map[string]context.CancelFunc
}

func (x *kvRun) operation() registry.KeyOp {
	o := registry.KeyOp{
		Tree: registry.KV, Key: pick(x.rng, modelKeys...), Flags: uint64(x.rng.IntN(2)), Value: []byte(pick(x.rng, "1", "2")),
		Verb: pick(x.rng, "set", "set", "set", "cas", "cas", "delete", "delete", "delete-cas", "delete-tree", "lock", "lock", "lock",
			"unlock", "get", "get-tree", "check-index", "check-session", "check-not-exists"),
	}
	if len(x.sessions) > 0 {
		o.Session = pick(x.rng, x.sessions...)
	}
	if x.rng.IntN(4) > 0 {
		o.Index = x.m.keys[o.Key].ModifyIndex
	}
	return o
}

// transact does a random transaction in both, and returns the model after it.
func (x *kvRun) transact() (kvModel, uint64, string) {
	ops := make([]registry.KeyOp, 1+x.rng.IntN(4)*x.rng.IntN(2))
	var did strings.Builder
	for i := range ops {
		ops[i] = x.operation()
		fmt.Fprintf(&did, "%+v ", ops[i])
	}
	got := transact(x.t, x.r, ops...)
	var refused []int
	next := x.m.clone()
	for i, o := range ops {
		if _, no := next.step(o, unknown); no {
			refused = append(refused, i)
		}
	}
	var gotRefused []int
	for _, e := range got.Errors {
		gotRefused = append(gotRefused, e.Op)
	}
	if !slices.Equal(refused, gotRefused) {
		x.t.Fatalf("%s: refused %v, want %v", did.String(), got.Errors, refused)
	}
	if len(refused) > 0 {
		return x.m, got.Index, did.String()
	}
	next = x.m.clone()
	var want, results []registry.Entry
	for _, o := range ops {
		told, _ := next.step(o, got.Index)
		want = append(want, told...)
	}
	for _, result := range got.Results {
		results = append(results, *result.Key)
	}
	if diff := cmp.Diff(want, results); diff != "" {
		x.t.Fatalf("%s: results (-want +got):\n%s", did.String(), diff)
	}
	return next, got.Index, did.String()
}

// wait has somebody wait for each topic.
func (x *kvRun) wait(topics map[string]registry.Topic) {
	for name, topic := range topics {
		if x.r.Waiting(topic) > 0 {
			continue
		}
		after := x.r.Wait(x.t.Context(), topic, 0)
		ctx, cancel := context.WithCancel(x.t.Context())
		x.waiting[name] = cancel
		go x.r.Wait(ctx, topic, after)
		eventually(x.t, "waiter", func() bool { return x.r.Waiting(topic) == 1 })
	}
}

func (x *kvRun) indexes(topics map[string]registry.Topic) map[string]uint64 {
	all := make(map[string]uint64)
	for name, topic := range topics {
		all[name] = x.r.Wait(x.t.Context(), topic, 0)
	}
	return all
}

// step changes something, and sees whose index moved and who was woken.
func (x *kvRun) step() {
	var next kvModel
	var index uint64
	var did string
	before, topics := x.m.tell(x.sessions)
	x.wait(topics)
	from := x.indexes(topics)
	switch x.rng.IntN(12) {
	case 0:
		s := session(x.t, x.r, registry.Session{DeleteKeys: x.rng.IntN(2) == 0})
		next, index, did = x.m.clone(), s.CreateIndex, "create "+s.ID
		next.sessions[s.ID] = s
		defer func() { x.sessions = append(x.sessions, s.ID) }()
	case 1:
		if len(x.m.sessions) == 0 {
			return
		}
		id := pick(x.rng, slices.Sorted(maps.Keys(x.m.sessions))...)
		next, did = x.m.clone(), "destroy "+id
		destroy(x.t, x.r, next.sessions[id])
		_, index = x.r.Session(id)
		next.destroy(id, index)
	default:
		next, index, did = x.transact()
	}
	x.m = next
	after, _ := x.m.tell(x.sessions)
	to := x.indexes(topics)
	for name, topic := range topics {
		changed := before[name] != after[name]
		want := from[name]
		if changed {
			want = index
		}
		if to[name] != want {
			x.t.Fatalf("%s: index of %s went from %d to %d, want %d\nbefore %s\nafter  %s", did, name, from[name], to[name], want, before[name], after[name])
		}
		if woken := x.r.Waiting(topic) == 0; woken != changed {
			x.t.Fatalf("%s: who waits for %s is woken: %v, want %v", did, name, woken, changed)
		}
	}
}

// same compares all that can be read.
func (x *kvRun) same() {
	list, _ := x.r.Keys(registry.KV, "")
	var got []registry.Entry
	for _, e := range list {
		got = append(got, *e)
	}
	var want []registry.Entry
	for _, key := range slices.Sorted(maps.Keys(x.m.keys)) {
		want = append(want, x.m.keys[key])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		x.t.Fatalf("keys (-want +got):\n%s", diff)
	}
}

// TestKeysAgainstModel: every answer, every index and every wake, also over restarts.
func TestKeysAgainstModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			s := openStore(t, t.TempDir())
			x := &kvRun{
				t: t, rng: rand.New(rand.NewPCG(seed, 7)), r: openRegistry(t, s), waiting: make(map[string]context.CancelFunc),
				m: kvModel{make(map[string]registry.Entry), make(map[string]registry.Session)},
			}
			for range 3 {
				for range 100 {
					x.step()
				}
				x.same()
				_, topics := x.m.tell(x.sessions)
				before := x.indexes(topics)
				closeRegistry(t, x.r)
				x.r = openRegistry(t, s)
				x.same()
				if diff := cmp.Diff(before, x.indexes(topics)); diff != "" {
					t.Fatalf("indexes after a restart (-before +after):\n%s", diff)
				}
			}
		})
	}
}

// TestOldGravesAreCollapsed: their number is bounded, no index goes back, and nobody
// is woken.
func TestOldGravesAreCollapsed(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	const dirs, keys = 100, 100
	index := make(map[string]uint64)
	key := func(d, k int) string { return fmt.Sprintf("d%d/k%d", d, k) }
	commit(t, r, op("set", "other/stays", "1"))
	for d := range dirs {
		var sets, deletes []registry.KeyOp
		for k := range keys {
			sets, deletes = append(sets, op("set", key(d, k), "")), append(deletes, op("delete", key(d, k), ""))
		}
		commit(t, r, sets...)
		gone := commit(t, r, deletes...)
		for k := range keys {
			index[key(d, k)] = gone
		}
	}
	stays, calm := registry.KeysTopic(registry.KV, "other/"), registry.KeyTopic(registry.KV, "d0/k0")
	calmIndex, staysIndex := r.Wait(t.Context(), calm, 0), r.Wait(t.Context(), stays, 0)
	for _, topic := range []registry.Topic{stays, calm} {
		waitInBackground(t, r, topic, r.Wait(t.Context(), topic, 0))
	}
	for i := range 3 { // more than the limit again, in directories of their own
		for d := range 40 {
			var ops []registry.KeyOp
			for k := range 60 {
				ops = append(ops, op("set", fmt.Sprintf("x%d/%d-%d/k", i, d, k), ""))
			}
			commit(t, r, ops...)
			commit(t, r, op("delete-tree", fmt.Sprintf("x%d/%d-", i, d), ""))
		}
	}
	for range 2 {
		for key, was := range index {
			if e, now := r.Key(registry.KV, key); e != nil || now < was {
				t.Fatalf("%s: %v at %d, was deleted at %d", key, e, now, was)
			}
		}
		if now := r.Wait(t.Context(), stays, 0); now != staysIndex {
			t.Errorf("index of other/ went from %d to %d", staysIndex, now)
		}
		if now := r.Wait(t.Context(), calm, 0); now < calmIndex || now > index["d99/k99"] {
			t.Errorf("index of d0/k0 went from %d to %d", calmIndex, now)
		}
		closeRegistry(t, r)
		r = openRegistry(t, s)
	}
	kvs, _, err := s.List(t.Context(), "registry/index/")
	if err != nil {
		t.Fatal(err)
	}
	if len(kvs) > 8192+200 {
		t.Errorf("%d cells are kept", len(kvs))
	}
}
