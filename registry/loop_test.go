package registry

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/store"
)

// TestReload: a watch that fell behind a compaction loads everything again, and
// says what is different.
func TestReload(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	behind, writer := openFor(t, s), openFor(t, s)
	add(t, writer, "stays", weft.Passing)
	add(t, writer, "goes", weft.Passing)
	add(t, writer, "same", weft.Passing)
	if err := behind.Close(); err != nil { // its loop is gone: the test plays it
		t.Fatal(err)
	}
	if _, err := behind.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(t, writer, "comes", weft.Passing)
	add(t, writer, "stays", weft.Critical)
	if _, err := writer.Deregister(t.Context(), weft.InstanceKey{Node: "n", ID: "goes"}); err != nil {
		t.Fatal(err)
	}
	same := ServiceTopic(weft.NewServiceName("", "same"))
	stays := ServiceTopic(weft.NewServiceName("", "stays"))
	_, sleeping := behind.waiters.join(&behind.view, same, behind.view.index(same))
	_, waiting := behind.waiters.join(&behind.view, stays, behind.view.index(stays))

	if _, err := behind.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, wantIndex := writer.AllInstances()
	got, index := behind.AllInstances()
	if diff := cmp.Diff(want, got); diff != "" || index != wantIndex {
		t.Errorf("index %d, want %d; instances (-want +got):\n%s", index, wantIndex, diff)
	}
	if behind.view.index(ServicesTopic()) != writer.view.index(ServicesTopic()) {
		t.Error("the index of the services is another one")
	}
	select {
	case <-waiting.changed:
	default:
		t.Error("who waits for what changed is not woken")
	}
	select {
	case <-sleeping.changed:
		t.Error("who waits for what is the same is woken")
	default:
	}
	if c := behind.checks.sched.checks[checkKey{"n", "goes"}]; c != nil {
		t.Error("the check of a deregistered instance goes on")
	}
	if c := behind.checks.sched.checks[checkKey{"n", "comes"}]; c == nil {
		t.Error("the check of a new instance does not begin")
	}
}

// TestLateResults: what was learnt about a check that is another one by now, or
// that was reported meanwhile, is not written.
func TestLateResults(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := openFor(t, s)
	hour := weft.Duration(time.Hour)
	probed := weft.Check{ID: "probed", Kind: weft.TCPCheck, Target: "127.0.0.1:1", Interval: hour}
	lease := weft.Check{ID: "lease", Kind: weft.LeaseCheck, TTL: hour}
	in := weft.Instance{ID: "a", Service: weft.NewServiceName("", "a"), Checks: []weft.Check{lease, probed}}
	if _, err := r.Register(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	moved := probed
	moved.Target = "127.0.0.1:2"
	late := []duty{
		{kind: probeDuty, key: checkKey{"n", "probed"}, check: moved},
		{kind: lapseDuty, key: checkKey{"n", "lease"}, check: lease, state: r.checks.sched.checks[checkKey{"n", "lease"}]},
	}
	for _, d := range late {
		if err := r.writeStatus(t.Context(), d, weft.Critical, "late"); err != nil {
			t.Error(err)
		}
		if got, _ := r.Instance(weft.InstanceKey{Node: "n", ID: "a"}); got.Health() != weft.Passing {
			t.Errorf("the late result of %q is written", d.key.id)
		}
	}
	late[0].check = probed
	if err := r.writeStatus(t.Context(), late[0], weft.Critical, "in time"); err != nil {
		t.Error(err)
	}
	if got, _ := r.Instance(weft.InstanceKey{Node: "n", ID: "a"}); got.Health() != weft.Critical {
		t.Error("a result in time is not written")
	}
}

// TestCheckGoesOver: at one revision a check id goes from one instance to another,
// whose record comes first.
func TestCheckGoesOver(t *testing.T) {
	s := newState()
	event := func(id string, rev uint64, checks ...weft.Check) decoded {
		key := weft.InstanceKey{Node: "n", ID: id}
		return decoded{kind: instanceKind, rev: rev, key: key, instance: &weft.Instance{ID: id, Node: "n", Checks: checks}}
	}
	s.apply(1, []decoded{event("b", 1, weft.Check{ID: "c"})})
	s.apply(2, []decoded{event("a", 2, weft.Check{ID: "c"}), event("b", 2)})
	if owner, ok := s.nodes["n"].checks["c"]; owner != "a" || !ok {
		t.Errorf("the check belongs to %q, %v; want a", owner, ok)
	}
}

func openFor(t *testing.T, s *store.Store) *Registry {
	t.Helper()
	r, err := Open(t.Context(), Config{Store: s, Node: weft.Node{Name: "n", Address: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// add registers a service of one instance, and one check of the same id.
func add(t *testing.T, r *Registry, name string, status weft.Health) {
	t.Helper()
	_, err := r.Register(t.Context(), weft.Instance{
		ID: name, Service: weft.NewServiceName("", name),
		Checks: []weft.Check{{ID: name, Kind: weft.StaticCheck, Status: status}},
	})
	if err != nil {
		t.Fatal(err)
	}
}
