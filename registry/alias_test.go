package registry_test

import (
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

func aliasOf(id, node, instance string) weft.Check {
	return weft.Check{ID: id, Kind: weft.AliasCheck, AliasNode: node, AliasService: instance, Status: weft.Critical}
}

func wantCheck(t *testing.T, r *registry.Registry, id, check string, status weft.Health, output string) weft.Check {
	t.Helper()
	in, _ := r.Instance(key(id))
	for _, c := range in.Checks {
		if c.ID == check {
			if c.Status != status {
				t.Errorf("%s is %s (%s); want %s", check, c.Status, c.Output, status)
			}
			wantText(t, c.Output, output)
			return c
		}
	}
	t.Fatalf("%s has no check %s", id, check)
	return weft.Check{}
}

func TestAliasFollowsAnInstance(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", nil, "o")
	register(t, r, withChecks(instance("sidecar", "s"), aliasOf("alias", "", "o")))
	wantCheck(t, r, "s", "alias", weft.Passing, "All checks passing.")
	steps := []struct {
		name   string
		do     func() error
		want   weft.Health
		output string
	}{
		{"warning", func() error { return r.Report(t.Context(), "", "o", weft.Warning, "slow") }, weft.Warning, "slow"},
		{"critical", func() error { return r.Report(t.Context(), "", "o", weft.Critical, "gone") }, weft.Critical, `"Service 'order' check" failing: gone`},
		{"passing", func() error { return r.Report(t.Context(), "", "o", weft.Passing, "") }, weft.Passing, "passing"},
		{"maintenance", func() error { return r.Maintain(t.Context(), key("o"), true, "") }, weft.Critical, "Maintenance"},
		{"back", func() error { return r.Maintain(t.Context(), key("o"), false, "") }, weft.Passing, "passing"},
		{"its node fails", func() error {
			return r.SetCheck(t.Context(), "", "disk", weft.Check{Kind: weft.StaticCheck, Status: weft.Critical, Output: "full"})
		}, weft.Critical, "full"},
		{"its node is well", func() error { return r.RemoveCheck(t.Context(), "", "disk") }, weft.Passing, "passing"},
		{"deregistered", func() error { _, err := r.Deregister(t.Context(), key("o")); return err }, weft.Critical, "could not be found"},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			must(t, s.do())
			c := wantCheck(t, r, "s", "alias", s.want, s.output)
			_, instances := r.AllInstances()
			if c.ModifyIndex != instances {
				t.Errorf("the alias changed at %d; the last change of any instance or check is at %d", c.ModifyIndex, instances)
			}
		})
	}
}

func TestAliasOfANode(t *testing.T) {
	r := open(t)
	ctx := t.Context()
	register(t, r, withChecks(instance("order", "o"), aliasOf("alias", "far", "")))
	wantCheck(t, r, "o", "alias", weft.Critical, "Node far could not be found")
	_, err := r.RegisterNode(ctx, weft.Node{Name: "far", Address: "10.0.0.9"})
	must(t, err)
	wantCheck(t, r, "o", "alias", weft.Passing, "No checks found.")
	must(t, r.SetCheck(ctx, "far", "disk", weft.Check{Kind: weft.StaticCheck, Status: weft.Warning, Output: "90 %"}))
	wantCheck(t, r, "o", "alias", weft.Warning, "90 %")
	far := withChecks(instance("billing", "b"), weft.Check{ID: "b", Kind: weft.StaticCheck, Status: weft.Critical})
	far.Node = "far"
	register(t, r, far) // the node's own checks count only
	wantCheck(t, r, "o", "alias", weft.Warning, "90 %")
	_, err = r.DeregisterNode(ctx, "far")
	must(t, err)
	wantCheck(t, r, "o", "alias", weft.Critical, "could not be found")
}

// TestAliasesOfAliases: a chain is followed at one index; a circle holds nobody down.
func TestAliasesOfAliases(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", nil, "o")
	register(t, r, withChecks(instance("one", "1"), aliasOf("first", "", "o")))
	register(t, r, withChecks(instance("two", "2"), aliasOf("second", "", "1")))
	fail(t, r, "o")
	first := wantCheck(t, r, "1", "first", weft.Critical, "no route to o")
	second := wantCheck(t, r, "2", "second", weft.Critical, "no route to o")
	if first.ModifyIndex != second.ModifyIndex {
		t.Errorf("at %d and %d", first.ModifyIndex, second.ModifyIndex)
	}
	heal(t, r, "o")
	wantCheck(t, r, "2", "second", weft.Passing, "")

	register(t, r, withChecks(instance("x", "x"), aliasOf("to y", "", "y"), ttlCheck("own", weft.Passing)))
	register(t, r, withChecks(instance("y", "y"), aliasOf("to x", "", "x")))
	wantCheck(t, r, "x", "to y", weft.Passing, "")
	fail(t, r, "own")
	wantCheck(t, r, "y", "to x", weft.Critical, "no route to own")
	heal(t, r, "own")
	wantCheck(t, r, "y", "to x", weft.Passing, "")
	wantCheck(t, r, "x", "to y", weft.Passing, "")
}

// TestAliasIsNotWrittenWithoutNeed: registering the same again changes nothing, and
// a change of something else does not either.
func TestAliasIsNotWrittenWithoutNeed(t *testing.T) {
	r := open(t)
	fleet(t, r, "order", nil, "o", "p")
	sidecar := withChecks(instance("sidecar", "s"), aliasOf("alias", "", "o"))
	index := register(t, r, sidecar)
	if again := register(t, r, sidecar); again != index {
		t.Errorf("index %d, and %d when it is registered again", index, again)
	}
	fail(t, r, "p")
	must(t, r.Report(t.Context(), "", "o", weft.Passing, "still well"))
	if _, now := r.Instances(service("sidecar")); now != index {
		t.Errorf("index %d moved to %d", index, now)
	}
	_, err := r.Deregister(t.Context(), key("s"))
	must(t, err)
	fail(t, r, "o") // nobody follows it any more
}

func TestAliasOverARestart(t *testing.T) {
	s := openStore(t, t.TempDir())
	r := openRegistry(t, s)
	fleet(t, r, "order", nil, "o")
	register(t, r, withChecks(instance("sidecar", "s"), aliasOf("alias", "", "o")))
	closeRegistry(t, r)
	r = openRegistry(t, s)
	fail(t, r, "o")
	wantCheck(t, r, "s", "alias", weft.Critical, "no route to o")
}
