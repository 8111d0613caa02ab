package registry_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func idsOf(list []*registry.Session) (ids []string) {
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	return ids
}

func node(t testing.TB, r *registry.Registry, name string, checks ...weft.Check) {
	t.Helper()
	if _, err := r.RegisterNode(t.Context(), weft.Node{Name: name, Address: "10.0.0.2", Checks: checks}); err != nil {
		t.Fatal(err)
	}
}

func static(id string, status weft.Health) weft.Check {
	return weft.Check{ID: id, Name: id, Kind: weft.StaticCheck, Status: status}
}

func TestSessionsAreMadeAndDestroyed(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	node(t, r, "a/b", static("up", weft.Passing))
	first := session(t, r, registry.Session{Name: "first", TTL: weft.Duration(10 * time.Second), LockDelay: weft.Duration(15 * time.Second)})
	if len(first.ID) != 36 || first.Node != ownNode || !slices.Equal(first.NodeChecks, []string{"serfHealth"}) || first.CreateIndex == 0 {
		t.Errorf("made: %+v", first)
	}
	second := session(t, r, registry.Session{Node: "a/b", NodeChecks: []string{"up"}, DeleteKeys: true})
	third := session(t, r, registry.Session{NodeChecks: []string{}})
	if _, err := r.CreateSession(t.Context(), registry.Session{ID: third.ID}); weft.KindOf(err) != weft.Conflict {
		t.Errorf("the same id again: %v", err)
	}
	for range 2 {
		for _, want := range []registry.Session{first, second, third} {
			got, index := r.Session(want.ID)
			if diff := cmp.Diff(&want, got); diff != "" || index != want.CreateIndex {
				t.Errorf("index %d; session (-want +got):\n%s", index, diff)
			}
		}
		if got, index := r.Sessions("a/b"); !slices.Equal(idsOf(got), []string{second.ID}) || index != second.CreateIndex {
			t.Errorf("on a/b: %q at %d", idsOf(got), index)
		}
		if got, index := r.Sessions("a"); len(got) != 0 || index != 1 {
			t.Errorf("on a: %q at %d, want none at 1", idsOf(got), index)
		}
		want := slices.Sorted(slices.Values([]string{first.ID, second.ID, third.ID}))
		if got, index := r.Sessions(""); !slices.Equal(idsOf(got), want) || index != third.CreateIndex {
			t.Errorf("all: %q at %d, want %q at %d", idsOf(got), index, want, third.CreateIndex)
		}
		closeRegistry(t, r)
		r = openRegistry(t, s)
	}
	renewed, err := r.RenewSession(t.Context(), first.ID)
	if err != nil || renewed == nil || renewed.ID != first.ID {
		t.Errorf("renewed: %v, %v", renewed, err)
	}
	destroy(t, r, first)
	if got, index := r.Session(first.ID); got != nil || index <= third.CreateIndex {
		t.Errorf("destroyed: %v at %d", got, index)
	}
	if there, err := r.DestroySession(t.Context(), first.ID); there || err != nil {
		t.Errorf("destroyed again: %v, %v", there, err)
	}
	if renewed, err := r.RenewSession(t.Context(), first.ID); renewed != nil || err != nil {
		t.Errorf("renewed after its end: %v, %v", renewed, err)
	}
}

func TestSessionsNeedTheirNodeAndChecks(t *testing.T) {
	r := open(t)
	node(t, r, "n", static("good", weft.Passing), static("bad", weft.Critical), static("soso", weft.Warning))
	session(t, r, registry.Session{Node: "n", NodeChecks: []string{"good", "soso"}})
	for want, s := range map[string]registry.Session{
		"Missing node registration":               {Node: "ghost"},
		"Missing check 'serfHealth' registration": {Node: "n"},
		"Missing check 'other' registration":      {Node: "n", NodeChecks: []string{"good", "other"}},
		"Check 'bad' is in critical state":        {Node: "n", NodeChecks: []string{}, ServiceChecks: []registry.ServiceCheck{{ID: "bad"}}},
		"are negative":                            {TTL: -1},
	} {
		if _, err := r.CreateSession(t.Context(), s); weft.KindOf(err) != weft.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", s, err, want)
		}
	}
}

