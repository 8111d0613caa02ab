package registry_test

import (
	"strings"
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// fleet registers instances of one service, whose one check has the instance's id.
func fleet(t *testing.T, r *registry.Registry, service string, labels map[string]string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		in := withChecks(instance(service, id), ttlCheck(id, weft.Passing))
		in.Labels = labels
		register(t, r, in)
	}
}

func fail(t *testing.T, r *registry.Registry, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, r.Report(t.Context(), "", id, weft.Critical, "no route to "+id))
	}
}

func heal(t *testing.T, r *registry.Registry, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, r.Report(t.Context(), "", id, weft.Passing, ""))
	}
}

func endpointsOf(ids ...string) (list []string) {
	for _, id := range ids {
		list = append(list, ownNode+"/"+id)
	}
	return list
}

func TestGuardKeepsTheLastGoodSet(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", nil, "a", "b", "c")
	fail(t, r, "a", "b")
	wantEndpoints(t, r, "order", endpointsOf("c")...)
	if _, guarded := r.Guard(service("order")); guarded {
		t.Error("guarded while one is healthy")
	}
	fail(t, r, "c")
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c")...)
	g, guarded := r.Guard(service("order"))
	if !guarded || len(g.Kept) != 3 || !g.Keeps(key("b")) || g.Keeps(key("d")) || g.Since.IsZero() {
		t.Errorf("guard %+v, %v", g, guarded)
	}
	wantText(t, g.Reason, "3 of 3 instances failed", `check "c": no route to c`)
	// Health is told as it is, and there was no index at which the set was empty.
	in, index := r.Instance(key("c"))
	if in.Health() != weft.Critical || in.ModifyIndex != index {
		t.Errorf("c is %s at %d; its service is at %d", in.Health(), in.ModifyIndex, index)
	}
	if names := r.Guarded(); len(names) != 1 || names[0] != service("order") {
		t.Errorf("guarded: %v", names)
	}
	before := index
	heal(t, r, "b")
	wantEndpoints(t, r, "order", endpointsOf("b")...)
	if g, guarded := r.Guard(service("order")); guarded {
		t.Errorf("b is healthy, and there is a guard: %+v", g)
	}
	if _, index := r.Instances(service("order")); index <= before {
		t.Errorf("the guard ended, and the index stays at %d", index)
	}
}

func wantText(t *testing.T, got string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("%q does not say %q", got, text)
		}
	}
}

func TestWhatIsNotGuarded(t *testing.T) {
	all := []string{"a", "b", "c"}
	off := map[string]string{registry.GuardLabel: "off"}
	cases := []struct {
		name   string
		labels map[string]string
		ids    []string
		do     func(t *testing.T, r *registry.Registry)
	}{
		{"one instance", nil, all[:1], func(t *testing.T, r *registry.Registry) { fail(t, r, "a") }},
		{"two instances", nil, all[:2], func(t *testing.T, r *registry.Registry) { fail(t, r, "a", "b") }},
		{"a service that does not want it", off, all, func(t *testing.T, r *registry.Registry) { fail(t, r, all...) }},
		{"maintenance", nil, all, func(t *testing.T, r *registry.Registry) {
			for _, id := range all {
				must(t, r.Maintain(t.Context(), key(id), true, ""))
			}
		}},
		{"drains", nil, all, func(t *testing.T, r *registry.Registry) {
			for _, id := range all {
				_, err := r.Drain(t.Context(), registry.DrainRequest{Key: key(id)})
				must(t, err)
			}
		}},
		{"one that fails after two rest", nil, all, func(t *testing.T, r *registry.Registry) {
			must(t, r.Maintain(t.Context(), key("a"), true, ""))
			must(t, r.Maintain(t.Context(), key("b"), true, ""))
			fail(t, r, "c")
		}},
		{"deregistration", nil, all, func(t *testing.T, r *registry.Registry) {
			for _, id := range all {
				_, err := r.Deregister(t.Context(), key(id))
				must(t, err)
			}
		}},
		{"the last one is deregistered", nil, append(all, "d"), func(t *testing.T, r *registry.Registry) {
			fail(t, r, all...)
			_, err := r.Deregister(t.Context(), key("d"))
			must(t, err)
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := open(t)
			fleet(t, r, "order", c.labels, c.ids...)
			c.do(t, r)
			wantEndpoints(t, r, "order")
			if g, guarded := r.Guard(service("order")); guarded {
				t.Errorf("guarded: %+v", g)
			}
		})
	}
}

