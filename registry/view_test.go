package registry

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/weftmesh/weft"
)

// TestOnlyGrows: what is taken for a service that only grows is listed by Services as
// before.
func TestOnlyGrows(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	grown := 0
	random := func() (weft.InstanceKey, *weft.Instance) {
		key := weft.InstanceKey{Node: strconv.Itoa(rng.IntN(2)), ID: strconv.Itoa(rng.IntN(6))}
		in := &weft.Instance{Node: key.Node, ID: key.ID}
		for _, tag := range []string{"a", "b", "c"} {
			if rng.IntN(3) == 0 {
				in.Tags = append(in.Tags, tag)
			}
		}
		return key, in
	}
	for range 3000 {
		var e *serviceEntry
		if rng.IntN(10) > 0 {
			present := make(edits)
			for range rng.IntN(5) {
				key, in := random()
				present[key] = in
			}
			e = e.with(present)
		}
		ed := make(edits)
		for range 1 + rng.IntN(2) {
			key, in := random()
			if rng.IntN(4) == 0 {
				in = nil
			}
			ed[key] = in
		}
		after := e.with(ed)
		if !slices.IsSortedFunc(after.instances, byKey) {
			t.Fatal("the instances are not sorted")
		}
		if e.onlyGrows(ed) {
			grown++
			if !sameInMap(e, after) {
				t.Fatalf("tags %v become %v", e.tags, after.tags)
			}
		}
	}
	if grown < 100 {
		t.Errorf("only %d cases of 3000 say something", grown)
	}
}