// TestWhatEndsSessions: at the index of what ended it, with its locks.
func TestWhatEndsSessions(t *testing.T) {
	ctx := t.Context()
	order := weft.InstanceKey{Node: "n", ID: "o-1"}
	check := func(id string, status weft.Health) func(r *registry.Registry) error {
		return func(r *registry.Registry) error { return r.SetCheck(ctx, "n", id, static(id, status)) }
	}
	for name, c := range map[string]struct {
		do    func(r *registry.Registry) error
		ended []string // of those bound to a check of the node, of the instance, to none
	}{
		"the node's check is critical":        {check("node-check", weft.Critical), []string{"node"}},
		"the node's check warns":              {check("node-check", weft.Warning), nil},
		"the instance's check is critical":    {check("order-check", weft.Critical), []string{"instance"}},
		"the instance's check goes":           {func(r *registry.Registry) error { return r.RemoveCheck(ctx, "n", "order-check") }, []string{"instance"}},
		"another check of theirs is critical": {check("spare", weft.Critical), nil},
		"the instance goes":                   {func(r *registry.Registry) error { _, err := r.Deregister(ctx, order); return err }, []string{"instance"}},
		"the instance comes again without it": {func(r *registry.Registry) error {
			in := instance("order", "o-1")
			in.Node = "n"
			_, err := r.Register(ctx, in)
			return err
		}, []string{"instance"}},
		"the node goes":     {func(r *registry.Registry) error { _, err := r.DeregisterNode(ctx, "n"); return err }, []string{"node", "instance", "none"}},
		"another node goes": {func(r *registry.Registry) error { _, err := r.DeregisterNode(ctx, "m"); return err }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t)
			node(t, r, "m")
			node(t, r, "n", static("node-check", weft.Passing), static("spare", weft.Passing))
			in := withChecks(instance("order", "o-1"), static("order-check", weft.Passing))
			in.Node = "n"
			register(t, r, in)
			made := map[string]registry.Session{
				"node":     session(t, r, registry.Session{Node: "n", NodeChecks: []string{"node-check"}}),
				"instance": session(t, r, registry.Session{Node: "n", NodeChecks: []string{}, ServiceChecks: []registry.ServiceCheck{{ID: "order-check"}}, DeleteKeys: true}),
				"none":     session(t, r, registry.Session{Node: "n", NodeChecks: []string{}}),
			}
			for what, s := range made {
				commit(t, r, by(op("lock", what, "v"), s.ID))
			}
			_, before := r.Sessions("")
			if err := c.do(r); err != nil {
				t.Fatal(err)
			}
			index := r.Wait(ctx, registry.NodeTopic("n"), 0)
			for what, s := range made {
				now, at := r.Session(s.ID)
				e, keyAt := r.Key(registry.KV, what)
				if !slices.Contains(c.ended, what) {
					if now == nil || e == nil || e.Session != s.ID {
						t.Errorf("%s: %v, its key %+v; want it to live", what, now, e)
					}
					continue
				}
				if now != nil || at != index || keyAt != index {
					t.Errorf("%s: %v at %d, its key at %d; want it to end at %d", what, now, at, keyAt, index)
				}
				if gone := e == nil; gone != (what == "instance") || e != nil && e.Session != "" {
					t.Errorf("%s: its key is %+v", what, e)
				}
			}
			if _, after := r.Sessions("n"); (after != before) != (len(c.ended) > 0) {
				t.Errorf("index of the node's sessions went from %d to %d", before, after)
			}
		})
	}
}

// TestSessionsLapse: also after a restart, which gives them their whole time again.
func TestSessionsLapse(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	short := session(t, r, registry.Session{TTL: weft.Duration(30 * time.Millisecond)})
	long := session(t, r, registry.Session{TTL: weft.Duration(time.Hour)})
	commit(t, r, by(op("lock", "a", ""), short.ID))
	_, index := r.Session(short.ID)
	if after := r.Wait(t.Context(), registry.SessionTopic(short.ID), index); after <= index {
		t.Fatalf("index went from %d to %d", index, after)
	}
	if got, _ := r.Sessions(""); !slices.Equal(idsOf(got), []string{long.ID}) {
		t.Errorf("left: %q, want %q", idsOf(got), long.ID)
	}
	if e, _ := r.Key(registry.KV, "a"); e.Session != "" {
		t.Errorf("the lock of a session that lapsed: %+v", e)
	}

	again := session(t, r, registry.Session{TTL: weft.Duration(300 * time.Millisecond)})
	closeRegistry(t, r)
	r = openRegistry(t, s)
	opened := time.Now()
	_, index = r.Session(again.ID)
	r.Wait(t.Context(), registry.SessionTopic(again.ID), index)
	if lived := time.Since(opened); lived < 500*time.Millisecond { // it was begun before opened
		t.Errorf("it lapsed %s after the restart, with a TTL of 300ms", lived)
	}
}

// TestLargeSessionsEnd: the keys of one session are more than a transaction takes.
func TestLargeSessionsEnd(t *testing.T) {
	r := open(t)
	node(t, r, "n", static("up", weft.Passing))
	big := strings.Repeat("x", 500<<10)
	for _, destroyed := range []bool{true, false} {
		s := session(t, r, registry.Session{Node: "n", NodeChecks: []string{"up"}})
		for i := range 12 {
			commit(t, r, by(op("lock", fmt.Sprintf("big/%d", i), big), s.ID))
		}
		_, index := r.Session(s.ID)
		if destroyed {
			destroy(t, r, s)
		} else if err := r.SetCheck(t.Context(), "n", "up", static("up", weft.Critical)); err != nil {
			t.Fatal(err)
		}
		r.Wait(t.Context(), registry.SessionTopic(s.ID), index)
		list, _ := r.Keys(registry.KV, "big/")
		for _, e := range list {
			if e.Session != "" {
				t.Errorf("destroyed %v: %s is locked still", destroyed, e.Key)
			}
		}
	}
}

// What a dialect keeps locked by a session goes with it; a user's keys stay, unless the
// session says otherwise.
func TestDocumentsOfDialectsEndWithTheirSession(t *testing.T) {
	r := openRegistry(t, openStore(t, t.TempDir()))
	s := session(t, r, registry.Session{})
	lock := by(op("lock", "a", "1"), s.ID)
	commit(t, r, lock)
	lock.Tree = "query"
	commit(t, r, lock)
	before, index := r.Key("query", "a")
	if before == nil || before.Session != s.ID {
		t.Fatalf("locked: %+v", before)
	}
	if done, err := r.DestroySession(t.Context(), s.ID); !done || err != nil {
		t.Fatal(done, err)
	}
	if after, at := r.Key("query", "a"); after != nil || at <= index {
		t.Errorf("the document is %+v at %d, after %d", after, at, index)
	}
	if kept, _ := r.Key(registry.KV, "a"); kept == nil || kept.Session != "" {
		t.Errorf("the key is %+v", kept)
	}
}
