package registry_test

import (
	"testing"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/registry"
)

// An instance is replaced by who knows the newest of it, and by nobody else.
func TestCompareAndSetOfAnInstance(t *testing.T) {
	r := open(t)
	in := weft.Instance{Node: "server-1", ID: "o1", Service: service("order"), Port: 1}
	cas := func(port int, index uint64) registry.TxnResult {
		t.Helper()
		in.Port, in.ModifyIndex = port, index
		result, err := r.Transact(t.Context(), registry.TxnRequest{
			Ops: []registry.Op{{Service: &registry.InstanceOp{Verb: "cas", Instance: in}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	for _, step := range []struct {
		what string
		port int
		back uint64 // how much older than the newest index the known one is
		new  bool   // no index is known
		held bool
	}{
		{"index 0 makes it", 1, 0, true, true},
		{"index 0 does not replace it", 2, 0, true, false},
		{"the newest index replaces it", 3, 0, false, true},
		{"an older index does not", 4, 1, false, false},
	} {
		var index uint64
		before, _ := r.Instance(in.Key())
		if before != nil && !step.new {
			index = before.ModifyIndex - step.back
		}
		result := cas(step.port, index)
		if held := len(result.Errors) == 0; held != step.held {
			t.Fatalf("%s: errors %v", step.what, result.Errors)
		}
		if !step.held && result.Errors[0].Kind != weft.Conflict {
			t.Errorf("%s: kind %v, want conflict", step.what, result.Errors[0].Kind)
		}
		after, _ := r.Instance(in.Key())
		if changed := before == nil || after.Port != before.Port; changed != step.held {
			t.Errorf("%s: port is %d", step.what, after.Port)
		}
	}
}