func TestGuardOfAShare(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", map[string]string{registry.GuardLabel: "50%"}, "a", "b", "c", "d", "e", "f")
	fail(t, r, "a", "b")
	wantEndpoints(t, r, "order", endpointsOf("c", "d", "e", "f")...)
	fail(t, r, "c")
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c", "d", "e", "f")...)
	fail(t, r, "d")
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c", "d", "e", "f")...)
	heal(t, r, "a")
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c", "d", "e", "f")...)
	heal(t, r, "b")
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "e", "f")...)
}

func TestGuardLosesWhatIsTakenOut(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	fleet(t, r, "order", nil, "a", "b", "c")
	fail(t, r, "a", "b", "c")
	_, err := r.Deregister(ctx, key("a"))
	must(t, err)
	wantEndpoints(t, r, "order", endpointsOf("b", "c")...)
	must(t, r.Maintain(ctx, key("b"), true, ""))
	wantEndpoints(t, r, "order", endpointsOf("c")...)
	_, err = r.Drain(ctx, registry.DrainRequest{Key: key("c")})
	must(t, err)
	wantEndpoints(t, r, "order")
	if g, guarded := r.Guard(service("order")); guarded {
		t.Errorf("nobody is kept, and there is a guard: %+v", g)
	}
	must(t, r.EndDrain(ctx, key("c"))) // it is as it was: failed
	wantEndpoints(t, r, "order")
}

func TestGuardOverARestart(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	fleet(t, r, "order", nil, "a", "b", "c")
	fail(t, r, "a", "b", "c")
	before, _ := r.Guard(service("order"))
	_, index := r.Instances(service("order"))
	closeRegistry(t, r)
	r = openRegistry(t, s)
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c")...)
	after, _ := r.Guard(service("order"))
	if _, i := r.Instances(service("order")); i != index || after.Reason != before.Reason || !after.Since.Equal(before.Since) {
		t.Errorf("after the restart %+v at %d; before %+v at %d", after, i, before, index)
	}
	released, err := r.ReleaseGuard(t.Context(), service("order"))
	must(t, err)
	if released <= index {
		t.Errorf("released at %d; it began at %d", released, index)
	}
	if _, i := r.AllInstances(); i != released {
		t.Errorf("who reads all instances is at %d, and is not told that it was released at %d", i, released)
	}
	wantEndpoints(t, r, "order")
	_, err = r.ReleaseGuard(t.Context(), service("order"))
	wantKind(t, err, weft.NotFound, "order.default", "not guarded")
	closeRegistry(t, r)
	r = openRegistry(t, s)
	wantEndpoints(t, r, "order")
	if _, i := r.Instances(service("order")); i != released {
		t.Errorf("index %d after the restart; want %d", i, released)
	}
}

// TestGuardOfANode: the node fails that all instances are on.
func TestGuardOfANode(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", nil, "a", "b", "c")
	must(t, r.SetCheck(t.Context(), "", "disk", weft.Check{Kind: weft.StaticCheck, Status: weft.Critical, Output: "full"}))
	wantEndpoints(t, r, "order", endpointsOf("a", "b", "c")...)
	must(t, r.SetCheck(t.Context(), "", "disk", weft.Check{Kind: weft.StaticCheck, Status: weft.Passing}))
	if _, guarded := r.Guard(service("order")); guarded {
		t.Error("the node is well, and the service is guarded")
	}
	must(t, r.Maintain(t.Context(), weft.InstanceKey{}, true, "")) // a node that rests is no failure
	wantEndpoints(t, r, "order")
}
